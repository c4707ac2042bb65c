"""The processes of one training: which one this is, and what they tell each other.

``torchrun`` starts them and says who is who in the environment; a training that it did not start is alone, and nothing
here then does anything.
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

from runtimes.errors import RuntimeUnavailable, ToolkitError, Unavailable, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")

_WAIT = datetime.timedelta(minutes=30)
"""How long a process waits for the others: the first one may test on many pictures, or write to a slow disk."""

_GLANCE_S = 0.02
"""Between two looks at what others have said."""


@final
@dataclass(frozen=True, kw_only=True)
class Peers:
    """The processes of a training, as one of them sees them.

    Attributes:
        rank: Place of this process, from 0; the first one writes the files.
        count: Processes, on all machines.
        local_rank: Place among the processes of this machine.
        local_count: Processes on this machine.
        elastic: Whether torchrun started them, which may start them anew after one died.
        final: Whether torchrun will start none anew any more.
        restarted: Whether it started these in the place of others, and with them a store that knows nothing of those:
            some of its rendezvous backends do.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    elastic: bool = False
    final: bool = True
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
            restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            peers = cls(
                rank=int(os.environ["RANK"]),
                count=int(os.environ["WORLD_SIZE"]),
                local_rank=int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
                local_count=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])),
                elastic="TORCHELASTIC_RUN_ID" in os.environ,
                final=restarts >= int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")),
                restarted=restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            )
        except ValueError as error:
            raise UsageError(
                f"what torchrun says in the environment (RANK, WORLD_SIZE, …) is no number: {error}"
            ) from error
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
        import torch

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
        import torch

        gpu = device.type == "cuda"
        if gpu and device.index is not None:  # what asks for "the" GPU means this one
            torch.cuda.set_device(device)
        if self.count == 1:
            yield
            return
        import torch.distributed as dist

        with self._losses_told():
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                store=_meeting(self).room(),
                rank=self.rank,
                world_size=self.count,
                timeout=_WAIT,
                device_id=device if gpu else None,
            )
            yield
        # Only after a good end: with a peer gone, taking leave of it would wait for it. All leave together: who is
        # still reading when another closes its connections ends with an error.
        dist.barrier()
        dist.destroy_process_group()

    @contextlib.contextmanager
    def _losses_told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_about_peers(error):
                raise
            lost = Unavailable(
                f"process {self.rank} of {self.count} lost another one: {' '.join(str(error).split())[:200]}",
                fix="see why that one ended; torchrun --max-restarts N goes on from the last checkpoint by itself",
            )
            lost.common = True
            raise lost from error

    def agree(self, make: Callable[[], T]) -> T:
        """Returns what `make` returns in this process, once it has returned in every one; needs no connection.

        Raises:
            ToolkitError: What it raised in the first of the processes in which it failed; then in all of them.
            Unavailable: A process died, or could not be reached.
        """
        if self.count == 1:
            return make()
        made: list[T] = []
        failed: ToolkitError | None = None
        try:
            made.append(make())
        except ToolkitError as error:
            failed = error
        with self._losses_told():
            room = _meeting(self).room()
            room.set(str(self.rank), base64.b64encode(pickle.dumps(failed)).decode())
            said = [pickle.loads(base64.b64decode(room.get(str(rank)))) for rank in range(self.count)]
        for rank, problem in enumerate(said):
            if isinstance(problem, ToolkitError):
                if rank:
                    problem.message = f"process {rank} of {self.count}: {problem.message}"
                raise self.together(problem)
        return made[0]

    def agree_in_turn(self, make: Callable[[], T]) -> T:
        """As ``agree``, but one process of each machine goes first: what it downloads is there for the others."""
        made: list[T] = []

        def make_first() -> None:
            if self.local_rank == 0:
                made.append(make())

        self.agree(make_first)
        return self.agree(lambda: made[0] if made else make())

    def together(self, error: ToolkitError) -> ToolkitError:
        """Marks an error that every process raises, so that only the first one reports it."""
        error.common = self.count > 1
        return error

    def begin(self, what: str) -> None:
        """Notes that these processes begin something, for those that torchrun may start in their place."""
        if self.elastic:
            _meeting(self).board.set(f"begun {what}", "yes")

    def has_begun(self, what: str) -> bool:
        """Whether these processes, or those in whose place torchrun has started them, have begun it."""
        return self.restarted or (self.elastic and bool(_meeting(self).board.check([f"begun {what}"])))

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
            raise self.together(said[0].error)
        shared: T = said[0]
        return shared

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, by rank."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

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
        return DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)


ALONE = Peers()
"""A training in one process."""


@dataclass(frozen=True)
class _Raised:
    error: ToolkitError


@final
class _Meeting:
    """Where the processes find each other: what one sets in a store, the others get.

    Args:
        store: Of these processes alone.
        board: What is written there outlives them, as long as torchrun runs.
    """

    def __init__(self, store: Any, board: Any) -> None:
        self._store = store
        self.board = board
        self._rooms = itertools.count()

    def room(self) -> Any:
        """Returns a store for one purpose; every process must ask for its rooms in the same order."""
        import torch.distributed as dist

        return dist.PrefixStore(f"room {next(self._rooms)}", self._store)  # type: ignore[attr-defined]


@functools.cache  # there is one meeting in the life of a process
def _meeting(peers: Peers) -> _Meeting:
    """Returns the meeting of these processes, and of none that ran before them.

    torchrun keeps one store for all its restarts, so that a process could find in it where one that is dead used to
    listen, and call there. So each draws a name, the first one calls out all names that it sees, and only when every
    one called has answered to its own name do they begin, in a part of the store that is named after them.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    whole, _, _ = next(rendezvous("env://", peers.rank, peers.count, timeout=_WAIT))
    store = PrefixStore("resnet-onnx", whole)
    own = uuid.uuid4().hex
    store.set(f"here {peers.rank}", own)
    deadline = time.monotonic() + _WAIT.total_seconds()
    while time.monotonic() < deadline:
        if peers.first:
            names = [store.get(f"here {rank}").decode() for rank in range(peers.count)]
            store.set("called", json.dumps(names))
        else:
            names = json.loads(store.get("called"))
        if len(names) == peers.count and names[peers.rank] == own:
            who = hashlib.sha256(" ".join(names).encode()).hexdigest()
            store.set(f"{who} {peers.rank}", "answers")
            if _begun(store, who, peers):
                return _Meeting(PrefixStore(who, store), store)
        time.sleep(_GLANCE_S)
    raise Unavailable(
        f"process {peers.rank} of {peers.count} has not met all others in {_WAIT.total_seconds() / 60:.0f} minutes",
        fix="start the same command on every machine, with the same --nnodes and --rdzv-endpoint",
    )


def _begun(store: Any, who: str, peers: Peers) -> bool:
    begins = f"{who} begins"
    if peers.first and store.check([f"{who} {rank}" for rank in range(peers.count)]):
        store.set(begins, "now")
    return bool(store.check([begins]))


def _is_about_peers(error: RuntimeError) -> bool:
    import torch.distributed as dist

    # gloo's own errors are plain RuntimeErrors that name its source file or the connection.
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(w in text for w in ("gloo", "connection closed by peer", "nccl"))
