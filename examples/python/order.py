"""Places an order over gRPC and watches it until it has been decided."""

import os
import sys
import time

import grpc

from shop.checkout.v1 import checkout_pb2, checkout_pb2_grpc
from shop.logging.v1 import event_log_pb2, event_log_pb2_grpc

channel = grpc.insecure_channel(os.environ.get("SHOP_SERVER", "localhost:3000"))
order = checkout_pb2_grpc.CheckoutServiceStub(channel).PlaceOrder(
    checkout_pb2.PlaceOrderRequest(
        customer_name="Ada",
        customer_email="ada@example.org",
        order_items=[
            checkout_pb2.PlaceOrderRequest.Item(product_id=5, quantity=3),
            checkout_pb2.PlaceOrderRequest.Item(product_id=6, quantity=4),
        ],
    )
).order

request = event_log_pb2.StreamEventsRequest(order_id=order.id)
for _ in range(30):
    try:
        for reply in event_log_pb2_grpc.EventLogServiceStub(channel).StreamEvents(request):
            request.after_id = reply.position  # from here a new stream goes on
            if not reply.HasField("event"):
                continue  # it says only how far the stream has come
            print(reply.event.order_id, reply.event.routing_key)
            if reply.event.routing_key in ("shop.order.confirmed", "shop.order.rejected"):
                sys.exit()
    except grpc.RpcError as error:
        print(f"the stream ended: {error.details()}", file=sys.stderr)
    time.sleep(1)
sys.exit("the order has not been decided")
