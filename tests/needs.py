"""What tests need beside the packages, without which they are skipped.

What those of Kubernetes need, they need where CI=true: there they fail.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

long = pytest.mark.skipif(
    "RAYLIFT_TEST_LONG" not in os.environ, reason="minutes for what others show in parts: RAYLIFT_TEST_LONG=1"
)


def kubectl() -> str:
    """Return where kubectl is."""
    found = shutil.which("kubectl")
    return found if found is not None else lacking("kubectl is not installed")


def lacking(what: str) -> NoReturn:
    """End a test that lacks something: skipped on a contributor's machine, failed where every test is to run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and with CI=true no test goes without", pytrace=False)
    pytest.skip(what)
