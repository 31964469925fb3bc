// Prints the events of orders as the broker delivers them, the first ones (events.js 3) or all, until Ctrl-C.
import amqp from "amqplib";
import { createRegistry, fromBinary, toJsonString } from "@bufbuild/protobuf";
import { file_shop_events_v1_order } from "./gen/shop/events/v1/order_pb.js";

if (!process.env.AMQP_URL) {
  console.error("set AMQP_URL, for example to amqp://warehouse:password@localhost:5672/");
  process.exit(1);
}
const url = new URL(process.env.AMQP_URL);
const events = createRegistry(file_shop_events_v1_order);
const connection = await amqp.connect(url.href);
const channel = await connection.createChannel();
await channel.prefetch(100);
// A queue of this connection alone: a program that must miss nothing while it is away declares a durable quorum queue.
const { queue } = await channel.assertQueue(`${url.username}.example-typescript`, { exclusive: true });
await channel.bindQueue(queue, "shop.topic", "shop.order.*");

let left = Number(process.argv[2] ?? -1);
connection.on("close", () => { // also when the broker is shut down, which is no error to the library
  if (left === 0) return;
  console.error("the connection was lost");
  process.exitCode = 1;
});
const seen = new Set<string>(); // of a program that does something: a table, written in the same transaction
await channel.consume(queue, async (message) => {
  if (!message) throw new Error("the broker has cancelled the consumer"); // the queue is gone, for example
  const type = events.getMessage(message.properties.type);
  if (type && left !== 0 && !seen.has(message.properties.messageId)) { // an event can come twice, and new types can come
    console.log(message.fields.routingKey, message.properties.correlationId, toJsonString(type, fromBinary(type, message.content)));
    seen.add(message.properties.messageId);
    left--;
  }
  channel.ack(message);
  if (left === 0) await connection.close();
});
console.log("listening");
