"""An image that has Python, Ray and other people's packages, and no raylift: as Ray's own, but for torch and the like.

Packages are those of the environment that runs the tests, for there is no index to install them from, but for boto3: as
in images of Ray, that is an old one, which knows no conditional writes. `uv` notes what it is told in uv.log, and makes
the folder that it is told to install to, with the boto3 of the environment in it.
"""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

_UV = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != "--target" ]; do shift; done
mkdir -p "$2"
ln -sfn {packages}/boto3 "$2/boto3"
"""
_RAY = """#!{python}
from ray.scripts.scripts import main
main()
"""
_OLD_BOTO3 = """
import botocore.session


class Client:
    def __init__(self, service):
        self._client = botocore.session.get_session().create_client(service)

    def put_object(self, **parameters):
        if "IfNoneMatch" in parameters:
            raise ValueError('Unknown parameter in input: "IfNoneMatch", must be one of: Body, Bucket, Key')
        return self._client.put_object(**parameters)

    def __getattr__(self, name):
        return getattr(self._client, name)


client = Client
"""


def bare_image(folder: Path) -> dict[str, str]:
    """Make such an image in a folder; return its variables."""
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    (packages,) = folder.glob("lib/python*/site-packages")
    # a path that a .pth file names is one to import from, and the .pth files in it are not read: so not this checkout's
    others = sysconfig.get_path("purelib")
    (packages / "others.pth").write_text(f"{others}\n")
    for name, file, text in (
        ("boto3", "__init__.py", _OLD_BOTO3),
        ("boto3-1.29.7.dist-info", "METADATA", "Metadata-Version: 2.1\nName: boto3\nVersion: 1.29.7\n"),
    ):
        (packages / name).mkdir()
        (packages / name / file).write_text(text)
    uv = _UV.format(log=folder / "uv.log", packages=others)
    programs_of_its_own = {"ray": _RAY.format(python=programs / "python"), "uv": uv}
    for name, text in programs_of_its_own.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin"}
