"""What tests of Kubernetes need beside the packages: without it they are skipped, but where CI=true, they fail."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def kubectl() -> str:
    """Return where kubectl is."""
    found = shutil.which("kubectl")
    return found if found is not None else lacking("kubectl is not installed")


def lacking(what: str) -> NoReturn:
    """End a test that lacks something: skipped on a contributor's machine, failed where every test is to run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and with CI=true no test goes without", pytrace=False)
    pytest.skip(what)
