import assert from "node:assert";
import { randomUUID } from "node:crypto";
import { readdirSync } from "node:fs";
import amqp from "amqplib";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const protos = `${process.env.CONTRACTS}/proto`;

// Node's standard loader of gRPC reads each file.
const files = readdirSync(`${protos}/shop`, { recursive: true }).filter((file) => file.endsWith(".proto"));
assert(files.length > 20);
for (const file of files) protoLoader.loadSync(`shop/${file}`, { includeDirs: [protos] });

const root = new protobuf.Root();
root.resolvePath = (_, target) => `${protos}/${target}`;
await root.load(["shop/inventory/v1/stock.proto", "shop/events/v1/inventory.proto"], { keepCase: true });
const type = (name) => root.lookupType(name);

// asker returns a function that publishes a request and waits for the answer to it.
async function asker(url) {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  const waiting = new Map();
  await channel.consume("amq.rabbitmq.reply-to", (answer) => waiting.get(answer.properties.correlationId)(answer), { noAck: true });
  channel.on("return", (message) => waiting.get(message.properties.correlationId)(new Error("it could not be routed")));
  const user = decodeURIComponent(new URL(url).username);
  const ask = async (exchange, key, body, properties = {}) => {
    const correlationId = randomUUID();
    const answered = new Promise((resolve, reject) => {
      waiting.set(correlationId, (answer) => (answer instanceof Error ? reject(answer) : resolve(answer)));
      setTimeout(() => reject(new Error(`${key}: no answer in 20 s`)), 20000).unref();
    });
    channel.publish(exchange, key, body, {
      mandatory: true, replyTo: "amq.rabbitmq.reply-to", correlationId, messageId: randomUUID(), userId: user, contentType: "application/protobuf", ...properties,
    });
    await channel.waitForConfirms();
    return answered;
  };
  return { ask, close: () => connection.close() };
}

// success decodes an answer that is no failure.
function success(answer, name) {
  const { headers, contentType } = answer.properties;
  assert.equal(headers["grpc-status"], 0, `${answer.content}`);
  assert.equal(answer.properties.type, name);
  assert.equal(contentType, "application/protobuf");
  return type(name).toObject(type(name).decode(answer.content), { defaults: true, longs: Number, enums: String });
}

// failure checks that an answer is a failure, and returns its reason.
function failure(answer, code) {
  const { headers, contentType } = answer.properties;
  assert.equal(headers["grpc-status"], code);
  assert.equal(answer.properties.type, "google.rpc.Status");
  assert.equal(contentType, "application/json");
  const status = JSON.parse(answer.content);
  assert.equal(status.code, code);
  return status.details?.find((detail) => detail.reason)?.reason;
}

// Commands with answers, as a user who may send nothing else.
const commander = await asker(process.env.COMMANDER_URL);
const name = `Tripod ${randomUUID()}`;
const create = (requestId) =>
  type("shop.events.v1.CreateItems").encode({
    request_id: requestId, items: [{ product_name: name, quantity: 7, price: { currency_code: "USD", units: 25 } }],
  }).finish();
const requestId = randomUUID();
let changed = success(await commander.ask("shop.topic", "shop.inventory.create", create(requestId), { deliveryMode: 2 }), "shop.events.v1.ItemsChanged");
assert.equal(changed.done_before, false);
assert.equal(changed.items[0].quantity, 7);
changed = success(await commander.ask("shop.topic", "shop.inventory.create", create(requestId), { deliveryMode: 2 }), "shop.events.v1.ItemsChanged");
assert.equal(changed.done_before, true);
const messageId = randomUUID();
assert.equal(failure(await commander.ask("shop.topic", "shop.inventory.create", create(randomUUID()), { messageId }), 6), "ITEM_EXISTS");

// What was refused is found by the sender's own id.
for (let attempt = 0; ; attempt++) {
  const response = await fetch(`${process.env.SHOP_URL}/v1/dead-letters?message_id=${messageId}`, { headers: { Authorization: `Bearer ${process.env.SHOP_OPERATOR_TOKEN}` } });
  const { dead_letters } = await response.json();
  if (dead_letters.length === 1) break;
  assert(attempt < 50, "the refused command is not found");
  await new Promise((resolve) => setTimeout(resolve, 200));
}
await commander.close();

// Calls.
const caller = await asker(process.env.CALLER_URL);
const check = (body) => caller.ask("shop.direct", "shop.inventory.check", body, { expiration: "20000", headers: { "grpc-timeout-ms": 20000 } });
const request = (quantity) => ({ orders: [{ order_id: randomUUID(), lines: [{ product_id: 1, quantity }] }] });
const encode = (value) => type("shop.inventory.v1.CheckStockRequest").encode(value).finish();
const held = encode(request(2));
for (const [quantity, body] of [[2, held], [2, held], [100000, encode(request(100000))]]) {
  const { decisions } = success(await check(body), "shop.inventory.v1.CheckStockResponse");
  assert.equal(decisions.length, 1);
  assert.equal(decisions[0].rejection?.reason, quantity === 2 ? undefined : "OUT_OF_STOCK", JSON.stringify(decisions[0]));
}
failure(await check(Buffer.from([0xff])), 3);
failure(await caller.ask("shop.direct", "shop.inventory.check", Buffer.from("{}"), { contentType: "application/json" }), 3);
await caller.close();
