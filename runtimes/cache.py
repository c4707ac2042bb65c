"""What lies in the cache, by kind, and making it smaller."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes import engines, files, ort_gpu

KINDS = {
    "weights": "source weights, by content",
    "random": "notes on random weights",
    "onnx": "exported models",
    "converted": "models in another precision, made by optimize",
    "searches": "journals of optimize",
    "lowered": "int8 models in the form of one runtime",
    "engines": "engines of TensorRT and TensorRT for RTX, packages of torch-compile",
    ort_gpu.CACHE_FOLDER: "engines that ONNX Runtime built",
    "downloads": "downloaded weights",
    "datasets": "downloaded data sets",
    "gold": "float64 outputs that parity compares with",
    "peaks": "measured peaks of this machine",
}
"""The folders of the cache, and what is in them."""


@dataclass(frozen=True)
class Usage:
    """How much of the cache the files of one kind take (``other`` is the rest), and what they are."""

    kind: str
    files: int
    size_bytes: int
    about: str


@dataclass(frozen=True)
class Pruned:
    """One thing that was removed, by its name for people and its size."""

    name: str
    size_bytes: int


def usage() -> list[Usage]:
    """Returns the size of the cache by kind, known kinds first, whether there or not."""
    root = files.cache_root()
    counts = {kind: [0, 0] for kind in (*KINDS, "other")}
    for path in root.rglob("*") if root.is_dir() else ():
        try:
            if path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
        except OSError:
            continue  # removed by another process
        kind = path.relative_to(root).parts[0]
        count = counts[kind if kind in KINDS else "other"]
        count[0] += 1
        count[1] += size
    rows = [Usage(kind, number, size, KINDS.get(kind, "")) for kind, (number, size) in counts.items()]
    return [row for row in rows if row.kind != "other" or row.files]


def prune(max_bytes: int) -> list[Pruned]:
    """Removes engines unused for longest until all of them need at most `max_bytes`; damaged ones go first.

    ONNX Runtime's engines have what those of this project leave: they are built again without being asked for. Returns
    what was removed; engines in use or being built stay.

    Raises:
        UsageError: `max_bytes` is negative.
        FileProblem: The cache can't be written.
    """
    removed = [
        Pruned(f"{row.model or row.path.name} ({row.key.built_by}, {row.key.target})" if row.key.library
               else row.path.name, row.size_bytes)
        for row in engines.prune_engines(max_bytes)
    ]  # fmt: skip
    left = max(0, max_bytes - sum(row.size_bytes for row in engines.list_engines()))
    return removed + [
        Pruned(f"{row.path.name[:16]}… ({ort_gpu.CACHE_FOLDER})", row.size_bytes) for row in ort_gpu.prune_folders(left)
    ]
