"""An image that has Python, Ray and other people's packages, and no raylift: as Ray's own, but for torch and the like.

Packages are those of the environment that runs the tests, for there is no index to install them from. `uv` notes what
it is told in uv.log, and makes the folder that it is told to install to.
"""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

_UV = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" != "--target" ]; do shift; done
mkdir -p "$2"
"""
_RAY = """#!{python}
from ray.scripts.scripts import main
main()
"""


def bare_image(folder: Path) -> dict[str, str]:
    """Make such an image in a folder; return its variables."""
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    (packages,) = folder.glob("lib/python*/site-packages")
    # a path that a .pth file names is one to import from, and the .pth files in it are not read: so not this checkout's
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    programs_of_its_own = {"ray": _RAY.format(python=programs / "python"), "uv": _UV.format(log=folder / "uv.log")}
    for name, text in programs_of_its_own.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin"}
