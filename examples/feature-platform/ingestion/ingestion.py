"""Ingestion: produces events, hands them to the feature store and asks the
model for a prediction. Plain HTTP; it knows nothing of TLS.

    python3 ingestion.py --listen 127.0.0.1:8080 --featurestore http://featurestore:8080 --model http://model:8080

GET /stats tells how many requests went well and which failed.
"""

import argparse
import http.client
import json
import random
import signal
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITIES = 50


class Stats:
    def __init__(self):
        self.lock = threading.Lock()
        self.ok = {"featurestore": 0, "model": 0}
        self.failed = {"featurestore": 0, "model": 0}
        self.last_error = ""

    def add(self, target, error=None):
        with self.lock:
            if error is None:
                self.ok[target] += 1
            else:
                self.failed[target] += 1
                self.last_error = f"{target}: {error}"

    def read(self):
        with self.lock:
            return {"ok": dict(self.ok), "failed": dict(self.failed), "lastError": self.last_error}


class Client:
    """One kept-alive connection; opened anew after an error."""

    def __init__(self, name, url, stats):
        self.name, self.stats = name, stats
        self.address = urllib.parse.urlsplit(url)
        self.connection = None

    def call(self, method, path, body=None):
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=5)
            headers = {"Content-Type": "application/json"} if body else {}
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            payload = response.read()
            if response.status >= 300:
                raise OSError(f"status {response.status}: {payload[:200]!r}")
            self.stats.add(self.name)
            return payload
        except (OSError, http.client.HTTPException) as error:
            self.stats.add(self.name, error)
            if self.connection is not None:
                self.connection.close()
                self.connection = None
            return None


def produce(options, stats, stop):
    store = Client("featurestore", options.featurestore, stats)
    model = Client("model", options.model, stats)
    while not stop.is_set():
        entity = random.randrange(ENTITIES)
        event = {"entity": f"user-{entity}", "amount": round(random.expovariate(0.05), 2), "at": time.time()}
        store.call("POST", "/v1/events", json.dumps(event))
        model.call("GET", f"/predict?entity=user-{entity}")
        stop.wait(1 / options.rate)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:8080")
    parser.add_argument("--featurestore", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, default=20, help="events per second")
    options = parser.parse_args()
    stats, stop = Stats(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = json.dumps(stats.read()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    host, port = options.listen.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    server.daemon_threads = True
    producer = threading.Thread(target=produce, args=(options, stats, stop))

    def end(*_):
        stop.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    producer.start()
    server.serve_forever()
    producer.join()


main()
