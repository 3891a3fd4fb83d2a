"""Whether the pods of a run can tell storage who they are. Pure."""

from __future__ import annotations

from collections.abc import Collection

from cluster.errors import UsageError
from cluster.kubernetes.pods import Manifest

# Variables by which the clients of S3 and of Google Cloud Storage find credentials, or need none
_GIVEN = {
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "STORAGE_EMULATOR_HOST",
}
# Those that say where storage is, and are no secret: on machines that are older than a run it is read before the run's
# own environment, which is there.
WHERE = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWS_PROFILE"),
    *("STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"),
)


def require_identity(job: Manifest, own_secret: str, variables: Collection[str]) -> None:
    """Raise UsageError where a RayJob's head, in whose own Secret are these variables, could not go to storage.

    KubeRay gives a head with an autoscaler a service account of its own, unless it names one; to a new account no cloud
    has given an identity.
    """
    spec = job["spec"]["rayClusterSpec"]
    pod = spec["headGroupSpec"]["template"]["spec"]
    if not spec.get("enableInTreeAutoscaling") or "serviceAccountName" in pod:
        return
    ray = pod["containers"][0]
    own = {"secretRef": {"name": own_secret}}
    named = {*variables, *(each["name"] for each in ray.get("env", []))}
    if named & _GIVEN or any(each != own for each in ray.get("envFrom", [])):
        return
    raise UsageError(
        "cluster: with a range of workers or nodes, KubeRay gives the head a service account that it makes, which no "
        "bucket knows. Name a Secret with credentials: storage_secret; or an account with an identity of your cloud, "
        "for heads alone: head_service_account"
    )
