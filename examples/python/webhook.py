"""Registers itself as a webhook for the events of orders, asks for a test event, and prints what comes and is verified:
the first ones (webhook.py 3) or all, until Ctrl-C."""

import http.server
import json
import os
import sys
import threading
import urllib.request

from standardwebhooks import Webhook, WebhookVerificationError

SHOP = os.environ.get("SHOP_URL", "http://localhost:3000")
if not os.environ.get("SHOP_OPERATOR_TOKEN"):
    sys.exit("set SHOP_OPERATOR_TOKEN to the operator token, which make up prints")


def call(method, path, body=None):
    request = urllib.request.Request(SHOP + path, None if body is None else json.dumps(body).encode(), method=method)
    request.add_header("Authorization", "Bearer " + os.environ["SHOP_OPERATOR_TOKEN"])
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            event = Webhook(secret).verify(body, dict(self.headers))
        except WebhookVerificationError as error:
            self.send_error(400, str(error))
            return
        print(event["type"], self.headers["webhook-id"], event["data"].get("order_id", ""), flush=True)
        self.send_response(204)
        self.end_headers()
        received.release()

    def log_message(self, *_):
        pass


received = threading.Semaphore(0)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
created = call("POST", "/v1/webhooks", {"url": f"http://127.0.0.1:{server.server_port}", "event_types": ["shop.order.#"]})
secret = created["secret"]  # it is shown this once
threading.Thread(target=server.serve_forever, daemon=True).start()

webhook = "/v1/webhooks/" + created["webhook"]["id"]
try:
    if not call("POST", webhook + ":test", {})["delivered"]:
        sys.exit("the test event was not delivered")
    print("listening", flush=True)
    left = int(sys.argv[1]) if len(sys.argv) > 1 else -1
    while left != 0:
        received.acquire()
        left -= 1
finally:
    call("DELETE", webhook)
