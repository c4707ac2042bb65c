"""Arrays on disk, read back batch by batch, so that memory does not grow with the number of pictures."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import FileProblem
from runtimes.onnx_types import BFLOAT16

Outputs = Mapping[str, NDArray[Any]]


class Records:
    """A sequence of ``{name: array}``, one per batch, in a nameless temporary file that vanishes with the process.

    Iterate as often as needed; every record is read anew.
    """

    def __init__(self, records: Iterable[Outputs] = ()) -> None:
        self._file = tempfile.TemporaryFile(prefix="resnet-onnx-")  # noqa: SIM115  (closed with the object)
        weakref.finalize(self, self._file.close)
        self._index: list[dict[str, tuple[int, np.dtype[Any]]]] = []
        for record in records:
            self.append(record)

    def append(self, record: Outputs) -> None:
        """Writes one record behind the others; raises ``FileProblem`` where the temporary folder is full."""
        places = {}
        try:
            for name, array in record.items():
                places[name] = (self._file.seek(0, 2), array.dtype)
                # A .npy file does not know bfloat16.
                plain = array.view(np.uint16) if array.dtype == BFLOAT16 else array
                np.lib.format.write_array(self._file, plain, allow_pickle=False)
            self._file.flush()
        except OSError as error:
            raise FileProblem(
                f"the temporary folder {tempfile.gettempdir()} can't hold the outputs: {error.strerror or error}",
                fix="set TMPDIR to a folder with more room, or compare fewer --images",
            ) from error
        self._index.append(places)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        return (self._read(places) for places in self._index)

    def _read(self, places: Mapping[str, tuple[int, np.dtype[Any]]]) -> dict[str, NDArray[Any]]:
        record = {}
        for name, (place, dtype) in places.items():
            self._file.seek(place)
            record[name] = np.lib.format.read_array(self._file, allow_pickle=False).view(dtype)
        return record


def rebatched(records: Iterable[Outputs], sizes: Sequence[int]) -> Iterator[dict[str, NDArray[Any]]]:
    """Joins records [sample, …] along the first axis and cuts them anew into `sizes`; what is left over is dropped."""
    source = iter(records)
    held: dict[str, NDArray[Any]] = {}
    for size in sizes:
        while not held or len(next(iter(held.values()))) < size:
            more = next(source)
            held = {name: np.concatenate([held[name], array]) if held else array for name, array in more.items()}
        yield {name: array[:size] for name, array in held.items()}
        held = {name: array[size:] for name, array in held.items()}
