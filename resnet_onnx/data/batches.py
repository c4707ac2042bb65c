"""Batches of prepared pictures, decoded in worker processes while the caller computes.

Workers are started from a clean server process (``forkserver``; ``spawn`` where there is none), never forked from a
process in which a runtime may hold locks, so that it does not matter what has been opened before. They write into
shared memory that has no name, so that nothing is left behind however the program ends. The number of pictures on
their way is bounded: memory does not grow with the data set.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.data.pictures import decode
from resnet_onnx.data.transforms import Crops, prepare, ten_crops
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.results.document import SkippedPicture
from runtimes.errors import BadPicture, Unavailable, UsageError

_CHUNK_PIXELS = 16 * 224 * 224
"""Prepared pixels that a worker makes in one go: enough that handing over costs little beside decoding."""
_MAX_CHUNK = 128
_DECODER_MODULES = ("torchvision.io", "cykooz_resizer")
"""What decoding loads; the server process loads it once for all workers."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some pictures in the data set's order.

    Attributes:
        pictures: uint8 [n, size, size, 3], RGB; with ten crops [n, 10, size, size, 3].
        labels: int64 [n], index into the data set's classes, −1 where it has none.
        names: The pictures' names.
        indices: int64 [n], their places in the data set.
        skipped: What was left out since the batch before.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    indices: NDArray[np.int64]
    skipped: tuple[SkippedPicture, ...]


