"""A small web server: eight threads share one session, a governor limits the latency, Prometheus reads counters.

python docs/examples/serve.py model.dyce --p95-ms 20
curl --data-binary @picture.jpg localhost:8000/classify
curl localhost:8000/metrics
"""

from __future__ import annotations

import argparse
import io
import json
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from PIL import Image, UnidentifiedImageError

import dyce_runtime
from dyce_runtime.control.governor import LatencyGovernor
from dyce_runtime.monitoring.observation import Observation

THREADS = 8
MOST_BYTES = 32 << 20


class Server(HTTPServer):
    """Hands every request to a pool of threads that all call the same session."""

    def __init__(self, address: tuple[str, int], session: dyce_runtime.Session) -> None:
        super().__init__(address, Handler)
        self.session = session
        self.observation = Observation(session)
        session.attach(self.observation)
        self._pool = ThreadPoolExecutor(THREADS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Queue a connection; called by ``serve_forever``."""
        self._pool.submit(self._answer, request, client_address)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # one failing request must not end the server
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Close the server after the accepted requests have been answered."""
        super().server_close()
        self._pool.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Answers POST /classify with an image in the body, and GET /metrics."""

    server: Server

    def do_POST(self) -> None:
        """Classify the image in the body."""
        size = int(self.headers.get("Content-Length", 0))
        if self.path != "/classify" or not 0 < size <= MOST_BYTES:
            self.send_error(404 if self.path != "/classify" else 413)
            return
        session = self.server.session
        try:
            picture = Image.open(io.BytesIO(self.rfile.read(size))).convert("RGB")
        except (UnidentifiedImageError, OSError):
            self.send_error(415, "not a picture")
            return
        result = session(session.preprocess(picture))
        label = int(result.label[0])
        names = session.manifest.model.class_names
        document = {
            "label": label,
            "class": names[label] if names else None,
            "confidence": float(result.confidence[0]),
            "exit": session.manifest.exits[int(result.exit[0])].id,
            "configuration": result.configuration.name,
        }
        self._send("application/json", json.dumps(document))

    def do_GET(self) -> None:
        """Send the counters."""
        if self.path != "/metrics":
            self.send_error(404)
            return
        self._send("text/plain; version=0.0.4", self.server.observation.prometheus())

    def _send(self, type: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing per request; the counters suffice."""


def main() -> None:
    """Load the bundle and serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--p95-ms", type=float, help="let a governor keep 95 %% of the calls below that")
    arguments = parser.parse_args()
    # One thread per call: eight concurrent callers keep the cores busy without waiting for each other.
    with dyce_runtime.load(arguments.bundle, threads=1) as session:
        governor = LatencyGovernor(session, p95_ms=arguments.p95_ms) if arguments.p95_ms else None
        server = Server(("", arguments.port), session)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
            if governor:
                governor.close()


if __name__ == "__main__":
    main()
