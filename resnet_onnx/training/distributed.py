"""The process group of one training: the rank of this process, and how the ranks exchange values, tensors and errors.

``torchrun`` starts the processes and sets their ranks in the environment. A training that it did not start has one
process, and nothing here then does anything.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

from runtimes.errors import RuntimeUnavailable, ToolkitError, Unavailable, UsageError, reason

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

_WAIT = datetime.timedelta(minutes=30)
"""How long a process waits for the others: the first one may test on many pictures, or write to a slow disk."""

_POLL_S = 0.02
"""Between two reads of the store during the rendezvous."""


@final
@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes of a training, as one of them sees them.

    Every rank must call its collectives (``broadcast``, ``all_gather``, ``on_all_ranks``, ``all_reduce``) in the same
    order. Where a function that is given to one of them raises a ``ToolkitError``, every rank raises that error (of
    several, the one of the lowest rank), marked as ``common``: no rank waits for one that has failed.

    Attributes:
        rank: Of this process, from 0; rank 0 writes the files.
        world_size: Processes, on all machines.
        local_rank: Rank among the processes of this machine.
        local_world_size: Processes on this machine.
        elastic: Whether torchrun started the processes, which may restart them after one died.
        last_attempt: Whether torchrun will not restart them any more.
        store_is_new: Whether torchrun restarted them with a new store that has no record of the earlier processes, as
            some of its rendezvous backends do.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    elastic: bool = False
    last_attempt: bool = True
    store_is_new: bool = False

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """Returns the group that torchrun sets in the environment; a group of one process where it sets none.

        Raises:
            UsageError: The environment contradicts itself.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        try:
            restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            group = cls(
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                local_rank=int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
                local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])),
                elastic="TORCHELASTIC_RUN_ID" in os.environ,
                last_attempt=restarts >= int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")),
                store_is_new=restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            )
        except ValueError as error:
            raise UsageError(
                f"torchrun's environment variables (RANK, WORLD_SIZE, …) must be whole numbers: {error}"
            ) from error
        if not 0 <= group.rank < group.world_size or group.local_rank < 0:
            raise UsageError(f"RANK {group.rank} does not fit WORLD_SIZE {group.world_size}", fix="start with torchrun")
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that prints and writes files."""
        return self.rank == 0

    def device(self, name: str | None) -> torch.device:
        """Returns the device to train on; each process of a machine has its own GPU.

        The name is ``cpu``, ``cuda`` or ``cuda:N``; None selects a GPU where there is one.

        Raises:
            UsageError: No such kind of device, or one GPU named for several processes.
            RuntimeUnavailable: There is no such GPU.
        """
        import torch

        try:
            device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise UsageError(f"device is cpu, cuda or cuda:N, not '{name}'")
        if device.type == "cpu":
            return device
        if self.world_size > 1:
            if device.index is not None:
                raise UsageError(
                    f"device '{name}' is one GPU, but there are {self.world_size} processes",
                    fix="name the device cuda: each process then uses its own",
                )
            device = torch.device("cuda", self.local_rank)
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise RuntimeUnavailable(
                f"device '{device}' is not here: torch sees {found} GPUs",
                fix="train with device cpu"
                if self.world_size == 1
                else "start no more processes a machine than it has GPUs",
            )
        return device

    @contextlib.contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connects the processes, through gloo on CPUs and NCCL on GPUs, for as long as the block runs.

        Raises:
            Unavailable: A process died, or could not be reached.
        """
        import torch

        gpu = device.type == "cuda"
        if gpu and device.index is not None:  # code that uses the current GPU must use this one
            torch.cuda.set_device(device)
        if self.world_size == 1:
            yield
            return
        import torch.distributed as dist

        with self._lost_process_reported():
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                store=_rendezvous(self).next_store(),
                rank=self.rank,
                world_size=self.world_size,
                timeout=_WAIT,
                device_id=device if gpu else None,
            )
            yield
        # Only after success: with a process gone, the barrier would wait for it. All leave together: a process that is
        # still reading when another one closes its connections ends with an error.
        dist.barrier()
        dist.destroy_process_group()

    @contextlib.contextmanager
    def _lost_process_reported(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            lost = Unavailable(
                f"process {self.rank} of {self.world_size} lost another one: {reason(error)}",
                fix="see why that one ended; torchrun --max-restarts N goes on from the last checkpoint by itself",
            )
            lost.common = True
            raise lost from error

    def on_all_ranks(self, compute: Callable[[], T]) -> T:
        """Calls `compute` on every rank and returns this rank's value once all calls have returned.

        Only errors are exchanged, so the value may be anything. It needs no connection.

        Raises:
            ToolkitError: `compute` raised it on this rank or another; then on all of them.
            Unavailable: A process died, or could not be reached.
        """
        if self.world_size == 1:
            return compute()
        computed: list[T] = []
        failed: ToolkitError | None = None
        try:
            computed.append(compute())
        except ToolkitError as error:
            failed = error
        with self._lost_process_reported():
            store = _rendezvous(self).next_store()
            store.set(str(self.rank), base64.b64encode(pickle.dumps(failed)).decode())
            errors = [pickle.loads(base64.b64decode(store.get(str(rank)))) for rank in range(self.world_size)]
        for rank, raised in enumerate(errors):
            if isinstance(raised, ToolkitError):
                if rank:
                    raised.message = f"process {rank} of {self.world_size}: {raised.message}"
                raise self.as_common(raised)
        return computed[0]

    def local_main_first(self, compute: Callable[[], T]) -> T:
        """As ``on_all_ranks``, but local rank 0 of each machine goes first: the others find what it downloads."""
        computed: list[T] = []

        def compute_first() -> None:
            if self.local_rank == 0:
                computed.append(compute())

        self.on_all_ranks(compute_first)
        return self.on_all_ranks(lambda: computed[0] if computed else compute())

    def as_common(self, error: ToolkitError) -> ToolkitError:
        """Marks an error that every rank raises, so that only rank 0 reports it."""
        error.common = self.world_size > 1
        return error

    def mark_started(self, run: str) -> None:
        """Records that these processes have started a run, for those that torchrun may start in their place."""
        if self.elastic:
            _rendezvous(self).lasting_store.set(f"started {run}", "yes")

    def was_started(self, run: str) -> bool:
        """Whether these processes, or those that torchrun restarted them for, have started a run."""
        return self.store_is_new or (self.elastic and bool(_rendezvous(self).lasting_store.check([f"started {run}"])))

    def broadcast(self, compute: Callable[[], T]) -> T:
        """Calls `compute` on rank 0 and returns its value, pickled in between, on every rank.

        Raises:
            ToolkitError: `compute` raised it on rank 0; then on all ranks.
        """
        if self.world_size == 1:
            return compute()
        import torch.distributed as dist

        sent: list[Any] = [None]
        if self.is_main:
            try:
                sent = [compute()]
            except ToolkitError as error:
                sent = [_Raised(error)]
        dist.broadcast_object_list(sent, src=0)
        if isinstance(sent[0], _Raised):
            raise self.as_common(sent[0].error)
        received: T = sent[0]
        return received

    def all_gather(self, value: T) -> list[T]:
        """Returns the values of all ranks, by rank; each is pickled in between."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def all_reduce(self, *values: torch.Tensor) -> None:
        """Replaces each tensor by its sum over the ranks."""
        if self.world_size > 1:
            import torch.distributed as dist

            for value in values:
                dist.all_reduce(value)

    def average_batch_norm(self, module: nn.Module) -> None:
        """Replaces the running statistics of batch norm by their mean over the ranks.

        Each rank computes them on its own pictures. They are moving averages, so their mean is what one process would
        have that averages over the parts of the batch at every step.
        """
        if self.world_size > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.all_reduce(buffer)
                    buffer.div_(self.world_size)

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Returns a module whose gradients are averaged over the ranks, and which starts from the weights of rank 0."""
        if self.world_size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # Running statistics are averaged once an epoch, not copied from rank 0 at every step.
        return DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)


