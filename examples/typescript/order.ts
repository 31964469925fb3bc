// Places an order over gRPC and watches it until it has been decided.
import { setTimeout as sleep } from "node:timers/promises";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { CheckoutService } from "./gen/shop/checkout/v1/checkout_pb.js";
import { EventLogService } from "./gen/shop/logging/v1/event_log_pb.js";

const transport = createGrpcTransport({ baseUrl: process.env.SHOP_URL ?? "http://localhost:3000" });
const { order } = await createClient(CheckoutService, transport).placeOrder({
  customerName: "Ada",
  customerEmail: "ada@example.org",
  orderItems: [
    { productId: 5, quantity: 3 },
    { productId: 6, quantity: 4 },
  ],
});

let afterId = 0n;
for (let attempt = 0; attempt < 30; attempt++) {
  try {
    for await (const reply of createClient(EventLogService, transport).streamEvents({ orderId: order!.id, afterId })) {
      afterId = reply.position; // from here a new stream goes on
      if (!reply.event) continue; // it says only how far the stream has come
      console.log(reply.event.orderId, reply.event.routingKey);
      if (["shop.order.confirmed", "shop.order.rejected"].includes(reply.event.routingKey)) process.exit();
    }
  } catch (error) {
    console.error("the stream ended:", ConnectError.from(error).message);
  }
  await sleep(1000);
}
console.error("the order has not been decided");
process.exit(1);
