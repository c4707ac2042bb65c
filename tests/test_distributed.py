"""Several processes of one training, started by torchrun: they equal one process, speak once, and survive a kill."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from support.training_runs import SMALL, small_run
from support.waiting import HANG_S, wait_for_path
from torch import nn

from resnet_onnx.training import trainer
from resnet_onnx.training.checkpoint import read_checkpoint
from resnet_onnx.training.distributed import ProcessGroup
from runtimes.errors import BadData, UsageError

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def torchrun(*arguments: str, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Starts two processes on this machine, and leaves none behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", str(restarts), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with contextlib.suppress(psutil.Error):
                        one.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, told = process.communicate(timeout=HANG_S)
    return process.returncode, out, told


TOGETHER = """
import os, sys
from pathlib import Path
from resnet_onnx.training.distributed import ProcessGroup
from support.training_runs import SMALL, small_run

group = ProcessGroup.from_environment()
small_run(Path(sys.argv[1]), SMALL, group=group, device="cpu")
sys.stdout.flush()
os._exit(0)  # as the command does
"""


class ByHalves(nn.BatchNorm2d):
    """Batch norm that computes its statistics for each half of the batch (ghost batch norm, arXiv:1705.08741).

    Its running statistics are the mean of those that each half alone would lead to.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        outputs, means, variances = [], [], []
        for half in x.chunk(2):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            outputs.append(F.batch_norm(half, mean, variance, self.weight, self.bias, True, self.momentum, self.eps))
            means.append(mean)
            variances.append(variance)
        self.running_mean.copy_((means[0] + means[1]) / 2)
        self.running_var.copy_((variances[0] + variances[1]) / 2)
        self.num_batches_tracked += 1
        return torch.cat(outputs)


def test_two_processes_train_as_one_does_that_computes_batch_norm_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    build = trainer.build

    def by_halves(config: Any, **options: Any) -> nn.Module:
        module: nn.Module = build(config, **options)
        for part in module.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = ByHalves
        return module

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "build", by_halves)
        alone = small_run(tmp_path / "one", SMALL, device="cpu")
    whole = small_run(tmp_path / "whole", SMALL, device="cpu")
    with torchrun(str(tmp_path / "together.py"), str(tmp_path / "two")) as process:
        code, _, told = ended(process)
    assert code == 0, told
    two, one = read_checkpoint(tmp_path / "two" / "last"), read_checkpoint(tmp_path / "one" / "last")
    losses = [[row["train_loss"] for row in found.progress["history"]] for found in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert [row["train_loss"] for row in whole.epochs] != pytest.approx(losses[1], rel=1e-4)
    assert [row["validation_top1"] for row in two.progress["history"]] == [r["validation_top1"] for r in alone.epochs]
    states = two.module_state(), one.module_state()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


COMMAND = ("-m", "resnet_onnx", "train", "--model", "cifar-resnet8", "--data", "digits", "--threads", "1",
           "--workers", "0", "--precision", "fp32")  # fmt: skip


def test_torchrun_speaks_once_writes_once_and_ends_cleanly(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with torchrun(*COMMAND, "--epochs", "1", "--batch-per-process", "32", "--out", str(out), "--json") as process:
        code, stdout, told = ended(process)
    assert code == 0, told
    document = json.loads(stdout)
    assert (document["processes"], document["recipe"]["batch_size"]) == (2, 64)
    assert document["recipe"]["learning_rate"] == pytest.approx(0.2)  # the recipe's 0.1 is for a batch of 32
    assert "batch 64 (2 processes × 32), learning rate 0.2 (scaled linearly with the batch: 0.1 × 64 / 32)" in told
    assert told.count("epoch   1") == told.count("cifar-resnet8 on digits") == 1
    assert "Error" not in told
    with (out / "history.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["epoch"], float(row["train_loss"])) for row in rows] == [("1", document["epochs"][0]["train_loss"])]
    assert sorted(path.name for path in out.iterdir()) == [".lock", "best", "history.csv", "last"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--data", "nowhere"), "--data 'nowhere': no such file or folder"),
        pytest.param(("--sync-batch-norm",), "SyncBatchNorm has no CPU form", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_under_torchrun_is_said_once(tmp_path: Path, wrong: tuple[str, ...], said: str) -> None:
    with torchrun(*COMMAND, "--out", str(tmp_path / "run"), *wrong) as process:
        code, out, told = ended(process)
    assert (code, out) == (1, "")  # torchrun's own code for a process that failed
    assert told.count("error: ") == told.count(said) == 1
    assert "exitcode  : 2" in told
    assert not list((tmp_path / "run").glob("*"))


def worker(agent: int, rank: int) -> psutil.Process | None:
    for child in psutil.Process(agent).children(recursive=True):
        try:
            if child.environ().get("RANK") == str(rank):
                return child
        except psutil.Error:
            continue
    return None


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_restarted_and_the_training_goes_on_from_the_last_checkpoint(
    tmp_path: Path, rank: int
) -> None:
    out = tmp_path / "run"
    with torchrun(*COMMAND, "--epochs", "4", "--out", str(out), "--json", restarts=1) as process:
        wait_for_path(out / "history.csv", process)  # written when the first epoch's checkpoint is there
        victim = worker(process.pid, rank)
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        code, stdout, told = ended(process)
    assert code == 0, told
    document = json.loads(stdout)
    assert document["resumed_from"] >= 1
    assert [row["epoch"] for row in document["epochs"]] == [1, 2, 3, 4]
    assert read_checkpoint(out / "last").epoch == 4
    assert document["best"]["top1"] > 0.8


@pytest.mark.slow
def test_a_restart_does_not_go_on_with_a_training_that_it_did_not_begin(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*COMMAND, "--epochs", "1", "--out", str(out)]
    with torchrun(*arguments, restarts=1) as process:
        assert ended(process)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with torchrun(*arguments, restarts=1) as process:
        code, stdout, told = ended(process)
    assert (code, stdout) == (1, "")
    assert told.count("holds a training already") == 2  # a start, and a restart
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


# ---- in one process --------------------------------------------------------------------------------------------------


def test_the_environment_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID",
                 "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
                 "TORCHELASTIC_USE_AGENT_STORE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    assert ProcessGroup.from_environment() == ProcessGroup()
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert ProcessGroup.from_environment() == ProcessGroup(rank=5, world_size=8, local_rank=1, local_world_size=4)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert (ProcessGroup.from_environment().elastic, ProcessGroup.from_environment().last_attempt) == (True, False)
    assert ProcessGroup.from_environment().was_started("x")  # what a store that is as new as the process can't say
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert not ProcessGroup.from_environment().store_is_new
    for name, value in (("RANK", "8"), ("RANK", "-1"), ("RANK", "one")):
        monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match="RANK"):
            ProcessGroup.from_environment()


def test_a_single_process_agrees_with_itself() -> None:
    def fail() -> int:
        raise BadData("nothing there")

    done: list[int] = []
    assert ProcessGroup().on_all_ranks(lambda: 3) == ProcessGroup().broadcast(lambda: 3) == 3
    assert ProcessGroup().local_main_first(lambda: done.append(3) or len(done)) == 1  # once
    for way in (ProcessGroup().on_all_ranks, ProcessGroup().local_main_first):
        with pytest.raises(BadData, match="nothing there") as caught:
            way(fail)
        assert not caught.value.common
