"""A stand-in for torch's CUDA half: devices, streams, events, memory and graphs that obey CUDA's rules on the CPU.

Work that a stream was given is done when somebody waits for it, and not before. Memory belongs to a device and to the
stream that it was reserved on: new memory holds garbage, and freed memory is filled with garbage in the order of that
stream, as torch's caching allocator gives it away. While a stream is captured, nothing may be reserved and nobody may
wait. What a program does against these rules gives garbage or is noted in ``VIOLATIONS``, which a test must find empty.

It is no GPU: it can't show that CUDA, or a library on it, does what they do here.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

NEW, FREED = 0xAB, 0xDD
"""What new and freed memory is filled with."""

DEVICES = 2

VIOLATIONS: list[str] = []
"""What CUDA leaves undefined and was done all the same."""

HOST = -1


class CudaError(RuntimeError):
    """An error as torch raises it."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}


_thread = _Thread()
_numbers = itertools.count(1)
STREAMS: dict[int, Stream] = {}
BLOCKS: dict[int, Block] = {}


def index_of(device: Any) -> int:
    return int(str(device).partition(":")[2] or 0)


class Stream:
    """Work in the order in which it came."""

    def __init__(self, device: Any = "cuda:0") -> None:
        if index_of(device) >= DEVICES:
            raise CudaError("CUDA error: invalid device ordinal")
        self.device, self.cuda_stream = index_of(device), next(_numbers)
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.steps = 0
        STREAMS[self.cuda_stream] = self

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        forbid_in_capture("waiting for a stream")
        while self.queue:
            work = self.queue.pop(0)
            work()


_DEFAULT = [Stream(f"cuda:{index}") for index in range(DEVICES)]


def current_stream() -> Stream:
    return _thread.streams.get(_thread.device, _DEFAULT[_thread.device])


def forbid_in_capture(what: str) -> None:
    if any(stream.captured is not None for stream in list(STREAMS.values())):
        raise CudaError(f"CUDA error: operation not permitted when stream is capturing ({what})")


class Block:
    """One piece of memory; it stays mapped after it was freed, so that a wrong access is told and does not crash."""

    def __init__(self, size: int, device: int, stream: Stream | None) -> None:
        self.memory = np.full(max(size, 1), NEW, np.uint8)
        self.device, self.stream, self.live = device, stream, True
        self.users: set[Stream] = set()
        BLOCKS[self.address] = self

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data)

    def free(self) -> None:
        """In the order of the streams that it belongs to, or that copy from or to it if it is the host's."""
        waiting = [s for s in self.users if s.queue] if self.stream is None else [self.stream]
        left = len(waiting) or 1

        def poison() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self.memory.fill(FREED)
                self.live = False

        if not any(stream.queue for stream in waiting):
            left = 0
            poison()
            return
        for stream in waiting:
            stream.queue.append(poison)


def block_at(address: int, device: int, what: str) -> Block:
    """Returns the memory at an address; notes where a kernel on `device` must not touch it."""
    block = BLOCKS[address]
    if not block.live:
        VIOLATIONS.append(f"{what} touched freed memory")
    if block.device != device:
        VIOLATIONS.append(f"{what} on cuda:{device} touched memory of cuda:{block.device}")
    return block