def prepared_picture(dataset: PictureSet, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Reads, decodes, resizes and crops one picture: uint8 [image_size, image_size, 3], RGB.

    Raises:
        BadPicture: It can't be read or decoded, or is refused.
    """
    return prepare(decoded_picture(dataset, index), preprocessing)


def decoded_picture(dataset: PictureSet, index: int) -> NDArray[np.uint8]:
    """Reads and decodes one picture: uint8 [height, width, 3], RGB; raises as ``prepared_picture``."""
    item = dataset.read(index)
    return decode(item.data, item.name) if isinstance(item.data, bytes) else item.data


def default_workers() -> int:
    """Returns the number of worker processes to use: one for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker_server() -> None:
    """Begins loading the decoder in the background, for a command that knows it will need workers soon.

    Calling it is never needed; it only hides the loading behind the opening of a runtime.
    """
    context = _context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with contextlib.suppress(OSError):  # it only saves time; who needs workers says what is wrong
            forkserver.ensure_running()


class Batches(Iterator[Batch]):
    """An iterator over a data set that decodes ahead; use it as a context manager, or run it to its end.

    Worker processes start, and begin to decode, when it is made. A script that asks for workers needs the usual
    ``if __name__ == "__main__":`` around its top level, since workers import the main module.

    Args:
        dataset: The pictures; those that are decoded already need no workers and start none.
        preprocessing: Of the model.
        crops: How many crops of each picture; see ``transforms.ten_crops``.
        batch_size: Pictures a batch; the last may have fewer, and others where bad pictures were left out.
        workers: Worker processes; 0 decodes in this process.
        skip_bad: Leave bad pictures out, counted and named in ``skipped``, instead of raising.
        take_turns: Decode a few batches on all cores while the caller waits, then leave the cores to the caller. For a
            caller that computes on the same cores: a worker that runs beside two computing threads stops both, since
            they wait for each other after every operator.

    Attributes:
        skipped: What was left out so far.

    Raises:
        UsageError: `batch_size` or `workers` is out of range.
        BadPicture: While iterating, and without `skip_bad`: a picture can't be used; the message names it.
        Unavailable: While iterating: a worker process died.
    """

    def __init__(
        self,
        dataset: PictureSet,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        crops: Crops = 1,
        workers: int = 0,
        skip_bad: bool = False,
        take_turns: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size must be at least 1, not {batch_size}")
        if workers < 0:
            raise UsageError(f"the number of workers must be 0 or more, not {workers}")
        self.skipped: list[SkippedPicture] = []
        self._dataset = dataset
        self._batch_size = batch_size
        job = _Job(dataset=dataset, preprocessing=preprocessing, crops=crops)
        self._shape = job.shape
        self._skip_bad = skip_bad
        self._reported = 0
        self._rest: deque[_Chunk] = deque()
        chunk = max(1, min(_MAX_CHUNK, _CHUNK_PIXELS // int(np.prod(self._shape[:-1]))))
        self._pool: _Pool | None = None
        if workers and len(dataset) and not dataset.in_memory:
            chunk = max(1, min(chunk, -(-len(dataset) // workers)))
            self._pool = _Pool(job, chunk=chunk, workers=workers, ahead=2 * batch_size, take_turns=take_turns)
            self._chunks: Iterator[_Chunk] = self._pool.chunks()
        else:
            self._chunks = _in_process(job, min(chunk, batch_size))

    def __next__(self) -> Batch:
        pictures = np.empty((self._batch_size, *self._shape), np.uint8)
        indices: list[int] = []
        while len(indices) < self._batch_size:
            chunk = self._rest.popleft() if self._rest else self._take_chunk()
            if chunk is None:
                break
            start = len(indices)
            taken, left = chunk.split(self._batch_size - start)
            if left is not None:
                self._rest.appendleft(left)
            self._note(taken.bad)
            pictures[start : start + len(taken.pictures)] = taken.pictures
            indices.extend(taken.indices)
        if not indices:
            self.close()
            raise StopIteration
        places = np.asarray(indices, dtype=np.int64)
        skipped, self._reported = tuple(self.skipped[self._reported :]), len(self.skipped)
        return Batch(
            pictures=pictures[: len(indices)],
            labels=self._dataset.labels[places],
            names=tuple(self._dataset.item_name(index) for index in indices),
            indices=places,
            skipped=skipped,
        )

    def _note(self, bad: list[tuple[int, BadPicture]]) -> None:
        for index, error in bad:
            if not self._skip_bad:
                self.close()
                raise error
            self.skipped.append(SkippedPicture(image=self._dataset.item_name(index), reason=error.message))

    def wait_for_first(self) -> int:
        """Waits until the first pictures are decoded, that is until the workers are up.

        Returns:
            How many pictures are decoded already; what is measured from here on has the others to decode.
        """
        if not self._rest and (chunk := self._take_chunk()) is not None:
            self._rest.append(chunk)
        waiting = sum(len(chunk.indices) for chunk in self._rest)
        return waiting + (self._pool.decoded() if self._pool is not None else 0)

    def _take_chunk(self) -> _Chunk | None:
        try:
            return next(self._chunks, None)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers; closing twice is fine."""
        self._chunks = iter(())
        self._rest.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass
class _Chunk:
    """Consecutive pictures of the data set: those that are good, and why the others are not."""

    indices: list[int]
    pictures: NDArray[np.uint8]
    bad: list[tuple[int, BadPicture]]

    def split(self, room: int) -> tuple[_Chunk, _Chunk | None]:
        """Cuts after `room` good pictures; bad ones go with the good ones before them."""
        if len(self.indices) <= room:
            return self, None
        border = self.indices[room]
        return (
            _Chunk(self.indices[:room], self.pictures[:room], [bad for bad in self.bad if bad[0] < border]),
            _Chunk(self.indices[room:], self.pictures[room:], [bad for bad in self.bad if bad[0] >= border]),
        )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is made of which pictures."""

    dataset: PictureSet
    preprocessing: Preprocessing
    crops: Crops

    @property
    def shape(self) -> tuple[int, ...]:
        """[height, width, channel] of a prepared picture, with the number of crops in front where there are ten."""
        side = self.preprocessing.image_size
        return (side, side, 3) if self.crops == 1 else (self.crops, side, side, 3)

    def prepare(self, start: int, stop: int, out: NDArray[np.uint8]) -> tuple[list[int], list[tuple[int, BadPicture]]]:
        """Writes the good pictures of a range to the front of `out`."""
        cut = prepare if self.crops == 1 else ten_crops
        good: list[int] = []
        bad: list[tuple[int, BadPicture]] = []
        for index in range(start, stop):
            try:
                out[len(good)] = cut(decoded_picture(self.dataset, index), self.preprocessing)
            except BadPicture as error:
                bad.append((index, error))
            else:
                good.append(index)
        return good, bad


def _in_process(job: _Job, chunk: int) -> Iterator[_Chunk]:
    for start in range(0, len(job.dataset), chunk):
        out = np.empty((chunk, *job.shape), np.uint8)
        good, bad = job.prepare(start, min(start + chunk, len(job.dataset)), out)
        yield _Chunk(good, out[: len(good)], bad)


class _Pool:
    """Worker processes and the shared memory that they write to, slot by slot."""

    def __init__(self, job: _Job, *, chunk: int, workers: int, ahead: int, take_turns: bool) -> None:
        context = _context()
        self._count = len(job.dataset)
        chunks = -(-self._count // chunk)
        slots = min(chunks, max(2 * workers, -(-ahead // chunk)) + 2)
        shape = (slots, chunk, *job.shape)
        memory: Any = context.RawArray(ctypes.c_uint8, int(np.prod(shape)))
        self._memory = np.frombuffer(memory, np.uint8).reshape(shape)
        self._free = list(range(slots))
        self._running: deque[tuple[Future[Any], int]] = deque()
        self._starts = iter(range(0, self._count, chunk))
        self._chunk = chunk
        self._take_turns = take_turns
        self._executor = ProcessPoolExecutor(
            max_workers=min(workers, chunks),
            mp_context=context,
            initializer=_start_worker,
            initargs=(job, memory, shape),
        )
        try:
            self._fill()
        except (OSError, EOFError) as error:  # the server that starts workers answers no more
            self.close()
            raise Unavailable(
                f"worker processes that decode pictures can't be started ({error or type(error).__name__}): the memory "
                "or the processes that this program may have are used up",
                fix="--workers 0 decodes in the main process",
            ) from error

    def _fill(self) -> None:
        while self._free and (start := next(self._starts, None)) is not None:
            slot = self._free.pop()
            future = self._executor.submit(_work, start, min(start + self._chunk, self._count), slot)
            self._running.append((future, slot))

    def chunks(self) -> Iterator[_Chunk]:
        """Yields the chunks in order; each one's memory is used again for a later one."""
        try:
            while self._running:
                if self._take_turns:
                    wait([future for future, _ in self._running])
                future, slot = self._running.popleft()
                good, bad = future.result()
                # The consumer may keep part of a chunk for its next batch, so the slot is not given away under it.
                yield _Chunk(good, self._memory[slot, : len(good)], bad)
                self._free.append(slot)
                if not (self._take_turns and self._running):
                    self._fill()
        except BrokenProcessPool as error:
            raise Unavailable(
                "a worker process that decodes pictures died (killed, or out of memory)",
                fix='use fewer workers (0 decodes in the main process); a script needs `if __name__ == "__main__":`',
            ) from error

    def decoded(self) -> int:
        """Returns how many pictures of finished chunks wait to be taken."""
        return sum(
            len(future.result()[0]) for future, _ in self._running if future.done() and future.exception() is None
        )

    def close(self) -> None:
        """Ends the workers."""
        for future, _ in self._running:
            future.cancel()
        self._running.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _context() -> BaseContext:
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__, *_DECODER_MODULES])
        return context
    return multiprocessing.get_context("spawn")


_worker: tuple[_Job, NDArray[np.uint8]]
"""What a worker process works on; set once when it starts."""


def _start_worker(job: _Job, memory: Any, shape: tuple[int, ...]) -> None:
    global _worker  # a pool's initializer has no other place to leave what the tasks need
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle; it ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    _worker = (job, np.frombuffer(memory, np.uint8).reshape(shape))


def _end_with_parent() -> None:
    """A parent that is killed can't end its workers; they watch for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(start: int, stop: int, slot: int) -> tuple[list[int], list[tuple[int, BadPicture]]]:
    job, memory = _worker
    return job.prepare(start, stop, memory[slot])
