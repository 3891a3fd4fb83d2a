"""A stand-in for an API server of Kubernetes: over TLS, for bearer tokens, and of the API what raylift and kubectl use.

It keeps what it is given, and refuses what it does not know how an API server would treat. RayJobs and RayClusters
are held to KubeRay's CustomResourceDefinitions, other kinds to the schemas of Kubernetes and to what an API server asks
beyond them (semantics.py).
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.stand_ins.kubernetes import access, certificates, discovery, fields, kinds, protobuf, schemas
from tests.stand_ins.kubernetes.access import Action, User
from tests.stand_ins.kubernetes.calls import Call, RefusedError
from tests.stand_ins.kubernetes.kinds import BUILT_IN, Kind, Object
from tests.stand_ins.kubernetes.store import Store

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[a-z0-9.-]+))/(?P<version>v[a-z0-9]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
)
_QUERY = {
    *("fieldManager", "fieldValidation", "dryRun", "force", "labelSelector", "fieldSelector", "limit", "continue"),
    *("watch", "resourceVersion", "resourceVersionMatch", "timeoutSeconds", "allowWatchBookmarks", "timeout"),
    *("propagationPolicy", "gracePeriodSeconds", "container", "follow", "tailLines", "pretty", "sendInitialEvents"),
}


@dataclass
class Fault:
    """What becomes of the next calls that match, such as "PATCH /apis/ray.io": `count` of them.

    They are answered with `status`, or are done and their answer is lost (`after`), breaks off after so many bytes of
    its body (`cut`), or comes `late`, in seconds.
    """

    call: str
    status: int = 500
    count: int = 1
    after: bool = False
    cut: int | None = None
    late: float = 0.0
    message: str = "injected"
    headers: dict[str, str] = field(default_factory=dict)


class ApiServer:
    """The stand-in, while it stands. `tokens` says who is who; `calls` has every call that came."""

    def __init__(self, folder: Path, *, custom: list[Object] | None = None) -> None:
        self.store = Store()
        definitions = schemas.kuberay_crds() if custom is None else custom
        self.kinds = [*BUILT_IN, *(kinds.custom(each) for each in definitions)]
        self.tokens: dict[str, User] = {"admin-token": User("admin", is_admin=True)}
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        self.actions: set[tuple[str, str, str]] = set()  # verb, group and resource of what came and was allowed
        self.errors: list[str] = []  # in the stand-in itself
        self.logs: dict[str, bytearray] = {}  # by uid of a pod; see _log_of
        self.tells_rules = True  # not all that decide over rights can list them
        self.warnings: Callable[[Kind, Object], list[str]] = lambda _kind, _value: []
        self.on_create: Callable[[Kind, Object], None] = lambda _kind, _value: None  # what webhooks change of an object
        self.admit: Callable[[Kind, Object], str] = lambda _kind, _value: ""  # why an object is refused, if it is
        self.folder = folder
        self.authority = certificates.make(folder)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._http.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority, folder / "key.pem")
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        for namespace in ("default", "kube-system"):
            self.create("Namespace", {"metadata": {"name": namespace}})
        port = {"name": "https", "port": self._http.server_address[1], "protocol": "TCP"}
        itself = {"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [port]}
        self.create("EndpointSlice", {"metadata": {"name": "kubernetes"}, **itself}, "default")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._http.server_address[1]}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        with self.store.lock:
            self.store.lock.notify_all()

    def kubeconfig(self, name: str, token: str, namespace: str = "default") -> Path:
        """Write a kubeconfig with one context, of this name, and return it."""
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def kind(self, name: str) -> Kind:
        return next(kind for kind in self.kinds if kind.name == name)

    # What tests and controllers do without HTTP

    def create(self, kind: str, value: Object, namespace: str = "") -> Object:
        """Put an object into the store, as a controller of the cluster would."""
        metadata = {**value["metadata"]} | ({"namespace": namespace} if namespace else {})
        with self.store.lock:
            return self.store.put(self.kind(kind), {**value, "metadata": metadata}, {})

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        with self.store.lock:
            found = self.store.select(self.kind(kind), namespace, lambda each: each["metadata"]["name"] == name)
        return found[0] if found else None

    def all(self, kind: str, namespace: str | None = None) -> list[Object]:
        with self.store.lock:
            return self.store.select(self.kind(kind), namespace, lambda _: True)

    def change(
        self, kind: str, namespace: str, name: str, change: Callable[[Object], None], manager: str = "controller"
    ) -> None:
        """Change an object in place, as a controller of the cluster would; what it changes is then that one's."""
        with self.store.lock:
            stored = self.store.get(self.kind(kind), namespace, name)
            assert stored is not None, f"there is no {kind} {namespace}/{name}"
            value = json.loads(json.dumps(stored.value))
            change(value)
            owners = {key: set(paths) for key, paths in stored.owners.items()}
            fields.update(stored.value, owners, value, manager)
            self.store.put(stored.kind, value, owners)

    def set_status(self, kind: str, namespace: str, name: str, **status: Any) -> None:
        self.change(
            kind, namespace, name, lambda value: value.__setitem__("status", {**value.get("status", {}), **status})
        )

    def delete(self, kind: str, namespace: str, name: str) -> None:
        with self.store.lock:
            self.store.delete(self.kind(kind), namespace, name)

    def log(self, pod: Object, data: bytes, container: str = "") -> None:
        """Have a pod print something, in its first container or another."""
        with self.store.lock:
            self.logs.setdefault(_log_of(pod, container), bytearray()).extend(data)
            self.store.lock.notify_all()

    def printed(self, pod: Object, container: str = "") -> bytes:
        """Return what a pod has printed, in its first container or another."""
        return bytes(self.logs.get(_log_of(pod, container), b""))


