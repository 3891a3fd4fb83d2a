"""A TCP proxy that does to requests what networks and busy servers do."""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["busy", "lose-reply", "cut-reply", "cut-request", "flip-request"]
_CUT_AFTER = 20_000
_ON_THE_WAY = 64 << 10  # bytes
_SEGMENT = 1400  # bytes
_CONTINUE = b"HTTP/1.1 100"
_HEAD = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE) .*?\r\n\r\n", re.DOTALL)


class Proxy:
    """Stands before a server of this machine; every new connection meets the next of `faults`, if any is left.

    More of them may be added while it stands.

    busy: the request is answered with 503 and never reaches the server. lose-reply: the server does what was
    asked, and its reply is lost. cut-reply: the reply breaks off after 20 kB; cut-request: the request does.
    flip-request: one byte of the request, 20 kB from its start, arrives as another.
    A request that holds `reject`, which may be changed, is answered with `refusal`, a status and a body. Every 64 kB
    of a request take `delay` seconds, which may be changed. `heads` has the head of every request that came. `outage`
    makes the server "silent" (it refuses connections) or "busy" (503 to all) until it is None again; `cut` ends all
    connections that stand. `before` is told the number of every request, from 1 on, and may take it away by returning
    True: then its connection ends. `hold` is told the head of every request, and says for how many seconds it alone is
    held up. `listener` is where to stand, if not on a free port of this machine.
    """

    def __init__(
        self,
        port: int,
        *faults: Fault,
        reject: bytes | None = None,
        refusal: tuple[int, str] | None = None,
        delay: float = 0.0,
        listener: socket.socket | None = None,
    ) -> None:
        self._target = port
        self.faults = list(faults)
        self.reject = reject
        self._refusal = refusal or (400, _s3_error("InvalidRequest"))
        self.delay = delay
        self.heads: list[str] = []
        self.outage: Literal["silent", "busy"] | None = None
        self.before: Callable[[int], bool] | None = None
        self.hold: Callable[[str], float] | None = None
        self._counter, self._counting = itertools.count(1), threading.Lock()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.connections = 0
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    @property
    def endpoint(self) -> str:
        address, port = self._listener.getsockname()
        return f"http://{address}:{port}"

    def cut(self) -> None:
        """End all connections that stand, whatever is on its way."""
        for one in list(self._sockets):
            _end(one)

    def close(self) -> None:
        _end(self._listener)
        self._server.join()  # a client that it has just let in is among the sockets then
        self._listener.close()
        self.cut()
        for one in self._sockets:
            one.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self.connections += 1
                if self.outage == "silent":
                    client.close()
                    continue
                fault = "busy" if self.outage == "busy" else self.faults.pop(0) if self.faults else None
                upstream = socket.create_connection(("127.0.0.1", self._target))
                self._sockets.append(upstream)
                if fault == "busy":
                    threading.Thread(target=_refuse, args=(client, 503, _s3_error("SlowDown")), daemon=True).start()
                    continue
                threading.Thread(target=self._send, args=(client, upstream, fault), daemon=True).start()
                threading.Thread(target=_reply, args=(client, upstream, fault), daemon=True).start()

    def _send(self, client: socket.socket, upstream: socket.socket, fault: Fault | None) -> None:
        sent = 0
        with suppress(OSError):
            while data := client.recv(65536):
                if head := _HEAD.match(data):
                    self.heads.append(text := head[0].decode())
                    with self._counting:
                        if self.before is not None and self.before(next(self._counter)):
                            break
                    if self.hold is not None:
                        time.sleep(self.hold(text))
                if self.reject is not None and self.reject in data:
                    _refuse(client, *self._refusal)
                    return
                time.sleep(self.delay)
                at = _CUT_AFTER - sent
                if fault == "cut-request" and at < len(data):
                    upstream.sendall(data[:at])
                    break
                if fault == "flip-request" and 0 <= at < len(data):
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                upstream.sendall(data)
                sent += len(data)
        if fault == "cut-request":
            _end(client)
        _end(upstream)


def _reply(client: socket.socket, upstream: socket.socket, fault: Fault | None) -> None:
    sent = 0
    with suppress(OSError):
        while data := upstream.recv(65536):
            if fault == "lose-reply" and not data.startswith(_CONTINUE):
                break
            if fault == "cut-reply" and sent + len(data) > _CUT_AFTER:
                client.sendall(data[: _CUT_AFTER - sent])
                break
            client.sendall(data)
            sent += len(data)
    _end(client)
    _end(upstream)


def _s3_error(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>"


def _refuse(client: socket.socket, status: int, body: str) -> None:
    kind = "application/xml" if body.startswith("<") else "application/json"
    head = f"HTTP/1.1 {status} No\r\nContent-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n"
    with suppress(OSError):
        client.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):  # a reset would take the answer away
            pass


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def narrow_listener() -> socket.socket:
    """Return a socket of this machine, to stand on, whose connections hold no more on the way than a real link's.

    Those of the loopback hold some megabytes, which who sends takes for sent.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ON_THE_WAY)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@contextmanager
def proxy(
    port: int,
    *faults: Fault,
    reject: bytes | None = None,
    refusal: tuple[int, str] | None = None,
    delay: float = 0.0,
    listener: socket.socket | None = None,
) -> Iterator[Proxy]:
    """Start a proxy for the length of the block."""
    standing = Proxy(port, *faults, reject=reject, refusal=refusal, delay=delay, listener=listener)
    try:
        yield standing
    finally:
        standing.close()
