"""The versions that a run on Kubernetes is made for; those of Python's packages are those of the lock files."""

RAY_VERSION = "2.60.0"
KUBERAY = "1.7"
# The first that by default refuses an apply of unknown fields (fieldValidation), and that knows the rules (CEL) in
# KubeRay's CustomResourceDefinitions; what k8s/base takes, such as endPort and Pod Security Standards, came earlier.
KUBERNETES = (1, 25)
TORCH = ((2, 10), (3, 0))  # from, and up to but without
PYTHON = ((3, 11), (3, 14))
IMAGE = f"rayproject/ray:{RAY_VERSION}-py312"  # where a job names none: https://hub.docker.com/r/rayproject/ray
CLIENTS = {"s3": "boto3==1.44.5", "gs": "google-cloud-storage==3.17.1"}  # with which a pod fetches raylift
