"""The device of a training: which one, what it computes in, and how running out of its memory is reported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.training.distributed import ProcessGroup
from resnet_onnx.training.recipes import Recipe
from runtimes.errors import OutOfMemory, RuntimeUnavailable, UsageError, is_out_of_memory, reason


def select_device(recipe: Recipe, entry: CatalogEntry, name: str | None, group: ProcessGroup) -> torch.device:
    """Returns the device of a name, as ``ProcessGroup.device``, for a recipe and a network that it can train.

    Raises:
        UsageError: The recipe does not fit the network, the device or the number of processes.
        RuntimeUnavailable: There is no such device, or it does not train in the recipe's precision.
    """
    device = group.device(name)
    count = group.world_size
    if recipe.batch_size % count:
        fitting = recipe.batch_size // count * count or count
        raise UsageError(
            f"a batch of {recipe.batch_size} can't be divided evenly among {count} processes",
            fix=f"a batch of {fitting} or {fitting + count}",
        )
    if recipe.batch_size < 2 * count:
        raise UsageError(
            f"a batch of {recipe.batch_size} leaves each of {count} processes one picture, and batch norm needs two",
            fix=f"a batch of at least {2 * count}",
        )
    if recipe.sync_batch_norm and (device.type == "cpu" or count == 1):
        why = "torch's SyncBatchNorm has no CPU form" if device.type == "cpu" else "there is one process only"
        raise UsageError(
            f"batch norm can't be synchronised between processes here: {why}",
            fix="leave out sync_batch_norm; each process then uses the statistics of its own pictures",
        )
    if recipe.precision == "fp16" and device.type == "cpu":
        raise RuntimeUnavailable(
            "precision fp16 trains on GPUs only; this training is on a CPU", fix="use bf16, fp32 or auto"
        )
    if recipe.crop == "scaled" and recipe.shorter_side[0] < entry.image_size:
        raise UsageError(
            f"recipe: shorter_side begins at {recipe.shorter_side[0]} pixels, below the network's {entry.image_size}",
            fix=f"--set shorter_side={entry.image_size},{max(recipe.shorter_side[1], entry.image_size)}",
        )
    return device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor of the host to a device; a GPU need not be waited for, as from memory that may be paged out."""
    return tensor.to(device) if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def supports_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that bf16 is faster than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


@contextlib.contextmanager
def failures_explained(recipe: Recipe) -> Iterator[None]:
    """Turns torch's errors about memory and about compiling into ``OutOfMemory`` and ``RuntimeUnavailable``."""
    try:
        yield
    except RuntimeError as error:  # torch's CPU allocator has no class of its own, its others derive from it
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"the training does not fit into memory: {reason(error)}",
                fix=f"a smaller batch than {recipe.batch_size} (--batch), or smaller pictures (--image-size)",
            ) from error
        if recipe.compile == "on" and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise RuntimeUnavailable(
                f"torch can't compile the network here: {reason(error)}",
                fix="install a C++ compiler (g++), or leave out compile=on",
            ) from error
        raise


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Sets torch's number of CPU threads while the block runs; None leaves its setting."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
