import assert from "node:assert";
import createClient from "openapi-fetch";
import type { paths } from "./shop.js";

const product = Number(process.env.PRODUCT);
const shop = createClient<paths>({
  baseUrl: process.env.SHOP_URL!,
  headers: { Authorization: `Bearer ${process.env.SHOP_OPERATOR_TOKEN}` },
});

const placed = await shop.POST("/v1/orders", {
  params: { header: { Prefer: "wait=20" } },
  body: { customer_name: "Ada", customer_email: "ada@example.org", order_items: [{ product_id: product, quantity: 2 }] },
});
const order = placed.data!;
assert.equal(order.state, "CONFIRMED");

const path = { order_id: order.id };
assert.equal((await shop.GET("/v1/orders/{order_id}", { params: { path } })).data!.total_items, 2);
const listed = await shop.GET("/v1/orders", { params: { query: { state: "CONFIRMED" } } });
assert(listed.data!.orders.some((o) => o.id === order.id));

const cancelled = await shop.POST("/v1/orders/{order_id}:cancel", { params: { path }, body: {} });
assert.equal(cancelled.data!.state, "CANCELLED");

const onePath = { params: { path: { id: Number(process.env.UNSOLD_PRODUCT) } } };
const item = (await shop.GET("/v1/inventory/{id}", onePath)).data!;
const changed = await shop.PATCH("/v1/inventory/{id}", { ...onePath, body: { ...item, on_hand: item.on_hand + 1 } });
assert.equal(changed.error, undefined);
assert.equal(changed.data!.on_hand, item.on_hand + 1);

const missing = await shop.GET("/v1/inventory/{id}", { params: { path: { id: 999999 } } });
assert.equal(missing.error!.details.find((d) => d.reason)!.reason, "ITEM_NOT_FOUND");
