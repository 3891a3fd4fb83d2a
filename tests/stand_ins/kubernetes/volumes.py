"""The volumes of a pod, as far as they may be missing, or outlive it.

Of those that do, it knows hostPath by a PersistentVolume (https://kubernetes.io/docs/concepts/storage/volumes/#hostpath)
of the type Directory, which a DaemonSet makes on each node, below a folder of its own.
"""

from __future__ import annotations

from tests.stand_ins.kubernetes.kinds import Object
from tests.stand_ins.kubernetes.server import ApiServer


def unbound(server: ApiServer, pod: Object) -> str:
    """Return why no node could have all volumes that a pod claims; an empty text where one could."""
    for name in _claimed(pod).values():
        claim = server.get("PersistentVolumeClaim", pod["metadata"]["namespace"], name)
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found'
        if _bound(server, claim) is None:
            return "pod has unbound immediate PersistentVolumeClaims"
    return ""


def unmounted(server: ApiServer, pod: Object) -> str:
    """Return why a node does not mount one of a pod's volumes; an empty text where it mounts all."""
    for volume in pod["spec"].get("volumes", []):
        name = volume.get("secret", {}).get("secretName")
        if name and server.get("Secret", pod["metadata"]["namespace"], name) is None:
            return f'MountVolume.SetUp failed for volume "{volume["name"]}" : secret "{name}" not found'
    for name, volume in _volumes(server, pod).items():
        path = volume["spec"]["hostPath"]["path"]
        if not any(path.startswith(f"{made}/") for made in _made_by_daemons(server)):
            said = f"hostPath type check failed: {path} is not a directory"
            return f'MountVolume.SetUp failed for volume "{name}" : {said}'
    return ""


def kept(server: ApiServer, pod: Object) -> dict[str, str]:
    """Return which volumes outlive a pod, by where its first container mounts them."""
    mounts = {each["name"]: each["mountPath"] for each in pod["spec"]["containers"][0].get("volumeMounts", [])}
    return {mounts[name]: volume["metadata"]["name"] for name, volume in _volumes(server, pod).items()}


def _claimed(pod: Object) -> dict[str, str]:
    """Return the claims of a pod, by what it calls them."""
    volumes = pod["spec"].get("volumes", [])
    claimed = {each["name"]: each["persistentVolumeClaim"] for each in volumes if "persistentVolumeClaim" in each}
    return {name: each["claimName"] for name, each in claimed.items()}


def _volumes(server: ApiServer, pod: Object) -> dict[str, Object]:
    claims = {
        name: server.get("PersistentVolumeClaim", pod["metadata"]["namespace"], claim)
        for name, claim in _claimed(pod).items()
    }
    found = {name: _bound(server, claim) for name, claim in claims.items() if claim is not None}
    return {name: volume for name, volume in found.items() if volume is not None}


def _bound(server: ApiServer, claim: Object) -> Object | None:
    """Return the volume of a claim, if it is kept for that or for any."""
    volume = server.get("PersistentVolume", "", claim["spec"].get("volumeName", ""))
    own = {key: claim["metadata"][key] for key in ("namespace", "name")}
    return volume if volume is not None and volume["spec"].get("claimRef", own) == own else None


def _made_by_daemons(server: ApiServer) -> list[str]:
    """Return which folders DaemonSets have nodes make."""
    templates = [each["spec"]["template"] for each in server.all("DaemonSet")]
    paths = [volume.get("hostPath", {}) for each in templates for volume in each["spec"].get("volumes", [])]
    return [each["path"] for each in paths if each.get("type") == "DirectoryOrCreate"]
