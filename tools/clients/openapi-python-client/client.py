import os

from shop_client import AuthenticatedClient
from shop_client.api.checkout_service import checkout_service_place_order as place_order
from shop_client.api.inventory_service import inventory_service_get_item as get_item
from shop_client.api.inventory_service import inventory_service_update_item as update_item
from shop_client.api.order_service import order_service_cancel_order as cancel_order
from shop_client.api.order_service import order_service_get_order as get_order
from shop_client.api.order_service import order_service_list_orders as list_orders
from shop_client.models import CancelOrderBody, OrderServiceListOrdersState, PlaceOrderRequest, PlaceOrderRequestItem, UpdateItemBody

product = int(os.environ["PRODUCT"])
unsold = int(os.environ["UNSOLD_PRODUCT"])
shop = AuthenticatedClient(base_url=os.environ["SHOP_URL"], token=os.environ["SHOP_OPERATOR_TOKEN"])

request = PlaceOrderRequest(
    customer_name="Ada",
    customer_email="ada@example.org",
    order_items=[PlaceOrderRequestItem(product_id=product, quantity=2)],
)
order = place_order.sync(client=shop, body=request, prefer="wait=20")
assert order.state == "CONFIRMED", order
assert get_order.sync(order.id, client=shop).total_items == 2
assert any(o.id == order.id for o in list_orders.sync(client=shop, state=OrderServiceListOrdersState.CONFIRMED).orders)
assert cancel_order.sync(order.id, client=shop, body=CancelOrderBody()).state == "CANCELLED"

item = get_item.sync(unsold, client=shop)
item.on_hand += 1
changed = update_item.sync(unsold, client=shop, body=UpdateItemBody.from_dict(item.to_dict()))
assert changed.on_hand == item.on_hand, changed

missing = get_item.sync(999999, client=shop)
assert next(d.reason for d in missing.details if d.reason) == "ITEM_NOT_FOUND", missing
