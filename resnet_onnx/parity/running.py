"""Runs a target on all inputs; what gold computes is kept in the cache."""

from __future__ import annotations

import hashlib
import itertools
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx.parity.records import Records
from runtimes import files
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
    """Returns gold's outputs, from the cache where they were computed before.

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
    try:
        return _recalled(path)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        pass  # not there, or damaged: computed again
    truth = run(gold, batches).outputs
    with files.atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as target:
        for number, record in enumerate(truth):
            for place, (name, array) in enumerate(record.items()):
                with target.open(f"{number}.{place}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
                with target.open(f"{number}.{place}.name", "w") as member:
                    member.write(name.encode())
        target.comment = f"{len(truth)} batches".encode()
    return truth


def _recalled(path: Path) -> Records:
    kept = Records()
    with zipfile.ZipFile(path) as source:
        members = set(source.namelist())
        for number in range(int(source.comment.split()[0])):
            record = {}
            for place in itertools.count():
                if f"{number}.{place}.npy" not in members:
                    break
                with source.open(f"{number}.{place}.npy") as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                record[source.read(f"{number}.{place}.name").decode()] = array
            kept.append(record)
    return kept
