"""Pods whose image has no raylift: a first container fetches it out of storage. Pure."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.kubernetes.pods import SAYS_WHY, Manifest
from cluster.kubernetes.reasons import FETCHING
from cluster.kubernetes.versions import CLIENTS

_FOLDER = "/tmp/raylift"  # in a volume of its own, which pods may share
_VOLUME = "raylift"


def command(what: str) -> list[str]:
    """Return what a container runs that fetches, or probes storage."""
    return ["python", "-c", Path(__file__).with_name("fetch.py").read_text(), what]


def with_bundle(template: Manifest, changed: Manifest, uri: str, *, on_gpus: bool, claim: str | None) -> Manifest:
    """Return the template of a pod of Ray that runs the raylift of an archive in storage, with what its lock pins.

    With a claim to a volume, what is installed there is found by the pods that come after.

    The first container has the environment of Ray's, for storage, and no more than it asks for: that of the template as
    the cluster block has `changed` it, such as by a proxy, a package index, or the certificates that they are known by.
    """
    pod: Manifest = json.loads(json.dumps(template))
    spec, ray = pod["spec"], pod["spec"]["containers"][0]
    as_changed = json.loads(json.dumps(changed))["spec"]["containers"][0]
    digest = uri.rpartition("/")[2].removesuffix(".zip")
    mount = {"name": _VOLUME, "mountPath": _FOLDER}
    ray["volumeMounts"].append(mount)
    of_its_own = {"emptyDir": {"sizeLimit": ray["resources"]["limits"]["ephemeral-storage"]}}
    kept = {"persistentVolumeClaim": {"claimName": claim}}
    spec["volumes"].append({"name": _VOLUME, **(of_its_own if claim is None else kept)})
    client = CLIENTS[uri.partition("://")[0]]
    env = [each for each in as_changed.get("env", []) if "resourceFieldRef" not in each.get("valueFrom", {})]
    if "UV_CACHE_DIR" not in [each["name"] for each in env]:
        env.append({"name": "UV_CACHE_DIR", "value": f"{_FOLDER}/cache"})
    mounts = [each for each in as_changed.get("volumeMounts", []) if each["name"] not in ("shared-memory", _VOLUME)]
    fetch = {
        "name": FETCHING,
        **_these(as_changed, "image", "imagePullPolicy", "workingDir", "securityContext"),
        "command": command("fetch"),
        "args": [uri.replace("$", "$$"), _FOLDER, client, *([] if on_gpus else ["--torch-backend=cpu"])],
        "env": env,
        **_these(as_changed, "envFrom"),
        # accelerators are for training
        "resources": {
            key: {name: amount for name, amount in each.items() if "/" not in name}
            for key, each in _these(as_changed.get("resources", {}), "requests", "limits").items()
        },
        "volumeMounts": [*mounts, mount],
        "terminationMessagePolicy": SAYS_WHY,
    }
    there = f"{_FOLDER}/{digest}"
    ray["env"].append({"name": "PYTHONPATH", "value": f"{there}/code:{there}/packages"})
    spec["initContainers"] = [fetch]
    return pod


def _these(container: Manifest, *keys: str) -> Manifest:
    return {key: container[key] for key in keys if key in container}
