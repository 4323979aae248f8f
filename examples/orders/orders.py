"""A small app as anybody would write one: it serves HTTP on 127.0.0.1 and calls other apps with
Dapr's own Python SDK, unmodified. It knows nothing of Weft.

Usage: orders.py <name> <port>. Routes:
  GET /echo?id=<id>              who I am, who the caller is by its header, and the id
  GET /call?app=<app-id>&id=<id> calls /echo of another app and passes its reply on
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from dapr.clients import DaprClient

NAME, PORT = sys.argv[1], int(sys.argv[2])
LOCAL = threading.local()


def client() -> DaprClient:
    """One SDK client per thread: making one costs two health checks."""
    if not hasattr(LOCAL, "dapr"):
        LOCAL.dapr = DaprClient()
    return LOCAL.dapr


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body leave in one segment; two would wait for each other's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        if url.path == "/echo":
            self.reply(200, self.echo(query.get("id", "")))
        elif url.path == "/call":
            self.reply(*self.call(query.get("app", ""), query.get("id", "")))
        else:
            self.reply(404, {"error": "no such route"})

    def echo(self, id_):
        return {
            "app": NAME,
            "id": id_,
            "caller": self.headers.get("dapr-caller-app-id", ""),
            "callerNamespace": self.headers.get("dapr-caller-namespace", ""),
            "callee": self.headers.get("dapr-callee-app-id", ""),
            "traceparent": self.headers.get("traceparent", ""),
        }

    def call(self, app, id_):
        try:
            answer = client().invoke_method(
                app, "echo", data=b"", http_verb="GET", http_querystring=(("id", id_),)
            )
            return 200, {"app": NAME, "reply": json.loads(answer.data)}
        except Exception as error:  # the SDK raises its own types for HTTP errors
            return 502, {"app": NAME, "error": f"{type(error).__name__}: {error}"}

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
