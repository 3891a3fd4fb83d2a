"""A task of the user's own: what is asked of it, and what an exception of its means."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from socket import gethostname
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cluster.bundles import WORKDIR, bundle_of
from cluster.errors import DeviceError, InfrastructureError, TrainingError, UserCodeError
from cluster.runs import Run
from cluster.storage.open import open_storage
from trainers import user_code
from trainers.config import EarlyStopping, TrainJob
from trainers.parallel import has_batch_norm
from trainers.sweep.driver import count_samples
from trainers.tasks.base import Draw
from trainers.tasks.own import Collated, OwnTask
from trainers.user_code import fetch_code, load_object, told_of
from trainers.worker import _samples, explain

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Mine:
    def __init__(self, params):
        self.params = params

    def build_model(self):
        return nn.Linear(2, 1)

    def datasets(self):
        data = TensorDataset(torch.ones(6, 2), torch.arange(6.0))
        return data, None

    def loss(self, model, batch):
        error = model(batch["inputs"]).squeeze(1) - batch["targets"]
        return (error ** 2).sum(), len(error)
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write mine.py into a folder; what is imported from there is forgotten afterwards."""
    before = list(sys.path)

    def folder(source: str) -> Path:
        (tmp_path / "mine.py").write_text(source)
        return tmp_path

    yield folder
    sys.path[:] = before
    user_code._loaded.clear()
    sys.modules.pop("mine", None)


def job(**changes: Any) -> TrainJob:
    return TrainJob.model_validate({"task": "mine:Mine", **changes})


def task(folder: Path, **params: Any) -> OwnTask:
    return OwnTask(job(params=params), {}, folder)


def one_loss(folder: Path) -> None:
    mine = task(folder)
    train, _ = mine.datasets()
    mine.loss(mine.build_model(), train.batch(np.array([0, 1]), None))


def test_a_task_is_handed_its_params_and_its_batches_are_dicts(write: Write) -> None:
    mine = task(write(TASK), width=3)
    assert mine._task.params == {"width": 3}
    train, evaluation = mine.datasets()
    assert (len(train), evaluation) == (6, None)
    batch = train.batch(np.array([4, 1]), None)
    assert batch["targets"].tolist() == [4, 1]
    total, count, _ = mine.loss(mine.build_model(), batch)
    assert (total.dim(), count.item()) == (0, 2)
    assert mine.metrics().compute() == {}


def test_what_a_task_draws_without_a_seed_is_the_same_for_every_rank_and_attempt(write: Write) -> None:
    drawn_by_all = "torch.randperm(6) + torch.from_numpy(np.random.rand(6)) + random.random()"
    source = TASK.replace("torch.arange(6.0))", f"self.drawn + {drawn_by_all})")
    source = source.replace("self.params = params", "self.drawn = torch.rand(6)")
    folder = write(f"import random\nimport numpy as np\n{source}")
    drawn = []
    for before in (1, 2):
        torch.manual_seed(before)
        mine = task(folder)
        mine.build_model()  # draws from the generators too
        drawn.append(mine.datasets()[0].batch(np.arange(6), None)["targets"])
    assert torch.equal(*drawn)
    other = OwnTask(job(train={"seed": 1}), {}, folder)
    assert not torch.equal(drawn[0], other.datasets()[0].batch(np.arange(6), None)["targets"])


def test_an_empty_share_is_a_batch_of_nothing(write: Write) -> None:
    train, _ = task(write(TASK)).datasets()
    assert {name: list(tensor.shape) for name, tensor in train.batch(np.array([], int), None).items()} == {
        "inputs": [0, 2],
        "targets": [0],
    }


