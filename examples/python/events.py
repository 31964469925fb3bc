"""Prints the events of orders as the broker delivers them, the first ones (events.py 3) or all, until Ctrl-C."""

import os
import sys

import pika
from google.protobuf import json_format

from shop.events.v1 import order_pb2

EVENTS = {
    message.DESCRIPTOR.full_name: message
    for message in (order_pb2.OrderPlaced, order_pb2.OrderConfirmed, order_pb2.OrderRejected, order_pb2.OrderCancelled)
}

if not os.environ.get("AMQP_URL"):
    sys.exit("set AMQP_URL, for example to amqp://warehouse:password@localhost:5672/")
parameters = pika.URLParameters(os.environ["AMQP_URL"])
channel = pika.BlockingConnection(parameters).channel()
channel.basic_qos(prefetch_count=100)
# A queue of this connection alone: a program that must miss nothing while it is away declares a durable quorum queue.
queue = parameters.credentials.username + ".example-python"
channel.queue_declare(queue, exclusive=True)
channel.queue_bind(queue, "shop.topic", "shop.order.*")
print("listening", flush=True)

left = int(sys.argv[1]) if len(sys.argv) > 1 else -1
seen = set()  # of a program that does something: a table, written in the same transaction
for method, properties, body in channel.consume(queue):
    event_type = EVENTS.get(properties.type)
    if event_type and properties.message_id not in seen:  # an event can come twice, and new types can come
        event = event_type.FromString(body)
        print(method.routing_key, event.order_id, json_format.MessageToJson(event, indent=None), flush=True)
        seen.add(properties.message_id)
        left -= 1
    channel.basic_ack(method.delivery_tag)
    if left == 0:
        break
