"""A step of a training never waits for the GPU: counted over torch's own description of CUDA tensors, without one.

Fake tensors have a device and a shape and no memory. What would make the host wait is seen as the operator that does
it: reading a value, or a copy between host and device that is not from pinned memory. That a GPU agrees is shown by
``tests/gpu`` (``torch.cuda.set_sync_debug_mode``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_onnx.models import catalog
from resnet_onnx.training import device as training_device
from resnet_onnx.training.augmentation import BatchAugmentation, Normaliser, Shard
from resnet_onnx.training.distributed import SINGLE_PROCESS
from resnet_onnx.training.loaders import MemoryLoader
from resnet_onnx.training.recipes import Recipe
from resnet_onnx.training.step import TrainState

CUDA = torch.device("cuda:0")
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class Waits(TorchDispatchMode):
    """Notes every operator that would make the host wait for the GPU."""

    def __init__(self, *, anywhere: bool = False) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._anywhere = anywhere

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if name in _READS and (self._anywhere or tensors[0].device.type == "cuda"):
            self.seen.append(name)
        if name == "aten::_to_copy":
            moved = kwargs.get("device") is not None and torch.device(kwargs["device"]).type != args[0].device.type
            if moved and not (kwargs.get("non_blocking") and getattr(args[0], "pinned", False)):
                self.seen.append(f"{name} {args[0].device} to {kwargs['device']}")
        if name == "aten::copy_" and args[0].device.type != args[1].device.type:
            self.seen.append(name)
        return func(*args, **kwargs)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor.pinned = True  # type: ignore[attr-defined]
    return tensor


def recipe(**settings: Any) -> Recipe:
    return Recipe(name="short", source="this test", learning_rate=0.1, epochs=1, batch_size=4, **settings)


def test_batches_reach_the_gpu_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are there already; an epoch's order and a step's random numbers come from pinned memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    entry, waits = catalog.lookup("cifar-resnet20"), Waits()
    chosen = recipe(crop="pad", pad=4, flip=True, colour=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        normaliser = Normaliser(entry.preprocessing, CUDA)
        pictures = torch.zeros((8, 3, 32, 32), dtype=torch.uint8)
        loader = MemoryLoader(pictures, np.arange(8) % 10, CUDA)
        augmentation = BatchAugmentation(chosen, normaliser, 10, torch.Generator(), Shard(first=0, total=4))
        with waits:
            for number, (batch, labels) in enumerate(loader.batches(torch.arange(8), 4, epoch=0)):
                inputs, targets = augmentation(batch, labels, mix_seed=number)
                assert (inputs.device, targets.device) == (CUDA, CUDA)
    assert waits.seen == []


@pytest.mark.parametrize("settings", [{}, {"ema": 0.99}, {"ema": 0.9, "precision": "bf16"}])
def test_a_step_reads_no_value(settings: dict[str, Any]) -> None:
    """On the CPU, where every value that is read is one that a GPU would be waited for."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 10),
    )
    state = TrainState(module, recipe(**settings), torch.device("cpu"), SINGLE_PROCESS)
    state.train_mode()
    waits = Waits(anywhere=True)
    with waits:
        for _ in range(3):
            state.step(torch.ones(4, 3, 8, 8), torch.arange(4), 0.1)
    assert waits.seen == []
    if state.average is not None:
        assert state.average.steps == 3
        averaged, current = (next(iter(each.parameters())) for each in (state.average.module, module))
        assert not torch.equal(averaged, current)


def test_what_makes_the_host_wait_is_seen() -> None:
    waits = Waits()
    with FakeTensorMode(), waits:
        there = torch.zeros(3, device=CUDA)
        there.cpu()
        torch.zeros(3).to(CUDA)
        with pytest.raises(Exception):  # noqa: B017, PT011  (fake tensors have no values to read)
            int(there.sum())
    assert len(waits.seen) == 3


def test_copies_to_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    host = torch.arange(3)
    assert training_device.to_device(host, torch.device("cpu")) is host
