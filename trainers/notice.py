"""The notice that a machine will be taken away: a signal, or the word of its cloud or of its Ray cluster.

AWS says so two minutes before (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html),
Google half a minute (https://cloud.google.com/compute/docs/instances/preemptible).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

CLOUD = "RAYLIFT_CLOUD"  # aws or gcp: whose machine this is
JOINED = "RAYLIFT_JOINED_RAY"  # set where the Ray cluster is not this run's alone
_AWS = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
_GCP = ("GCE_METADATA_HOST", "metadata.google.internal")
_POLL = 5.0  # seconds
_TIMEOUT = 2.0
_given = threading.Event()


def is_given() -> bool:
    """Whether this process knows that its machine will be taken away."""
    return _given.is_set()


def listen() -> None:
    """Take SIGTERM for such a notice; to be called in the main thread."""
    signal.signal(signal.SIGTERM, lambda *_: _given.set())


def ask(closed: threading.Event) -> None:
    """Ask those who may take this machine away, in threads, until one says so or `closed` is set."""
    ray = _drained_by_ray if JOINED in os.environ else None
    for one in (_cloud(), ray):
        if one is not None:
            threading.Thread(target=_watch, args=(one, closed), name="notice", daemon=True).start()


def look() -> bool:
    """Ask the cloud once, and return whether this machine will be taken away."""
    if (cloud := _cloud()) is not None:
        with contextlib.suppress(OSError):
            if cloud():
                _given.set()
    return is_given()


def _cloud() -> Callable[[], bool] | None:
    return {"aws": _preempted_by_aws, "gcp": _preempted_by_gcp}.get(os.environ.get(CLOUD, ""))


def _watch(ask: Callable[[], bool], closed: threading.Event) -> None:
    while not closed.wait(_POLL):
        try:
            if ask():
                _given.set()
                return
        except (OSError, RuntimeError):  # the service is busy, or not there: the next look may tell
            continue


def _drained_by_ray() -> bool:
    """Ask Ray, whose node manager or autoscaler drains a node before it takes it away. Raises RuntimeError."""
    from trainers.backend import is_draining

    return is_draining()


def _preempted_by_aws() -> bool:
    base = os.environ.get(*_AWS).rstrip("/")
    token = _get(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    return bool(_get(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""}))


def _preempted_by_gcp() -> bool:
    url = f"http://{os.environ.get(*_GCP)}/computeMetadata/v1/instance/preempted"
    return _get(url, {"Metadata-Flavor": "Google"}) == "TRUE"


def _get(url: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """Return the answer; None where there is nothing at this address. Raises OSError."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with _DIRECT.open(request, timeout=_TIMEOUT) as reply:
            return str(reply.read().decode()).strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before this service
