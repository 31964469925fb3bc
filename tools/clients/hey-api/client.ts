import assert from "node:assert";
import * as shop from "./shop";
import { client } from "./shop/client.gen";

const product = Number(process.env.PRODUCT);
const unsold = Number(process.env.UNSOLD_PRODUCT);
client.setConfig({ baseUrl: process.env.SHOP_URL, auth: () => process.env.SHOP_OPERATOR_TOKEN });

const placed = await shop.checkoutServicePlaceOrder({
  headers: { Prefer: "wait=20" },
  body: { customer_name: "Ada", customer_email: "ada@example.org", order_items: [{ product_id: product, quantity: 2 }] },
});
const order = placed.data!;
assert.equal(order.state, "CONFIRMED");

const path = { order_id: order.id };
assert.equal((await shop.orderServiceGetOrder({ path })).data!.total_items, 2);
const listed = await shop.orderServiceListOrders({ query: { state: "CONFIRMED" } });
assert(listed.data!.orders.some((o) => o.id === order.id));
assert.equal((await shop.orderServiceCancelOrder({ path, body: {} })).data!.state, "CANCELLED");

const item = (await shop.inventoryServiceGetItem({ path: { id: unsold } })).data!;
const changed = await shop.inventoryServiceUpdateItem({ path: { id: unsold }, body: { ...item, on_hand: item.on_hand + 1 } });
assert.equal(changed.error, undefined);
assert.equal(changed.data!.on_hand, item.on_hand + 1);

const missing = await shop.inventoryServiceGetItem({ path: { id: 999999 } });
assert.equal(missing.error!.details.find((d) => d.reason)!.reason, "ITEM_NOT_FOUND");
