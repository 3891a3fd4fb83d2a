"""An exported model stands for itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.attempts import Attempt
from cluster.errors import UsageError
from cluster.runs import Run
from launcher.cli.export import export_command
from launcher.export import export_model
from tests.finished import DIGITS, META, new_run, save, started, write_rows
from tests.harness import raylift
from tests.sweeps import STORY
from trainers.models.cnn import CNN

LABELS = ["`tick`", "<script>", "zwölf"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return saved_run(tmp_path, (8, 8, 1))


def saved_run(tmp_path: Path, image: tuple[int, int, int]) -> Run:
    """Write a run that saved an untrained network for images of this height, width and number of channels."""
    height, width, channels = image
    torch.manual_seed(1)
    model = CNN(channels, len(LABELS), (height, width))
    files = [tmp_path / "model.safetensors", tmp_path / "raylift.json"]
    run = new_run(tmp_path / "runs")
    attempt = run.claim()
    write_rows(attempt, "events", [started(0, at=1.0)])
    for step, accuracy in ((10, 0.9), (20, 0.8)):
        save_file({**model.state_dict(), "output.bias": torch.full((len(LABELS),), float(step))}, files[0])
        numbers = {"mean": [0.3] * channels, "std": [0.4] * channels}
        files[1].write_text(json.dumps({**META, **numbers, "classes": LABELS, "image": list(image)}))
        save(attempt, step, files, {"eval_accuracy": accuracy})
    return run


def export(run: Run, target: Path, which: str = "last", *, force: bool = False) -> Path:
    export_model(run, target, which, force=force, warn=pytest.fail)
    return target


def test_an_export_holds_weights_config_meta_and_card(run: Run, tmp_path: Path) -> None:
    names = {file.name for file in export(run, tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "config.json", "raylift.json", "README.md"}


def test_the_weights_are_those_of_the_last_checkpoint(run: Run, tmp_path: Path) -> None:
    assert load_file(export(run, tmp_path / "model") / "model.safetensors")["output.bias"].tolist() == [20.0] * 3


@pytest.mark.parametrize("which", ["best", "10"])
def test_another_checkpoint_can_be_chosen(run: Run, tmp_path: Path, which: str) -> None:
    folder = export(run, tmp_path / "model", which)
    assert load_file(folder / "model.safetensors")["output.bias"].tolist() == [10.0] * 3
    assert json.loads((folder / "config.json").read_text())["step"] == 10


def test_the_config_names_the_classes_as_hugging_face_does(run: Run, tmp_path: Path) -> None:
    config = json.loads((export(run, tmp_path / "model") / "config.json").read_text())
    assert config["id2label"] == {"0": LABELS[0], "1": LABELS[1], "2": LABELS[2]}
    assert config["label2id"] == {LABELS[0]: 0, LABELS[1]: 1, LABELS[2]: 2}
    assert config["architectures"] == ["CNN"]


def test_the_meta_is_the_checkpoints_own(run: Run, tmp_path: Path) -> None:
    stored = run.storage.read(run.path(f"{run.checkpoints()[-1].folder}/raylift.json"))
    assert (export(run, tmp_path / "model") / "raylift.json").read_bytes() == stored


@pytest.mark.parametrize("image", [(8, 8, 1), (28, 28, 1), (20, 33, 3), (17, 40, 3)], ids=str)
def test_the_lines_of_the_card_load_the_model_in_plain_torch(tmp_path: Path, image: tuple[int, int, int]) -> None:
    folder = export(saved_run(tmp_path, image), tmp_path / "model")
    height, width, channels = image
    images = torch.rand(5, channels, height, width, generator=torch.manual_seed(2))
    save_file({"images": images}, folder / "images.safetensors")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    script = f"{code[1]}from safetensors.torch import save_file\n"
    script += "logits = model(load_file('images.safetensors')['images'])\n"
    script += "save_file({'logits': logits.detach()}, 'logits.safetensors')\n"
    # -I: nothing of this checkout can be imported
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours = CNN(channels, len(LABELS), (height, width)).eval()
    ours.load_state_dict(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(load_file(folder / "logits.safetensors")["logits"], ours(images))


def test_a_folder_that_holds_something_is_refused_and_untouched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"notes\.txt"):
            export(run, tmp_path / "model", force=force)
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["code", "README.md"])
def test_what_only_looks_a_little_like_an_export_is_not_replaced_by_force(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "model" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=f"holds other things .{name}."):
        export(run, tmp_path / "model", force=True)
    assert (tmp_path / "model" / name).is_dir()


def test_an_earlier_export_is_replaced_by_force_alone(run: Run, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "model", "10")
    with pytest.raises(UsageError, match="--force"):
        export(run, folder)
    export(run, folder, force=True)
    assert json.loads((folder / "config.json").read_text())["step"] == 20


def test_an_export_that_fails_leaves_the_earlier_one_and_nothing_else(run: Run, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "model", "10")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="one of 10, 20"):
        export(run, folder, "15", force=True)
    assert sorted(tmp_path.iterdir()) == before
    assert json.loads((folder / "config.json").read_text())["step"] == 10


def test_what_a_killed_export_left_behind_is_in_nobodys_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "model.safetensors").write_text("half")
    export(run, tmp_path / "model")
    assert not (tmp_path / "model.partial").exists()


def test_of_a_sweep_the_best_trial_is_exported_at_its_best_and_said_to_be_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It got worse after step 10."""
    sweep = new_run(tmp_path / "runs", "sweep", DIGITS + "tune: {trials: 8}\n")
    write_rows(sweep.claim(), "events", STORY, by="driver")
    shutil.copytree(tmp_path / "runs" / run.id, tmp_path / "runs" / "sweep" / "trials" / "00001")
    export_command(sweep.uri, str(tmp_path / "model"))
    said = capsys.readouterr().out
    assert "exported the checkpoint of step 10 of trial 00001, the best, to" in said
    assert "eval_accuracy 0.9000" in said
    card = (tmp_path / "model" / "README.md").read_text()
    assert "\n# sweep, trial 00001\n" in card
    assert "| optimizer | adam, lr 0.1, batch size 64 |" in card, "as the sweep knows it, not as its folder began"


def test_of_a_best_trial_that_was_ended_early_the_checkpoint_is_exported_that_was_evaluated(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It did one step more, and saved that."""
    sweep = new_run(tmp_path / "runs", "sweep", DIGITS + "tune: {trials: 8}\n")
    write_rows(sweep.claim(), "events", STORY, by="driver")
    evaluation = {"step": 30, "metrics": {"eval_accuracy": 0.95}}
    files = [tmp_path / "model.safetensors", tmp_path / "raylift.json"]
    for step, metrics in ((30, evaluation["metrics"]), (31, {})):
        Attempt.reopen(run, 1).commit(step, files, {"metrics": metrics, "evaluation": evaluation})
    shutil.copytree(tmp_path / "runs" / run.id, tmp_path / "runs" / "sweep" / "trials" / "00001")
    export_command(sweep.uri, str(tmp_path / "model"), json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["metrics"]) == (30, {"eval_accuracy": 0.95})


def test_the_command_exports_without_torch(run: Run, tmp_path: Path) -> None:
    done = raylift("export", run.uri, tmp_path / "model", "--checkpoint", "best", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 10
    code = "import sys, launcher.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
