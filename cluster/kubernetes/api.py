"""Calls to an API server, through the official client: retried where that is safe, and refused in words.

Every call here may be made twice: reads, deletions, and server-side applies, which give the same object again.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import InfrastructureError, MissingExtraError

Object = dict[str, Any]

_TRIES = 6
_TIMEOUT = (5.0, 30.0)  # seconds to connect, and for an answer
_LONGEST = 20.0  # seconds between two tries
_BUSY = (429, 500, 502, 503, 504)
# An apply that does not fit its kind, which API servers answer with 500: https://github.com/kubernetes/kubernetes/issues/139253
_NOT_OF_ITS_KIND = "failed to create typed patch object"
_PAUSE = 0.2  # seconds between two watches
_PAGE = 500  # objects of a list that come at once
_WATCH = 240  # seconds that a watch is asked to last; it is then taken up again


class ApiError(InfrastructureError):
    """The API server refused a call."""

    def __init__(self, message: str, *, status: int, reason: str, details: str) -> None:
        super().__init__(message)
        self.status = status  # of HTTP; 0 where there was no answer
        self.reason = reason  # one of Kubernetes' own words: NotFound, Forbidden, Conflict, Invalid, …
        self.details = details  # what the API server said


class GoneError(Exception):
    """A watch can no longer go on from where it was: the API server has forgotten what came after."""


@dataclass(frozen=True)
class Kind:
    """A kind of object, as paths and roles name it."""

    group: str
    version: str
    plural: str

    @property
    def name(self) -> str:
        """The name by which roles and kubectl know it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None, name: str = "") -> str:
        """Return where objects of it are: in one namespace, or in all."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if namespace is not None else ""
        return f"{root}{inside}/{self.plural}{f'/{name}' if name else ''}"


RAY_JOBS = Kind("ray.io", "v1", "rayjobs")
RAY_CLUSTERS = Kind("ray.io", "v1", "rayclusters")
JOBS = Kind("batch", "v1", "jobs")
PODS = Kind("", "v1", "pods")
SERVICES = Kind("", "v1", "services")
SECRETS = Kind("", "v1", "secrets")
CONFIG_MAPS = Kind("", "v1", "configmaps")
EVENTS = Kind("", "v1", "events")
CLAIMS = Kind("", "v1", "persistentvolumeclaims")
ACCOUNTS = Kind("", "v1", "serviceaccounts")
ROLES = Kind("rbac.authorization.k8s.io", "v1", "roles")
BINDINGS = Kind("rbac.authorization.k8s.io", "v1", "rolebindings")
POLICIES = Kind("networking.k8s.io", "v1", "networkpolicies")
WORKLOADS = Kind("kueue.x-k8s.io", "v1beta2", "workloads")
_REVIEWS = Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews")
_RULES = Kind("authorization.k8s.io", "v1", "selfsubjectrulesreviews")


class Api:
    """One API server, as one person."""

    def __init__(self, context: str | None) -> None:
        """Read the kubeconfig, or what a pod is given, and log in. Raises InfrastructureError, MissingExtraError."""
        self.context = context
        self._client = _connect(context)

    @property
    def host(self) -> str:
        return str(self._client.configuration.host)

    def get(self, path: str, **query: Any) -> Object:
        """Return an object or a list. Raises ApiError."""
        return _parsed(self._call("GET", path, query))

    def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object; None where there is none of this name. Raises ApiError, also where the kind is unknown."""
        try:
            return self.get(kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404 and error.reason == "NotFound" and f'"{name}" not found' in error.details:
                return None
            raise

    def select(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        """Return the objects that labels and fields select, over all pages. Raises ApiError."""
        try:
            return list(self._items(kind, namespace, labels, fields, limit=_PAGE))
        except ApiError as error:
            if error.status != 410:
                raise
            return list(self._items(kind, namespace, labels, fields, limit=0))  # pages were too slow: all at once

    def apply(self, kind: Kind, document: Mapping[str, Any], manager: str, *, dry_run: bool = False) -> Object:
        """Apply a document on the server's side, and return the object. Raises ApiError, of 409 where others own it."""
        metadata = document["metadata"]
        query = {"fieldManager": manager, "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        path = kind.path(metadata["namespace"], metadata["name"])
        return _parsed(self._call("PATCH", path, query, body=document, content="application/apply-patch+yaml"))

    def annotate(self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str], manager: str) -> Object:
        """Set annotations of an object that is there, and return it. Raises ApiError, of 404 where there is none."""
        body = {"metadata": {"annotations": dict(annotations)}}
        query, content = {"fieldManager": manager}, "application/merge-patch+json"
        return _parsed(self._call("PATCH", kind.path(namespace, name), query, body=body, content=content))

    def delete(
        self, kind: Kind, namespace: str, name: str, *, uid: str | None = None, version: str | None = None
    ) -> bool:
        """Have an object deleted, and what it owns after it; False where there is none.

        With a `uid` that alone is meant, with a `version` as it was then. Raises ApiError, of 409 where another has its
        name by now, or somebody has changed it.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if wanted := {key: each for key, each in (("uid", uid), ("resourceVersion", version)) if each is not None}:
            options["preconditions"] = wanted
        try:
            self._call("DELETE", kind.path(namespace, name), {}, body=options)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def may(self, verb: str, kind: Kind, namespace: str, subresource: str = "") -> bool:
        """Whether this person may do that. Raises ApiError."""
        asked = {"verb": verb, "group": kind.group, "resource": kind.plural, "namespace": namespace}
        asked |= {"subresource": subresource} if subresource else {}
        answer = self._review("SelfSubjectAccessReview", _REVIEWS, {"resourceAttributes": asked})
        return bool(answer["status"]["allowed"])

    def rules(self, namespace: str) -> list[Object]:
        """Return what this person may do in a namespace, as far as the server can list it. Raises ApiError."""
        answer = self._review("SelfSubjectRulesReview", _RULES, {"namespace": namespace})
        found: list[Object] = answer["status"]["resourceRules"]
        return found

    def _review(self, name: str, kind: Kind, spec: Object) -> Object:
        review = {"apiVersion": f"{kind.group}/{kind.version}", "kind": name, "spec": spec}
        return _parsed(self._call("POST", kind.path(None), {}, body=review))

    def watch(self, kind: Kind, namespace: str, labels: str) -> Iterator[tuple[str, Object]]:
        """Yield ("ADDED", "MODIFIED" or "DELETED", object), first all that are there, for as long as one likes.

        A watch that ends is taken up where it was. Where the server no longer knows that, all objects come again, and
        those that went meanwhile as DELETED. Raises ApiError.
        """
        known: dict[str, Object] = {}
        while True:
            listed = self.get(kind.path(namespace), labelSelector=labels)
            there = {each["metadata"]["uid"]: each for each in listed["items"]}
            for uid in known.keys() - there.keys():
                yield "DELETED", known.pop(uid)
            for uid, each in there.items():
                if known.get(uid, {}).get("metadata", {}).get("resourceVersion") != each["metadata"]["resourceVersion"]:
                    yield "MODIFIED" if uid in known else "ADDED", each
                known[uid] = each
            version = listed["metadata"]["resourceVersion"]
            try:
                while True:
                    for change, each in self._changes(kind.path(namespace), labels, version):
                        version = each["metadata"]["resourceVersion"]
                        if change == "BOOKMARK":
                            continue
                        uid = each["metadata"]["uid"]
                        if change == "DELETED":
                            known.pop(uid, None)
                        else:
                            known[uid] = each
                        yield change, each
                    time.sleep(_PAUSE)
            except GoneError:
                time.sleep(_PAUSE)

    def read(self, path: str, **query: Any) -> bytes:
        """Return what a server has at a path, all of it. Raises ApiError."""
        found: bytes = self._call("GET", path, query).read()
        return found

    def lines(self, path: str, **query: Any) -> Iterator[bytes]:
        """Yield what a server streams, as it comes; ends quietly where the connection does. Raises ApiError."""
        from urllib3.exceptions import HTTPError

        response = self._call("GET", path, query, stream=True)
        try:
            yield from response.response.stream(2**16, decode_content=True)
        except HTTPError:
            return
        finally:
            response.response.close()

    def _items(self, kind: Kind, namespace: str | None, labels: str, fields: str, *, limit: int) -> Iterator[Object]:
        query: dict[str, Any] = {"limit": limit}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        while True:
            page = self.get(kind.path(namespace), **query)
            yield from page["items"]
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    def _changes(self, path: str, labels: str, version: str) -> Iterator[tuple[str, Object]]:
        """Yield what changed after a version, until server or connection end it. Raises GoneError, ApiError."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": _WATCH}
        rest = b""
        try:
            for chunk in self.lines(path, labelSelector=labels, resourceVersion=version, **query):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    change = json.loads(line)
                    if change["type"] == "ERROR":  # mostly that it is too late for this; a list says what it is else
                        raise GoneError(change["object"].get("message", ""))
                    yield change["type"], change["object"]
        except ApiError as error:
            if error.status == 410:
                raise GoneError from error
            raise

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        *,
        body: Any = None,
        content: str = "application/json",
        stream: bool = False,
    ) -> Any:
        """Make a call until it is answered; a server that is busy, or away for a moment, is asked again."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json"} | ({"Content-Type": content} if body is not None else {})
        timeout = (_TIMEOUT[0], _WATCH + _TIMEOUT[1]) if stream else _TIMEOUT
        renewed = False
        for attempt in range(1, _TRIES + 1):
            wait = min(_LONGEST, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                request = self._client.param_serialize(
                    method,
                    path,
                    query_params=list(query.items()),
                    header_params=dict(headers),
                    body=body,
                    auth_settings=["BearerToken"],
                )
                response = self._client.call_api(*request, _request_timeout=timeout)
                if not stream or response.status >= 300:
                    response.read()  # a reply that breaks off here is lost as one that never came
            except (HTTPError, ApiException) as error:  # the latter is the client's word for what is wrong with TLS
                failure = _unanswered(self, error)
            else:
                if response.status < 300:
                    return response
                failure = _refused(self, method, path, response.status, response.read())
                if response.status == 401 and not renewed and attempt < _TRIES:
                    self._client = _connect(self.context)  # a token may have run out; a login that renews it does so
                    renewed = True
                    continue
                if response.status not in _BUSY or _NOT_OF_ITS_KIND in failure.details:
                    raise failure
                asked = response.getheaders().get("Retry-After") or ""
                wait = max(wait, min(_LONGEST, float(asked) if asked.isdigit() else 0.0))
            if attempt == _TRIES:
                raise failure
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _connect(context: str | None) -> Any:
    try:
        from kubernetes import client, config
        from yaml import YAMLError
    except ImportError as error:
        raise MissingExtraError("provider: kubernetes needs an extra: pip install 'raylift[kubernetes]'") from error
    configuration = client.Configuration()
    configuration.retries = False  # tries are counted here
    try:
        # named here, as the client reads the variable when it is imported
        files = os.environ.get("KUBECONFIG") or "~/.kube/config"
        config.load_kube_config(files, context=context, client_configuration=configuration)
        if configuration.cert_file is None and "BearerToken" not in configuration.api_key:
            _refuse_failed_login(files, context)
    except (YAMLError, ValueError, TypeError, AttributeError, PermissionError, IsADirectoryError) as error:
        raise InfrastructureError(
            f"{files} does not read as a kubeconfig: {_innermost(error)}. Have it written anew, such as by aws eks "
            "update-kubeconfig or gcloud container clusters get-credentials; KUBECONFIG names the file"
        ) from error
    except config.ConfigException as error:
        try:
            if context is not None:
                raise
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            named = f"context {context}: " if context is not None else ""
            raise InfrastructureError(
                f"{named}{error}. Look what there is: kubectl config get-contexts; KUBECONFIG names the file"
            ) from error
    return client.ApiClient(configuration)


def _refuse_failed_login(files: str, context: str | None) -> None:
    """Raise ApiError where a plugin was to log in: of a failed one the client goes on as nobody, and logs why."""
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    merged = KubeConfigMerger(files).config
    chosen = KubeConfigLoader(merged, active_context=context).current_context
    name = chosen["context"].get("user")
    users = {each["name"]: each.safe_get("user") for each in merged.value["users"]}
    if name is None:
        return
    if name not in users:
        raise InfrastructureError(
            f"context {chosen['name']} logs in as {name}, and the kubeconfig has no such user: kubectl config view"
        )
    user = users[name] or {}
    if "exec" not in user:
        return
    plugin = user["exec"]["command"]
    raise ApiError(
        f"context {chosen['name']}: {plugin} does not log you in: your login has run out, or it is not installed. Log "
        "in again, such as by aws sso login or gcloud auth login",
        status=401,
        reason="Unauthorized",
        details=f"{plugin} gave neither a token nor a certificate",
    )


def _parsed(response: Any) -> Object:
    parsed: Object = json.loads(response.read())
    return parsed


def _unanswered(api: Api, error: Exception) -> ApiError:
    return ApiError(
        f"{api.host} does not answer: {_innermost(error)}. Is it the right cluster? kubectl config current-context",
        status=0,
        reason="Unreachable",
        details=str(error),
    )


def _innermost(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    return text.rpartition(">: ")[2] or text


def _refused(api: Api, method: str, path: str, status: int, body: bytes) -> ApiError:
    """Return an answer that is no success as an error that says what to do."""
    try:
        answer = json.loads(body)
        reason, details = str(answer.get("reason", "")), str(answer.get("message", ""))
    except (ValueError, AttributeError):
        reason, details = "", body.decode(errors="replace").strip()[:300]
    return ApiError(_in_words(api, status, details, f"{method} {path}"), status=status, reason=reason, details=details)


def _in_words(api: Api, status: int, details: str, call: str) -> str:
    if status == 401:
        return f"{api.host} does not know who you are, or your login has run out: {details}. Log in again"
    if "status unknown for quota" in details:
        return (
            f"the quota of the namespace is not worked out yet, as it or its kinds are new: {details}. Try again later"
        )
    if "exceeded quota" in details:
        over = ". Runs that are over count until raylift rm" if "count/rayjobs" in details else ""
        return f"the quota of the namespace is used up: {details}. See it: kubectl describe resourcequota{over}"
    if "kueue managed job" in details and "autoscaling" in details:
        return (
            f"Kueue does not take it: {details}. A range of workers or nodes in a queue takes its feature gate "
            "ElasticJobsViaWorkloadSlices, which an administrator turns on. Else give one number, or no queue"
        )
    if "admission webhook" in details or "violates PodSecurity" in details:
        return f"the cluster's own rules refuse it: {details}. What is applied: raylift plan JOB --on … --yaml"
    if "failed calling webhook" in details:
        return f"the cluster's own rules cannot be asked, for a webhook of it does not answer: {details}"
    if "because it is being terminated" in details:
        return f"the namespace is being deleted: {details}. kubectl get namespace says what it waits for"
    if status == 403:
        return f"you may not do that: {details}. k8s/base/role.yaml has a Role with what is needed"
    if status == 404 and details.startswith("namespaces "):
        return f"{details}: cluster.namespace names it. kubectl apply -k k8s/base makes raylift's own"
    if status == 404 and ("could not find the requested resource" in details or details == "404 page not found"):
        return f"{api.host} knows no {call.split('/')[-1].partition('?')[0]}: is KubeRay installed? ({call})"
    if _NOT_OF_ITS_KIND in details:
        return (
            "the KubeRay that is installed does not take it: it is too old, or cluster.overrides or "
            f"cluster.pod_template has a mistake: {details}"
        )
    return f"{api.host} answered {status} to {call}: {details}"
