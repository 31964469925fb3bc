// Registers itself as a webhook for the events of orders, asks for a test event, and prints what comes and is verified:
// the first ones (webhook.js 3) or all, until Ctrl-C.
import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Webhook } from "standardwebhooks";
import { WebhookService } from "./gen/shop/webhooks/v1/webhook_pb.js";

if (!process.env.SHOP_OPERATOR_TOKEN) {
  console.error("set SHOP_OPERATOR_TOKEN to the operator token, which make up prints");
  process.exit(1);
}
const transport = createGrpcTransport({ baseUrl: process.env.SHOP_URL ?? "http://localhost:3000" });
const webhooks = createClient(WebhookService, transport);
const operator = { headers: { Authorization: `Bearer ${process.env.SHOP_OPERATOR_TOKEN}` } };

let secret: string;
let left = Number(process.argv[2] ?? -1);
const server = http.createServer(async (request, response) => {
  const body = await text(request);
  try {
    const event = new Webhook(secret).verify(body, request.headers as Record<string, string>) as { type: string; data: { order_id?: string } };
    console.log(event.type, request.headers["webhook-id"], event.data.order_id ?? "");
    response.writeHead(204).end();
    if (--left === 0) server.emit("enough");
  } catch (error) {
    response.writeHead(400).end(String(error));
  }
});
const enough = once(server, "enough");
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => server.emit("enough")); // the webhook must not stay behind
await once(server.listen(0, "127.0.0.1"), "listening");

const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
const created = await webhooks.createWebhook({ webhook: { url, eventTypes: ["shop.order.#"] } }, operator);
secret = created.secret; // it is shown this once
const webhookId = created.webhook!.id;
try {
  const test = await webhooks.testWebhook({ webhookId }, operator);
  if (!test.delivered) throw new Error(`the test event was not delivered: ${test.errorMessage}`);
  console.log("listening");
  await enough;
} finally {
  await webhooks.deleteWebhook({ webhookId }, operator);
  server.close();
}
