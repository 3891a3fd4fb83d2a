"""The part of Ray's command line that KubeRay uses, without Ray: nodes that do nothing, and jobs that are a process.

It takes the place of `ray` where a test is about the operator, and Ray itself would take half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TOKEN = os.environ.get("RAY_AUTH_TOKEN", "")


class _Dashboard(BaseHTTPRequestHandler):
    jobs: dict[str, subprocess.Popen[bytes]] = {}  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/api/gcs_healthz":
            self._answer(200, "success")
        elif self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            self._answer(401, "no token")
        elif self.path == "/api/jobs/":
            self._answer(
                200, json.dumps([{"submission_id": name, **self._info(job)} for name, job in self.jobs.items()])
            )
        elif (job := self.jobs.get(self.path.split("/")[3])) is None:
            self._answer(404, "no such job")
        elif self.path.endswith("/stop"):
            job.kill()
            self._answer(200, "")
        elif self.path.endswith("/logs"):
            with open(f"job-{self.path.split('/')[3]}.log") as log:
                self._answer(200, log.read())
        else:
            self._answer(200, json.dumps(self._info(job)))

    def _info(self, job: subprocess.Popen[bytes]) -> dict[str, Any]:
        code = job.poll()
        status = "RUNNING" if code is None else "FAILED" if code else "SUCCEEDED"
        return {"status": status, "message": f"exit code {code}"}

    def do_POST(self) -> None:
        if self.path != "/api/jobs/":
            self.do_GET()
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["submission_id"]
        with open(f"job-{name}.log", "wb") as log:
            self.jobs[name] = subprocess.Popen(asked["entrypoint"], shell=True, stdout=log, stderr=log)
        self._answer(200, "")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


def start(options: dict[str, str]) -> None:
    if "head" in options:
        server = ThreadingHTTPServer(("127.0.0.1", int(options["dashboard-port"])), _Dashboard)
        gcs = ThreadingHTTPServer(("127.0.0.1", int(options["port"])), _Dashboard)
        threading.Thread(target=gcs.serve_forever, daemon=True).start()
        server.serve_forever()
    print("Ray runtime started.", flush=True)
    lost = 0
    while lost < 5:  # a node ends once it has missed its head for a while
        time.sleep(0.2)
        try:
            urllib.request.urlopen(f"http://{options['address']}/api/gcs_healthz", timeout=2).close()
            lost = 0
        except OSError:
            lost += 1
    sys.exit("the head is gone")


def job(command: str, words: list[str]) -> None:
    address = words[words.index("--address") + 1]
    if command == "submit":
        name = words[words.index("--submission-id") + 1]
        entrypoint = subprocess.list2cmdline(words[words.index("--") + 1 :])
        ask(f"{address}/api/jobs/", {"submission_id": name, "entrypoint": entrypoint})
        return
    name = words[-1]
    shown = 0
    while True:
        over = command == "status" or json.loads(ask(f"{address}/api/jobs/{name}"))["status"] != "RUNNING"
        if command == "logs":
            text = ask(f"{address}/api/jobs/{name}/logs")
            print(text[shown:], end="", flush=True)
            shown = len(text)
        else:
            ask(f"{address}/api/jobs/{name}")
        if over or (command == "logs" and os.environ.get("LITTLE_RAY_HANGS_UP")):  # as Ray does where a proxy closes it
            return
        time.sleep(0.1)


def ask(url: str, body: Any = None) -> str:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {_TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        text: str = reply.read().decode()
        return text


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    if first == "start":
        start(dict(word.removeprefix("--").partition("=")[::2] for word in rest))
    elif first == "job":
        job(rest[0], rest[1:])