class Bytes:
    """A tensor of bytes whose copies go through the stream that is current when they are asked for."""

    def __init__(self, block: Block, start: int, stop: int, owner: Any = None) -> None:
        self._block, self._start, self._stop = block, start, stop
        self._owner = owner  # a view keeps the whole alive
        if owner is None:
            weakref.finalize(self, block.free)

    def __getitem__(self, part: slice) -> Bytes:
        start, stop, _ = part.indices(self.numel())
        return Bytes(self._block, self._start + start, self._start + stop, self._owner or self)

    def numel(self) -> int:
        return self._stop - self._start

    def data_ptr(self) -> int:
        return self._block.address + self._start

    def numpy(self) -> Any:
        assert self._block.device == HOST, "can't convert a CUDA tensor to numpy"
        return self._block.memory[self._start : self._stop]

    def copy_(self, other: Bytes, *, non_blocking: bool = False) -> None:
        target, source = self._block, other._block
        mine, theirs = slice(self._start, self._stop), slice(other._start, other._stop)
        stream = current_stream()

        def copy() -> None:
            stream.steps += 1
            for block in (target, source):
                if not block.live:
                    VIOLATIONS.append("a copy touched freed memory")
                if block.device not in (HOST, stream.device):
                    VIOLATIONS.append(f"a copy on cuda:{stream.device} touched memory of cuda:{block.device}")
            target.memory[mine] = source.memory[theirs]

        for block in (target, source):
            block.users.add(stream)
        stream.add(copy)
        if not non_blocking:
            stream.synchronize()


class Event:
    """Reads, when its stream comes to it, a clock that each step of work moves on by a millisecond."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self._timing = enable_timing
        self._stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._stream = found = stream or current_stream()
        found.add(lambda: setattr(self, "at_ms", float(found.steps)))

    def synchronize(self) -> None:
        assert self._stream is not None
        self._stream.synchronize()

    def elapsed_time(self, other: Event) -> float:
        assert self._timing
        return other.at_ms - self.at_ms


class Graph:
    def replay(self) -> None:
        stream = current_stream()
        for work in self.work:
            stream.add(work)


class FakeTorch:
    """What the adapter uses of torch."""

    uint8 = torch.uint8
    allocated: list[int] = []  # noqa: RUF012  (one list for the whole test, reset by it)
    out_of_memory = False
    emptied = 0

    @classmethod
    def empty(cls, size: int, *, dtype: Any, device: str | None = None, pin_memory: bool = False) -> Bytes:
        assert dtype is torch.uint8
        assert pin_memory is (device is None), "pageable memory makes every copy wait"
        if cls.out_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        forbid_in_capture("reserving memory")
        cls.allocated.append(size)
        if device is None:
            return Bytes(Block(size, HOST, None), 0, size)
        with cls.cuda.device(device):
            return Bytes(Block(size, index_of(device), current_stream()), 0, size)

    class cuda:  # noqa: N801  (torch's own name)
        Stream = Stream
        CUDAGraph = Graph
        Event = Event

        class device:  # noqa: N801
            """May be entered again and again, as torch's."""

            def __init__(self, name: Any) -> None:
                self._index = index_of(name)

            def __enter__(self) -> None:
                self._before, _thread.device = _thread.device, self._index

            def __exit__(self, *error: object) -> None:
                _thread.device = self._before

        @staticmethod
        @contextlib.contextmanager
        def stream(stream: Stream) -> Iterator[None]:
            with FakeTorch.cuda.device(f"cuda:{stream.device}"):
                before = _thread.streams.get(stream.device)
                _thread.streams[stream.device] = stream
                try:
                    yield
                finally:
                    _thread.streams[stream.device] = before or _DEFAULT[stream.device]

        @staticmethod
        @contextlib.contextmanager
        def graph(graph: Graph, *, stream: Stream) -> Iterator[None]:
            assert not stream.queue, "nothing may be in flight when a capture begins"
            stream.captured = []
            try:
                with FakeTorch.cuda.stream(stream):
                    yield
            finally:
                graph.work, stream.captured = stream.captured, None

        @staticmethod
        def empty_cache() -> None:
            FakeTorch.emptied += 1


def array_at(address: int, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Returns the elements at an address, as a kernel sees them."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (size,))
    return raw.view(dtype).reshape(shape)


def reset() -> None:
    """Forgets streams, memory and violations of an earlier test."""
    FakeTorch.allocated.clear()
    FakeTorch.out_of_memory, FakeTorch.emptied = False, 0
    VIOLATIONS.clear()
    BLOCKS.clear()
    STREAMS.clear()
    for stream in _DEFAULT:
        stream.queue.clear()
        STREAMS[stream.cuda_stream] = stream
