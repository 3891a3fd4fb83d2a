"""Fetches raylift and what it needs into a pod whose image has neither: the text of this file is its first container.

    python -c TEXT URI FOLDER CLIENT [OPTION]...

Takes the archive at URI out of storage with the package CLIENT, such as boto3==1.44.5, checks that it is the one of
that name, unpacks it to FOLDER/<digest>/code, and has uv install its requirements.lock to FOLDER/<digest>/packages,
with the OPTIONs. What is there already, in a folder that pods of a node share, is left as it is. As nothing of ours is
there yet, it uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

_UV = "uv==0.13.9"


def main(uri: str, folder: str, client: str, options: list[str]) -> None:
    digest = uri.rpartition("/")[2].removesuffix(".zip")
    target = os.path.join(folder, digest)
    if os.path.isdir(target):
        return
    os.makedirs(folder, exist_ok=True)
    partial = tempfile.mkdtemp(prefix="partial-", dir=folder)
    try:
        uv = find_uv(folder)
        data = download(uri, uv, folder, client)
        if hashlib.sha256(data).hexdigest() != digest:
            sys.exit(f"{uri} is not what its name says: it was damaged, or written by somebody else")
        zipfile.ZipFile(io.BytesIO(data)).extractall(os.path.join(partial, "code"))
        lock = os.path.join(partial, "code", "requirements.lock")
        install(uv, os.path.join(partial, "packages"), ["--no-deps", *options, "-r", lock])
        with contextlib.suppress(OSError):  # another pod of this node was faster
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"fetched {uri} to {target}", flush=True)


def find_uv(folder: str) -> list[str]:
    """Return the command of the image's uv; of one that pip brings, where that has none."""
    if (found := shutil.which("uv")) is not None:
        return [found]
    there = os.path.join(folder, "uv")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", there, _UV], check=True)
    return [os.path.join(there, "bin", "uv")]


def install(uv: list[str], target: str, what: list[str]) -> None:
    command = [*uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", target, *what]
    subprocess.run(command, check=True)


def download(uri: str, uv: list[str], folder: str, client: str) -> bytes:
    """Return an object of S3 or Google Cloud Storage, with the credentials that their clients find."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    name = {"s3": "boto3", "gs": "google.cloud.storage"}[scheme]
    module = load(name, uv, folder, client)
    if scheme == "s3":
        body: bytes = module.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return body
    blob: bytes = module.Client().bucket(bucket).blob(key).download_as_bytes()
    return blob


def load(name: str, uv: list[str], folder: str, client: str) -> Any:
    """Import the client of a storage; where the image has none, install it first."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    place = os.path.join(folder, "client")
    install(uv, place, [client])
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    return importlib.import_module(name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
