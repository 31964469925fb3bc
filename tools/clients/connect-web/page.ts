// What a page does with a shop of another origin, over Connect and over gRPC-Web. seen() is what came of it.
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { CheckoutService } from "./gen/shop/checkout/v1/checkout_pb.js";
import { InventoryService } from "./gen/shop/inventory/v1/inventory_pb.js";
import { EventLogService } from "./gen/shop/logging/v1/event_log_pb.js";
import { Order_State, OrderService } from "./gen/shop/order/v1/order_pb.js";

const query = new URLSearchParams(location.search);
const baseUrl = query.get("shop")!;
const productId = Number(query.get("product"));

async function use(transport: Transport) {
  const placed = await createClient(CheckoutService, transport).placeOrder({
    customerName: "Ada", customerEmail: "ada@example.org", orderItems: [{ productId, quantity: 2 }],
  });
  const id = placed.order!.id;
  const events: string[] = [];
  for await (const { event } of createClient(EventLogService, transport).streamEvents({ orderId: id })) {
    if (event) events.push(event.routingKey);
    if (events.includes("shop.order.confirmed")) break;
  }
  const read = await createClient(OrderService, transport).getOrder({ orderId: id });
  return {
    placed: Order_State[placed.order!.state], events, read: Order_State[read.order!.state],
    refused: await refusal(createClient(InventoryService, transport).getItem({ id: 999999 })),
    forbidden: await refusal(createClient(OrderService, transport).listOrders({})),
  };
}

// refusal is the code and the reason with which a call ends.
async function refusal(call: Promise<unknown>) {
  try {
    await call;
    return "none";
  } catch (err) {
    const error = ConnectError.from(err);
    return `${Code[error.code]} ${error.findDetails(ErrorInfoSchema)[0]?.reason}`;
  }
}

Object.assign(window, {
  seen: async () => [await use(createConnectTransport({ baseUrl })), await use(createGrpcWebTransport({ baseUrl }))],
});
