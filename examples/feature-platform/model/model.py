"""Model: scores an entity with the features that retrieval returns. Plain
HTTP; it knows nothing of TLS.

    python3 model.py --listen 127.0.0.1:8080 --retrieval http://retrieval:8080

GET /predict?entity=user-7
"""

import argparse
import http.client
import json
import math
import signal
import socket
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WEIGHTS = {"count": 0.02, "mean": 0.01, "max": 0.005}
BIAS = -1.0


class Retrieval:
    """A kept-alive connection for each thread."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url)
        self.local = threading.local()

    def vector(self, entity):
        for attempt in (1, 2):
            connection = getattr(self.local, "connection", None)
            fresh = connection is None
            if fresh:
                connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=5)
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.local.connection = connection
            try:
                connection.request("GET", "/v1/vector?entity=" + urllib.parse.quote(entity))
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    raise OSError(f"retrieval: status {response.status}")
                return json.loads(body)
            except (OSError, http.client.HTTPException):
                connection.close()
                self.local.connection = None
                if fresh or attempt == 2:
                    raise
        raise OSError("unreachable")


def score(vector):
    z = BIAS + sum(WEIGHTS[name] * vector.get(name, 0.0) for name in WEIGHTS)
    return 1 / (1 + math.exp(-z))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:8080")
    parser.add_argument("--retrieval", required=True)
    options = parser.parse_args()
    retrieval = Retrieval(options.retrieval)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            try:
                if url.path == "/healthz":
                    self.answer(200, {"ok": True})
                elif url.path == "/predict":
                    entity = urllib.parse.parse_qs(url.query).get("entity", [""])[0]
                    self.answer(200, {"entity": entity, "score": score(retrieval.vector(entity))})
                else:
                    self.answer(404, {"error": "try /predict?entity=user-7"})
            except (OSError, http.client.HTTPException) as error:
                self.answer(502, {"error": str(error)})

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    host, port = options.listen.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


main()
