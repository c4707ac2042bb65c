"""Runs a target on all inputs; what gold computes is kept in the cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.parity.records import Records
from runtimes import files
from runtimes.onnx_types import BFLOAT16
from runtimes.registry import open_target
from runtimes.spec import Feeds, Target


class Batches:
    """Feeds of one model, made anew each time they are iterated over, so that they need not all be in memory."""

    def __init__(self, make: Callable[[], Iterator[Feeds]], sizes: Sequence[int]) -> None:
        self._make = make
        self.sizes = list(sizes)

    def __iter__(self) -> Iterator[Feeds]:
        return self._make()


@dataclass(frozen=True)
class Ran:
    """What a target computed."""

    outputs: Records
    version: str = ""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def run(target: Target, batches: Iterable[Feeds]) -> Ran:
    """Runs all batches and keeps the outputs on disk; a scalar output gets a first axis of one."""
    start = time.monotonic()
    with open_target(target) as runtime:
        kept = Records(
            {name: array if array.ndim else array[None] for name, array in runtime.run(feeds).items()}
            for feeds in batches
        )
        return Ran(kept, runtime.version, dict(runtime.recorded), time.monotonic() - start)


def gold_outputs(gold: Target, batches: Batches, key: str | None) -> Records:
    """Returns gold's outputs, from the cache where they were computed before and are as they were.

    The key is what the outputs depend on besides the feeds; None keeps nothing.
    """
    if key is None:
        return run(gold, batches).outputs
    digest = hashlib.sha256(key.encode())
    for feeds in batches:
        for name, array in sorted(feeds.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    path = files.cache_dir("gold") / f"{digest.hexdigest()}.gold"
    with files.open_sealed(path) as kept:
        if kept is not None:
            return _recalled(kept)
    truth = run(gold, batches).outputs
    with files.atomic_file(path) as temporary:
        with open(temporary, "wb") as target:
            _keep(truth, target)
        files.seal(temporary)
    return truth


def _keep(records: Records, target: IO[bytes]) -> None:
    """Writes what ``_recalled`` reads: numbers, names and arrays as .npy, one behind the other."""
    np.save(target, np.int64(len(records)))
    for record in records:
        np.save(target, np.int64(len(record)))
        for name, array in record.items():
            np.save(target, np.frombuffer(name.encode(), np.uint8))
            np.save(target, np.frombuffer(array.dtype.name.encode(), np.uint8))
            np.save(target, array.view(np.uint16) if array.dtype == BFLOAT16 else array)


def _recalled(source: IO[bytes]) -> Records:
    def number() -> int:
        return int(np.load(source))

    def text() -> str:
        return bytes(np.load(source)).decode()

    def array() -> NDArray[Any]:
        dtype = text()
        found: NDArray[Any] = np.load(source, allow_pickle=False)
        return found.view(BFLOAT16) if dtype == BFLOAT16.name else found

    kept = Records()
    for _ in range(number()):
        kept.append({text(): array() for _ in range(number())})
    return kept
