import json
import os
import uuid

import pika

from shop.events.v1 import order_pb2
from shop.inventory.v1 import stock_pb2

parameters = pika.URLParameters(os.environ["CALLER_URL"])
connection = pika.BlockingConnection(parameters)
channel = connection.channel()
answers = []
channel.basic_consume("amq.rabbitmq.reply-to", lambda *answer: answers.append(answer), auto_ack=True)


def call(body, **properties):
    correlation_id = str(uuid.uuid4())
    channel.basic_publish(
        "shop.direct",
        "shop.inventory.check",
        body,
        mandatory=True,
        properties=pika.BasicProperties(
            reply_to="amq.rabbitmq.reply-to",
            correlation_id=correlation_id,
            user_id=parameters.credentials.username,
            expiration="20000",
            headers={"grpc-timeout-ms": 20000},
            **properties,
        ),
    )
    connection.process_data_events(time_limit=20)
    _, _, properties, body = answers.pop()
    assert properties.correlation_id == correlation_id, properties
    return properties, body


def check_stock(quantity, order_id):
    request = stock_pb2.CheckStockRequest()
    request.orders.add(order_id=order_id).lines.add(product_id=1, quantity=quantity)
    properties, body = call(request.SerializeToString())
    assert properties.headers["grpc-status"] == 0 and properties.type == "shop.inventory.v1.CheckStockResponse", (properties, body)
    (decision,) = stock_pb2.CheckStockResponse.FromString(body).decisions
    assert decision.order_id == order_id
    return decision


order_id = str(uuid.uuid4())
held = check_stock(2, order_id)
assert not held.HasField("rejection") and held.lines[0].quantity == 2, held
assert check_stock(2, order_id) == held, "a decision stays the same"
refused = check_stock(100000, str(uuid.uuid4()))
assert refused.rejection.reason == order_pb2.OrderRejected.OUT_OF_STOCK, refused

for body, content_type in ((b"\xff", "application/protobuf"), (b"{}", "application/json")):
    properties, failure = call(body, content_type=content_type)
    assert properties.headers["grpc-status"] == 3 and properties.content_type == "application/json", (properties, failure)
    assert json.loads(failure)["code"] == 3, failure
