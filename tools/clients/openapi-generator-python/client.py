import os

import shop_client
from shop_client.exceptions import ApiException

product = int(os.environ["PRODUCT"])
unsold = int(os.environ["UNSOLD_PRODUCT"])
api = shop_client.ApiClient(shop_client.Configuration(host=os.environ["SHOP_URL"], access_token=os.environ["SHOP_OPERATOR_TOKEN"]))
checkout = shop_client.CheckoutServiceApi(api)
orders = shop_client.OrderServiceApi(api)
inventory = shop_client.InventoryServiceApi(api)

request = shop_client.PlaceOrderRequest(
    customer_name="Ada",
    customer_email="ada@example.org",
    order_items=[shop_client.PlaceOrderRequestItem(product_id=product, quantity=2)],
)
order = checkout.checkout_service_place_order(request, prefer="wait=20")
assert order.state == "CONFIRMED", order
assert orders.order_service_get_order(order.id).total_items == 2
assert any(o.id == order.id for o in orders.order_service_list_orders(state="CONFIRMED").orders)
assert orders.order_service_cancel_order(order.id, {}).state == "CANCELLED"

item = inventory.inventory_service_get_item(unsold)
item.on_hand += 1
changed = inventory.inventory_service_update_item(unsold, shop_client.UpdateItemBody.from_dict(item.to_dict()))
assert changed.on_hand == item.on_hand, changed

try:
    inventory.inventory_service_get_item(999999)
    raise AssertionError("a product that there is not")
except ApiException as error:
    assert next(d.reason for d in error.data.details if d.reason) == "ITEM_NOT_FOUND", error
