"""What the first container of a pod does with storage, before there is any raylift: TEXT is the text of this file.

    python -c TEXT fetch URI FOLDER CLIENT [OPTION]...
    python -c TEXT probe URI FOLDER CLIENT

`fetch` takes the archive at URI out of storage with the image's own client, or with the package CLIENT, such as
boto3==1.44.5, where that has none or too old a one, checks that it is the one of that name, unpacks it to
FOLDER/<digest>/code, and has uv install its requirements.lock to FOLDER/<digest>/packages, with the OPTIONs. What is
there already, in a folder that pods share, is left alone; what none has used for two months goes.
`probe` writes an object to URI, where none may be yet, reads it, deletes it, and prints what came of it, after TOLD. It
ends well whatever that is: KubeRay deletes a head whose container has failed before anybody has read what it printed.
As nothing of ours is there yet, this uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any

TOLD, DONE = "raylift check: ", "done"
_UV = "uv==0.13.9"
_PARTIAL = "partial-"
_A_DAY = 86400.0  # seconds
_UNUSED = 60 * _A_DAY  # a pod that began with it longer ago, and lives still, loses what it has not imported yet
# As raylift's extra asks for: that of S3 knows EKS Pod Identity since 1.34.41, and IfNoneMatch since August 2024
_LEAST = {"boto3": (1, 36)}


def fetch(uri: str, folder: str, client: str, options: list[str]) -> None:
    digest = uri.rpartition("/")[2].removesuffix(".zip")
    target = os.path.join(folder, digest)
    if os.path.isdir(target):
        with contextlib.suppress(OSError):  # it may be read alone
            os.utime(target)  # it is used
        return
    os.makedirs(folder, exist_ok=True)
    sweep(folder)
    partial = tempfile.mkdtemp(prefix=_PARTIAL, dir=folder)
    try:
        whole = os.path.join(partial, "whole")
        uv = find_uv(partial)
        data = download(uri, partial, client)
        if hashlib.sha256(data).hexdigest() != digest:
            sys.exit(f"{uri} is not what its name says: it was damaged, or written by somebody else")
        zipfile.ZipFile(io.BytesIO(data)).extractall(os.path.join(whole, "code"))
        lock = os.path.join(whole, "code", "requirements.lock")
        install(uv, os.path.join(whole, "packages"), ["--no-deps", *options, "-r", lock])
        with contextlib.suppress(OSError):  # another pod that shares the folder was faster
            os.rename(whole, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"fetched {uri} to {target}", flush=True)


def sweep(folder: str) -> None:
    """Remove what pods left that were killed while they fetched: nobody takes so long. And what none uses any more."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        whole = re.fullmatch("[0-9a-f]{64}", name)
        with contextlib.suppress(OSError):  # another pod has removed it, or is through
            unused = time.time() - os.stat(path).st_mtime
            if whole and unused > _UNUSED:
                gone = os.path.join(folder, f"{_PARTIAL}{name}")
                os.rename(path, gone)  # what is half removed is taken for whole by nobody
                shutil.rmtree(gone, ignore_errors=True)
            elif name.startswith(_PARTIAL) and unused > _A_DAY:
                shutil.rmtree(path, ignore_errors=True)


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


def download(uri: str, folder: str, client: str) -> bytes:
    """Return an object of S3 or Google Cloud Storage, with the credentials that their clients find."""
    module, bucket, key = opened(uri, folder, client)
    if uri.startswith("s3://"):
        body: bytes = module.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return body
    blob: bytes = module.Client().bucket(bucket).blob(key).download_as_bytes()
    return blob


def probe(uri: str, folder: str, client: str) -> None:
    """Write an object where none may be, read it and delete it: all that a run needs. Prints the error, or DONE."""
    data = b"raylift check"
    try:
        module, bucket, key = opened(uri, folder, client)
        if uri.startswith("s3://"):
            s3 = module.client("s3")
            s3.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            found = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            s3.delete_object(Bucket=bucket, Key=key)
        else:
            blob = module.Client().bucket(bucket).blob(key)
            blob.upload_from_string(data, if_generation_match=0)
            found = blob.download_as_bytes()
            blob.delete()
        outcome = DONE if found == data else "what was read is not what was written"
    except Exception as error:  # of either client, whatever it raises
        outcome = f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(f"{TOLD}{outcome}", flush=True)


def opened(uri: str, folder: str, client: str) -> tuple[Any, str, str]:
    """Return the client of a storage, and the bucket and the key of an object."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return load({"s3": "boto3", "gs": "google.cloud.storage"}[scheme], folder, client), bucket, key


def load(name: str, folder: str, client: str) -> Any:
    """Import the client of a storage; where the image has none, or too old a one, install it first."""
    if not is_too_old(client.partition("==")[0]):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    place = os.path.join(folder, "client")
    install(find_uv(folder), place, [client])
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def is_too_old(package: str) -> bool:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, re.findall(r"\d+", version))) < _LEAST.get(package, ())


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        probe(*sys.argv[2:])
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what tidies up
        try:
            fetch(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)  # it has said why, as the last that is printed here
