"""The processes of one training: which one this is, and what they tell each other.

``torchrun`` starts them and says who is who in the environment; a training that it did not start is alone, and nothing
here then does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import nn

from runtimes.errors import RuntimeUnavailable, ToolkitError, Unavailable, UsageError

T = TypeVar("T")

WAIT_MINUTES = 30
"""How long a process waits for the others: the first one may test on many pictures, or write to a slow disk."""


@final
@dataclass(frozen=True, kw_only=True)
class Peers:
    """The processes of a training, as one of them sees them.

    Attributes:
        rank: Place of this process, from 0; the first one writes the files.
        count: Processes, on all machines.
        local_rank: Place among the processes of this machine.
        restarted: Whether torchrun has started them anew, after one died.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    restarted: bool = False

    @classmethod
    def from_environment(cls) -> Peers:
        """Returns what torchrun says in the environment; alone where it says nothing.

        Raises:
            UsageError: The environment contradicts itself.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        try:
            peers = cls(
                rank=int(os.environ["RANK"]),
                count=int(os.environ["WORLD_SIZE"]),
                local_rank=int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
                restarted=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0,
            )
        except ValueError as error:
            raise UsageError(f"RANK, WORLD_SIZE or LOCAL_RANK is no number: {error}") from error
        if not 0 <= peers.rank < peers.count or peers.local_rank < 0:
            raise UsageError(f"RANK {peers.rank} does not fit WORLD_SIZE {peers.count}", fix="start with torchrun")
        return peers

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def device(self, name: str | None) -> torch.device:
        """Returns the device to train on; each process of a machine has its own GPU.

        Args:
            name: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one.

        Raises:
            UsageError: No such kind of device, or one GPU named for several processes.
            RuntimeUnavailable: There is no such GPU.
        """
        kinds = "device is cpu, cuda or cuda:N"
        try:
            device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise UsageError(f"{kinds}, not '{name}'") from error
        if device.type not in ("cpu", "cuda"):
            raise UsageError(f"{kinds}, not '{name}'")
        if device.type == "cpu":
            return device
        if self.count > 1:
            if device.index is not None:
                raise UsageError(
                    f"device '{name}' is one GPU, but there are {self.count} processes",
                    fix="name the device cuda: each process then takes its own",
                )
            device = torch.device("cuda", self.local_rank)
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise RuntimeUnavailable(
                f"device '{device}' is not here: torch sees {found} GPUs",
                fix="train with device cpu"
                if self.count == 1
                else "start no more processes a machine than it has GPUs",
            )
        return device

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connects the processes, through gloo on CPUs and NCCL on GPUs, for as long as the block runs.

        Raises:
            Unavailable: A process died, or could not be reached.
        """
        if self.count == 1:
            yield
            return
        import torch.distributed as dist

        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                timeout=datetime.timedelta(minutes=WAIT_MINUTES),
                device_id=device if gpu else None,
            )
            yield
        except RuntimeError as error:
            if not _is_about_peers(error):
                raise
            raise Unavailable(
                f"process {self.rank} of {self.count} lost another one: {' '.join(str(error).split())[:200]}",
                fix="see why that one ended; torchrun --max-restarts N goes on from the last checkpoint by itself",
            ) from error
        # Only after a good end: with a peer gone, taking leave of it would wait for it.
        dist.destroy_process_group()

    def share(self, make: Callable[[], T]) -> T:
        """Returns in every process what `make` returns in the first one, or raises what it raises there."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        said: list[Any] = [None]
        if self.first:
            try:
                said = [make()]
            except ToolkitError as error:
                said = [_Raised(error)]
        dist.broadcast_object_list(said, src=0)
        if isinstance(said[0], _Raised):
            raise said[0].error
        shared: T = said[0]
        return shared

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes in the first one, and this one's own in the others."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(value, found, dst=0)
        return [value] if found is None else found

    def sum(self, *values: torch.Tensor) -> None:
        """Puts into each tensor the sum over the processes."""
        if self.count > 1:
            import torch.distributed as dist

            for value in values:
                dist.all_reduce(value)

    def average_statistics(self, module: nn.Module) -> None:
        """Gives every process the mean of their running statistics of batch norm.

        Each computes them on its own pictures; being moving averages, their mean is what one process would have that
        averages over the parts of the batch at every step.
        """
        if self.count > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.sum(buffer)
                    buffer.div_(self.count)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Returns the module so that its gradients become the mean over the processes, and its weights are equal."""
        if self.count == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # Statistics are averaged once an epoch, not copied from the first process at every step.
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


ALONE = Peers()
"""A training in one process."""


@dataclass(frozen=True)
class _Raised:
    error: ToolkitError


def _is_about_peers(error: RuntimeError) -> bool:
    import torch.distributed as dist

    # gloo's own errors are plain RuntimeErrors that name its source file or the connection.
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(w in text for w in ("gloo", "connection closed by peer", "nccl"))