@pytest.mark.parametrize(
    "samples",
    [
        [(torch.tensor([1.0, 2.0]), 3), (torch.tensor([4.0, 5.0]), 6)],
        [{"inputs": torch.tensor([1.0, 2.0]), "targets": 3}, {"inputs": torch.tensor([4.0, 5.0]), "targets": 6}],
        TensorDataset(torch.tensor([[1.0, 2.0], [4.0, 5.0]]), torch.tensor([3, 6])),
    ],
)
def test_samples_are_pairs_or_dicts(samples: Any) -> None:
    data = Collated(samples, torch.utils.data.default_collate, "mine:Mine")
    batch = data.batch(np.array([1, 0]), None)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "inputs": [[4, 5], [1, 2]],
        "targets": [6, 3],
    }
    assert [len(tensor) for tensor in data.batch(np.array([], int), None).values()] == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("return nn.Linear(2, 1)", "return 1"),
            "mine:Mine.build_model returned int; it must return a torch.nn.Module",
        ),
        (("return data, None", "return data"), "mine:Mine.datasets returned TensorDataset; it must return two"),
        (("torch.ones(6, 2), torch.arange(6.0)", "torch.ones(0, 2)"), "a dataset of mine:Mine is empty"),
        (
            ("torch.ones(6, 2), torch.arange(6.0)", "torch.ones(6, 2)"),
            "a batch of mine:Mine is list; it must be a dict",
        ),
        (("(error ** 2).sum(), len(error)", "(error ** 2).mean()"), "mine:Mine.loss returned shape []; it must return"),
        (
            ("(error ** 2).sum(), len(error)", "error ** 2, 2"),
            "mine:Mine.loss returned shape [2]; it must return first",
        ),
        (("len(error)", "len(error), 1"), "mine:Mine.loss returned int; it must return a tensor for the metrics"),
        (
            ("def loss", "def metrics(self): ...\n    def loss"),
            "mine:Mine.loss returned tuple; it must return the model",
        ),
        (("return data, None", "return [('a', 1), ('b', 2)], None"), "a batch of mine:Mine, inputs is no tensor: give"),
        (("def loss", "def lose"), "mine:Mine has no loss; a task has build_model, datasets and loss"),
    ],
)
def test_what_a_task_returns_that_cannot_be_is_told(write: Write, change: tuple[str, str], message: str) -> None:
    with pytest.raises(TrainingError) as raised:
        one_loss(write(TASK.replace(*change)))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported late",
        "CUDA error: uncorrectable ECC error encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    ],
)
def test_a_gpu_that_fails_is_no_mistake_of_the_training(said: str) -> None:
    told = explain(RuntimeError(said), rank=3, step=11)
    assert isinstance(told, DeviceError)
    assert str(told) == f"rank 3's GPU on {gethostname()} failed, at step 12: {said.splitlines()[0]}"


