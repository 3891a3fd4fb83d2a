"""What a person sees of a failure, held to the rules of the house."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

from cluster.runs import Run
from tests.harness import ROOT, assert_nothing_left, raylift_here, wait_for

DIGITS = """\
task: image-classification
data: {train: builtin:digits, eval: {split: 0.2}}
train: {epochs: 3, batch_size: 64, seed: 5}
checkpoint: {every: 5 steps}
cluster: {provider: local, workers: 2}
"""

LONG_STEPS = 24 * 23
_LONG = """\
task: image-classification
model: {name: cnn, dropout: 0.3}
data:
  train: builtin:digits
  eval: {split: 0.2}
  image_size: 28
  augment: {rotate: 15, translate: 0.1, noise: 0.05, mixup: 0.2}
train:
  epochs: 24
  batch_size: 64
  optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
  schedule: {name: cosine, warmup: 0.1}
  seed: 11
  max_failures: MAX_FAILURES
checkpoint: {every: EVERY, keep: KEEP}
cluster: {provider: local, workers: 2}
"""


def long_job(every: str, *, keep: int = 2, max_failures: int = 3) -> str:
    """Return a job that leaves time for faults, and draws random numbers wherever it can.

    Its losses are those of the fixture `undisturbed`, whatever the settings.
    """
    return _LONG.replace("EVERY", every).replace("KEEP", str(keep)).replace("MAX_FAILURES", str(max_failures))


def write_job(folder: Path, text: str = DIGITS, name: str = "job.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def write_modules(folder: Path, names: tuple[str, ...]) -> None:
    """Write modules and packages that break whoever imports them."""
    for name in names:
        path = folder / name if name.endswith(".py") else folder / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise ImportError('{name} of the user was imported')\n")


def write_console_script(folder: Path) -> Path:
    """Write the command `raylift` as pip installs it: Python puts the script's folder first on its path."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["raylift"].partition(":")
    (folder / "bin").mkdir()
    script = folder / "bin" / "raylift"
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return script


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Fail unless a command ended with one error, on standard error alone, that holds these words."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    _assert_says(done.stderr, *words)


def assert_ended(output: str, returncode: int, run: Run, code: int, state: str, *words: str) -> None:
    """Fail unless a followed run ended so, said it once, left nothing behind, and `status` and `ps` say the same."""
    assert returncode == code, output
    assert output.count(f"{state} in ") == 1
    _assert_says(output, *words)
    status = raylift_here("status", run.uri)
    assert f"{state}: " in status.stdout
    _assert_says(status.stdout, *words)
    assert state in raylift_here("ps", "--storage", run.storage.uri).stdout
    wait_for_nothing_left(run.id)


def wait_for_nothing_left(run_id: str) -> None:
    def is_gone() -> bool:
        try:
            assert_nothing_left(run_id)
        except AssertionError:
            return False
        return True

    wait_for(is_gone, f"the end of all that {run_id} left", timeout=30)


def _assert_says(output: str, *words: str) -> None:
    assert "Traceback" not in output
    for word in words:
        assert output.count(word) == 1, f"{word!r} is said {output.count(word)} times in:\n{output}"