@contextmanager
def api_server(folder: Path, **options: Any) -> Iterator[ApiServer]:
    server = ApiServer(folder, **options)
    try:
        yield server
    finally:
        server.stop()
    assert server.errors == [], "\n".join(server.errors)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, server: ApiServer, *arguments: Any) -> None:
        self.api = server
        self._warned: list[str] = []
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Say nothing: `calls` has it all."""

    def handle(self) -> None:
        with suppress(OSError):  # a client that goes away is no error of ours
            super().handle()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.api.calls.append(f"{self.command} {self.path}")
        fault = self._fault()
        try:
            if fault is not None and fault.late:
                time.sleep(fault.late)
            elif fault is not None and not fault.after and fault.cut is None:
                self._send(RefusedError(fault.status, fault.message).status, fault.status, fault.headers)
                return
            code, answer = self._do(url.path, query, body)
        except RefusedError as refused:
            code, answer = refused.code, refused.status
        except Exception as error:
            self.api.errors.append(traceback.format_exc())
            code, answer = 500, RefusedError(500, f"this stand-in failed: {error!r}").status
        if fault is not None and fault.after:
            self.close_connection = True
            return
        cut = fault.cut if fault is not None else None
        if isinstance(answer, dict):
            self._send(answer, code, {}, cut)
        elif answer is not None:
            self._stream(answer, cut)

    def _fault(self) -> Fault | None:
        with self.api.store.lock:
            for fault in self.api.faults:
                if fault.count and f"{self.command} {self.path}".startswith(fault.call):
                    fault.count -= 1
                    return fault
        return None

    def _send(self, value: Object, code: int, headers: dict[str, str], cut: int | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        for warning in self._warned:
            self.send_header("Warning", f'299 - "{warning}"')
        self._warned = []
        self.end_headers()
        self.wfile.write(data[:cut])
        self.close_connection = self.close_connection or cut is not None

    def _stream(self, chunks: Iterator[bytes], cut: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            if chunk and cut is not None:
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk[:cut])
                self.close_connection = True
                return
            if chunk:
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _do(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Object | Iterator[bytes] | None]:
        user = self._user()
        if self.command == "GET" and (found := discovery.answer(path, self.api.kinds)) is not None:
            return 200, found
        content = self.headers.get("Content-Type", "").partition(";")[0]
        if content == protobuf.TYPE:
            try:
                body = json.dumps(protobuf.read(body)).encode()
            except KeyError as error:
                raise RefusedError(501, f"this stand-in does not know the protobuf of {error}") from error
        elif body and "json" not in content and "yaml" not in content:
            raise RefusedError(415, f"this stand-in reads JSON, YAML and a little protobuf, not {content}")
        if unknown := query.keys() - _QUERY:
            raise RefusedError(501, f"this stand-in does not know the parameters {sorted(unknown)}")
        match = _PATH.fullmatch(path)
        if match is None:
            raise RefusedError(404, "the server could not find the requested resource")
        review = {"selfsubjectaccessreviews": self._review, "selfsubjectrulesreviews": self._rules}.get(match["plural"])
        if review is not None and self.command == "POST":
            return 201, review(user, json.loads(body))
        if (match["plural"], match["sub"], self.command) == ("serviceaccounts", "token", "POST"):
            return 201, self._token(user, match["namespace"], match["name"], json.loads(body))
        kind = next((each for each in self.api.kinds if _is_of(each, match)), None)
        if kind is None or (match["namespace"] and not kind.namespaced):
            raise RefusedError(404, "the server could not find the requested resource")
        place = (match["namespace"], match["name"] or "", match["sub"] or "")
        call = Call(self.api, self.command, content, user, kind, *place, query, body)
        with self.api.store.lock:
            answer = call.answer()
        self._warned = call.warned
        return answer

    def _user(self) -> User:
        if "Authorization" not in self.headers:
            return User("system:anonymous")
        scheme, _, token = self.headers["Authorization"].partition(" ")
        user = self.api.tokens.get(token) if scheme == "Bearer" else None
        if user is None:
            raise RefusedError(401, "Unauthorized")
        return user

    def _review(self, user: User, review: Object) -> Object:
        asked = review["spec"]["resourceAttributes"]
        resource = asked["resource"] + (f"/{asked['subresource']}" if asked.get("subresource") else "")
        action = Action(asked["verb"], asked.get("group", ""), resource, asked.get("namespace") or None)
        with self.api.store.lock:
            return {**review, "status": {"allowed": access.may(self.api.store, user, action)}}

    def _token(self, user: User, namespace: str, account: str, request: Object) -> Object:
        """Make a token of a service account, and return the request with it."""
        action = Action("create", "", "serviceaccounts/token", namespace, account)
        with self.api.store.lock:
            if not access.may(self.api.store, user, action):
                raise RefusedError(403, f'serviceaccounts "{account}" is forbidden: {action.denied(user)}')
            if self.api.get("ServiceAccount", namespace, account) is None:
                raise RefusedError(404, f'serviceaccounts "{account}" not found')
            token = secrets.token_urlsafe(24)
            self.api.tokens[token] = User.service_account(namespace, account)
        lasts = timedelta(seconds=int(request.get("spec", {}).get("expirationSeconds", 3600)))
        expires = (datetime.now(UTC) + lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {**request, "status": {"token": token, "expirationTimestamp": expires}}

    def _rules(self, user: User, review: Object) -> Object:
        with self.api.store.lock:
            rules = access.rules(self.api.store, user, review["spec"]["namespace"]) if self.api.tells_rules else []
        incomplete = not self.api.tells_rules
        return {**review, "status": {"resourceRules": rules, "nonResourceRules": [], "incomplete": incomplete}}


def _is_of(kind: Kind, match: re.Match[str]) -> bool:
    return (kind.group, kind.version, kind.plural) == (match["group"] or "", match["version"], match["plural"])


def _log_of(pod: Object, container: str) -> str:
    """Return under which key is what a container of a pod has printed."""
    first = pod["spec"]["containers"][0]["name"]
    return str(pod["metadata"]["uid"]) + (f"/{container}" if container not in ("", first) else "")
