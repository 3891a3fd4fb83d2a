"""The metadata services of AWS and Google, as far as they tell that a machine will be taken away."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def in_seconds(seconds: float) -> str:
    """Return the time in so many seconds, as AWS writes it."""
    return f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


class Metadata:
    """Both services at one address; they insist on their headers."""

    def __init__(self) -> None:
        self.preempted = False
        self.time: str | None = None  # when AWS takes the machine away, as it writes that; None: in two minutes
        self.failures = 0
        self.broken = 0  # answers that are none
        self.tokens: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                if self.path != "/latest/api/token" or not self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
                    return self.answer(400)
                outer.tokens.add(f"token-{len(outer.tokens)}")
                return self.answer(200, sorted(outer.tokens)[-1])

            def do_GET(self) -> None:
                if outer.broken:
                    outer.broken -= 1
                    self.wfile.write(b"no HTTP\r\n\r\n")
                    self.close_connection = True
                    return None
                if outer.failures:
                    outer.failures -= 1
                    return self.answer(503)
                if self.path == "/latest/meta-data/spot/instance-action":
                    if self.headers["X-aws-ec2-metadata-token"] not in outer.tokens:
                        return self.answer(401)
                    action = '{"action": "terminate", "time": "%s"}' % (outer.time or in_seconds(120))
                    return self.answer(200, action) if outer.preempted else self.answer(404)
                if self.path == "/computeMetadata/v1/instance/preempted":
                    if self.headers["Metadata-Flavor"] != "Google":
                        return self.answer(403)
                    return self.answer(200, "TRUE" if outer.preempted else "FALSE")
                return self.answer(404)

            def answer(self, status: int, body: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def env(self, cloud: str) -> dict[str, str]:
        """Return what has processes take this for the service of their cloud."""
        return {
            "RAYLIFT_CLOUD": cloud,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.address}/",
            "GCE_METADATA_HOST": self.address,
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
