"""That a test which lacks something says so, and where every test is to run, fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.stand_ins.kubernetes.schemas import kuberay_crds


@pytest.mark.parametrize(
    ("ask", "said"), [(needs.kubectl, "kubectl is not installed"), (kuberay_crds, "KubeRay's CRDs are not in")]
)
def test_what_is_not_there_skips_a_test_but_fails_it_in_ci(
    ask: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("KUBERAY_CRDS", str(tmp_path / "none"))
    for ci, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match=said):
            ask()