SINGLE_PROCESS = ProcessGroup()
"""A training in one process."""


@dataclass(frozen=True)
class _Raised:
    error: ToolkitError


@final
class _Rendezvous:
    """The key-value stores through which the processes exchange messages: theirs alone, and torchrun's lasting one."""

    def __init__(self, store: Store, lasting_store: Store) -> None:
        self._store = store
        self.lasting_store = lasting_store
        self._numbers = itertools.count()

    def next_store(self) -> Store:
        """Returns a store for one purpose; every process must request its stores in the same order."""
        import torch.distributed as dist

        return dist.PrefixStore(f"purpose {next(self._numbers)}", self._store)  # type: ignore[attr-defined]


@functools.cache  # a process has one rendezvous in its life
def _rendezvous(group: ProcessGroup) -> _Rendezvous:
    """Returns the rendezvous of these processes, and of none that ran before them.

    torchrun keeps one store for all its restarts, so a process could read in it the address of one that is dead, and
    connect to that. So each process draws a name, rank 0 publishes all names that it reads, and only when every process
    has confirmed its own name do they start, in a part of the store that is named after them.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    whole, _, _ = next(rendezvous("env://", group.rank, group.world_size, timeout=_WAIT))
    store = PrefixStore("resnet-onnx", whole)
    own = uuid.uuid4().hex
    store.set(f"name {group.rank}", own)
    deadline = time.monotonic() + _WAIT.total_seconds()
    while time.monotonic() < deadline:
        if group.is_main:
            names = [store.get(f"name {rank}").decode() for rank in range(group.world_size)]
            store.set("names", json.dumps(names))
        else:
            names = json.loads(store.get("names"))
        if len(names) == group.world_size and names[group.rank] == own:
            members = hashlib.sha256(" ".join(names).encode()).hexdigest()
            store.set(f"{members} {group.rank}", "confirmed")
            if _all_confirmed(store, members, group):
                return _Rendezvous(PrefixStore(members, store), store)
        time.sleep(_POLL_S)
    raise Unavailable(
        f"process {group.rank} of {group.world_size} has not met all others in "
        f"{_WAIT.total_seconds() / 60:.0f} minutes",
        fix="start the same command on every machine, with the same --nnodes and --rdzv-endpoint",
    )


def _all_confirmed(store: Store, members: str, group: ProcessGroup) -> bool:
    complete = f"{members} complete"
    if group.is_main and store.check([f"{members} {rank}" for rank in range(group.world_size)]):
        store.set(complete, "yes")
    return bool(store.check([complete]))


def _is_lost_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    # gloo's own errors are plain RuntimeErrors that name its source file or the connection.
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(w in text for w in ("gloo", "connection closed by peer", "nccl"))