def test_what_a_gpu_says_of_a_mistake_is_one_of_the_training() -> None:
    told = explain(RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors"), rank=3, step=11)
    assert isinstance(told, TrainingError)


def test_an_exception_is_told_by_its_place_and_traceback_without_our_frames(write: Write) -> None:
    mine = task(write(TASK.replace('model(batch["inputs"])', 'model(batch["inputs"][:, :1])')))
    train, _ = mine.datasets()
    with pytest.raises(RuntimeError) as raised:
        mine.loss(mine.build_model(), train.batch(np.array([0]), None))
    told = explain(raised.value, rank=1, step=11)
    assert isinstance(told, UserCodeError)
    assert str(told).startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert str(told).endswith("in mine.py, line 18, in loss (rank 1, step 12)")
    assert told.traceback.startswith("Traceback (most recent call last):\n")
    assert '  File "mine.py", line 18, in loss\n    error = model' in told.traceback
    assert "torch/nn/modules/linear.py" in told.traceback  # what theirs called is part of it
    assert "trainers" not in told.traceback
    again = pickle.loads(pickle.dumps(told))  # as Ray hands it on
    assert (str(again), again.traceback) == (str(told), told.traceback)


def test_what_an_exception_came_of_is_told_too(write: Write) -> None:
    source = TASK.replace("self.params = params", 'self.width = params["width"]')
    source += "\n    def __getattr__(self, name):\n        raise AttributeError(name)\n"
    source = source.replace(
        'self.width = params["width"]',
        'try:\n            self.width = params["width"]\n        except KeyError as error:\n'
        '            raise ValueError("give a width") from error',
    )
    with pytest.raises(ValueError, match="give a width") as raised:
        task(write(source))
    told = explain(raised.value, rank=0, step=None)
    assert isinstance(told, UserCodeError)
    assert str(told) == "ValueError: give a width, in mine.py, line 11, in __init__ (rank 0, before the first step)"
    assert "KeyError: 'width'" in told.traceback
    assert "direct cause" in told.traceback


def test_an_exit_of_theirs_and_one_with_notes_are_told_as_such(write: Write) -> None:
    mine = task(write(TASK.replace("return data, None", "import sys; sys.exit('no data')")))
    with pytest.raises(SystemExit) as raised:
        mine.datasets()
    assert str(explain(raised.value, 0, None)).startswith("SystemExit: no data, in mine.py, line 15, in datasets")
    raised.value.add_note("and a note")
    told = explain(raised.value, 0, None)
    assert isinstance(told, UserCodeError)
    assert str(told).startswith("SystemExit: no data, in mine.py")
    assert "and a note" in told.traceback


def test_a_module_whose_name_is_taken_is_told(write: Write, tmp_path: Path) -> None:
    write(TASK)
    (tmp_path / "numpy.py").write_text("class Mine: ...")
    with pytest.raises(TrainingError, match=r"task: numpy is already the name of .*: give your module another one"):
        load_object("numpy:Mine", tmp_path)


def test_a_module_that_cannot_be_imported_is_the_users_to_mend(write: Write) -> None:
    folder = write("import nothing_of_that_name\n")
    with pytest.raises(ModuleNotFoundError) as raised:
        load_object("mine:Mine", folder)
    told = explain(raised.value, rank=0, step=None)
    assert str(told) == (
        "ModuleNotFoundError: No module named 'nothing_of_that_name', in mine.py, line 1, in <module> "
        "(rank 0, before the first step)"
    )


def test_an_exception_of_our_own_is_not_laid_at_the_users_door(write: Write) -> None:
    task(write(TASK))
    with pytest.raises(ZeroDivisionError) as raised:
        1 / 0  # noqa: B018
    assert told_of(raised.value, "") is None


def test_a_name_that_is_not_there_after_all_is_told(write: Write) -> None:
    with pytest.raises(TrainingError, match="task: mine has no Mine"):
        load_object("mine:Mine", write("if False:\n    class Mine: ...\n"))


def test_code_is_fetched_once_and_never_from_a_folder_that_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    storage = open_storage(str(tmp_path / "runs"))
    made = bundle_of([("mine.py", b"x = 1\n"), ("lib/more.py", b"")], "run", prefix=WORKDIR)
    storage.write(made.path, made.data)
    folder = fetch_code(Run(storage, "run"))
    assert sorted(path.name for path in folder.rglob("*.py")) == ["mine.py", "more.py"]
    assert fetch_code(Run(storage, "run")) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    folder.parent.chmod(0o777)
    with pytest.raises(InfrastructureError, match="is not this user's alone: remove it, or set TMPDIR"):
        fetch_code(Run(storage, "run"))


def test_a_dataset_that_makes_its_batches_is_handed_the_draw_and_others_are_collated_by_the_task(write: Write) -> None:
    source = TASK.replace("return data, None", "return Whole(), [(torch.ones(2), 7)] * 3")
    source += """
    def collate(self, samples):
        return {"inputs": torch.stack([each for each, _ in samples]), "targets": torch.tensor([t for _, t in samples])}

class Whole:
    def __len__(self):
        return 4

    def batch(self, samples, draw):
        shift = 0 if draw is None else draw.seed + draw.epoch
        return {"inputs": torch.ones(len(samples), 2), "targets": torch.from_numpy(samples) + shift}
"""
    train, evaluation = task(write(source)).datasets()
    assert evaluation is not None
    samples = np.array([3, 1])
    assert train.batch(samples, Draw(seed=10, epoch=2, batch=samples))["targets"].tolist() == [15, 13]
    assert train.batch(samples, None)["targets"].tolist() == [3, 1]
    assert evaluation.batch(np.array([0, 2]), None)["targets"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("counts", "data", "message"),
    [
        ([3, 4], [0, 0, 0], "task: datasets() gave the ranks 3, 4 samples to train: they must be the same on all"),
        ([3, 3], None, "train.early_stopping: the task has no data to evaluate on"),
    ],
)
def test_samples_that_ranks_do_not_agree_on_or_that_are_missing_end_the_training(
    counts: list[int], data: list[int] | None, message: str
) -> None:
    config = SimpleNamespace(early_stopping=EarlyStopping())
    pulse = SimpleNamespace(meeting=nullcontext)
    trainer: Any = SimpleNamespace(train_data=[0, 0, 0], eval_data=data, config=config, pulse=pulse)
    context: Any = SimpleNamespace(gather=lambda count: counts if count == 3 else [count] * 2)
    with pytest.raises(TrainingError) as raised:
        _samples(trainer, context)
    assert str(raised.value) == message


def test_a_sweep_of_a_task_without_data_to_evaluate_on_is_refused_and_an_exception_told_as_the_users(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "fetch_code", lambda _run: write(TASK))
    with pytest.raises(TrainingError, match="tune: trials are compared by an evaluation, and the task has no data"):
        count_samples(job(), str(tmp_path / "runs" / "sweep"))
    sys.modules.pop("mine")
    broken = TASK.replace("self.params = params", "self.width = params['width']")
    monkeypatch.setattr(user_code, "fetch_code", lambda _run: write(broken))
    with pytest.raises(UserCodeError, match=r"KeyError: 'width', in mine\.py, line 8, in __init__"):
        count_samples(job(), str(tmp_path / "runs" / "sweep"))


def test_batch_norm_is_found_wherever_it_is() -> None:
    assert has_batch_norm(nn.Sequential(nn.Sequential(nn.BatchNorm1d(3))))
    assert not has_batch_norm(nn.Sequential(nn.LayerNorm(3)))
