"""The notice that a machine will be taken away: a signal, or the word of its cloud or of its Ray cluster.

AWS says so two minutes before (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html),
Google half a minute (https://cloud.google.com/compute/docs/instances/preemptible).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

CLOUD = "RAYLIFT_CLOUD"  # aws or gcp: whose machine this is
JOINED = "RAYLIFT_JOINED_RAY"  # set where the Ray cluster is not this run's alone
_AWS = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
_GCP = ("GCE_METADATA_HOST", "metadata.google.internal")
_POLL = 1.0  # seconds
_TIMEOUT = 2.0
_AWS_GIVES = 120.0  # seconds, at most
_GCP_GIVES = 30.0
# Of time.monotonic(), as each of those who gave notice told. No lock guards it: signals give notice in the midst of it.
_deadlines: list[float] = []


def give(seconds: float = math.inf) -> None:
    """Note that this machine will be taken away in so many seconds, infinity where that is not known."""
    _deadlines.append(time.monotonic() + seconds)


def is_given() -> bool:
    """Whether this process knows that its machine will be taken away."""
    return bool(_deadlines)


def left() -> float:
    """Return for how many seconds this machine is still there, infinity where nobody has told."""
    return min(_deadlines, default=math.inf) - time.monotonic()


def listen() -> None:
    """Take SIGTERM for such a notice, which tells no deadline; to be called in the main thread."""
    signal.signal(signal.SIGTERM, lambda *_: give())


def ask(closed: threading.Event) -> None:
    """Ask those who may take this machine away, in threads, until one says so or `closed` is set."""
    ray = _left_by_ray if JOINED in os.environ else None
    for one in (_cloud(), ray):
        if one is not None:
            threading.Thread(target=_watch, args=(one, closed), name="notice", daemon=True).start()


def look() -> bool:
    """Ask the cloud once, and return whether this machine will be taken away."""
    if (cloud := _cloud()) is not None:
        with contextlib.suppress(OSError):
            if (seconds := cloud()) is not None:
                give(seconds)
    return is_given()


def _cloud() -> Callable[[], float | None] | None:
    return {"aws": _left_by_aws, "gcp": _left_by_gcp}.get(os.environ.get(CLOUD, ""))


def _watch(ask: Callable[[], float | None], closed: threading.Event) -> None:
    while not closed.wait(_POLL):
        try:
            if (seconds := ask()) is not None:
                give(seconds)
                return
        except (OSError, RuntimeError):  # the service is busy, or not there: the next look may tell
            continue


# Each returns for how many seconds this machine is still there; None where it is not to be taken away.


def _left_by_ray() -> float | None:
    """Ask Ray, whose node manager or autoscaler drains a node before it takes it away. Raises RuntimeError."""
    from trainers.backend import seconds_until_drained

    return seconds_until_drained()


def _left_by_aws() -> float | None:
    base = os.environ.get(*_AWS).rstrip("/")
    token = _get(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    action = _get(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    return _until(action) if action else None


def _until(action: str) -> float:
    """Return in how many seconds AWS does what it says, whatever is wrong with this machine's clock."""
    try:
        at = datetime.fromisoformat(json.loads(action)["time"])
        return min(max((at - datetime.now(UTC)).total_seconds(), 1.0), _AWS_GIVES)
    except (ValueError, KeyError, TypeError):
        return math.inf


def _left_by_gcp() -> float | None:
    url = f"http://{os.environ.get(*_GCP)}/computeMetadata/v1/instance/preempted"
    return _GCP_GIVES - _POLL if _get(url, {"Metadata-Flavor": "Google"}) == "TRUE" else None


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
    except (http.client.HTTPException, UnicodeDecodeError) as error:  # cut off, or no answer of this service
        raise OSError(f"{url} answers with what is no answer: {error!r}") from error


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before this service
