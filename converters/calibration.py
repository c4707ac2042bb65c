"""How large the values of a network are on real data, and from which size on int8 should clip them.

One pass over the data fills a histogram per tensor, from which every method takes its threshold; memory does not grow
with the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from converters.graph import draft, expose
from runtimes.errors import CheckFailed, UsageError
from runtimes.registry import DEFAULT_RUNTIME, open_runtime
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

if TYPE_CHECKING:
    from onnx import ModelProto

Method = Literal["minmax", "entropy", "percentile", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

LEVELS = 127
"""Steps on each side of zero of a symmetric signed byte."""

PERCENTILE = 99.99
"""Share of the values that are not clipped, in percent (arXiv 2004.09602, section 5.1: it serves ResNets best)."""

BINS = 4096
_SAMPLES = 2**15
"""Values of a tensor that enter its histogram per sample; the largest value is always seen."""

_CANDIDATES = 160
_SMALLEST_SHARE = 0.1
"""MSE tries thresholds from this share of the largest value on."""


class Histogram:
    """Magnitudes of a tensor, in bins that widen as larger values come.

    Attributes:
        counts: int64 [BINS], how many magnitudes lie in each bin, exact zeros left out: they cost nothing.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.largest = 0.0
        self.zeros = 0
        self.negative = False

    def add(self, array: NDArray[Any]) -> None:
        """Counts a tensor whose first axis is the batch."""
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        self.negative |= low < 0
        largest = max(high, -low)
        self._make_room(largest)
        self.largest = max(self.largest, largest)
        if self.width == 0.0:
            self.zeros += array.size
            return
        flat = array.reshape(-1)
        # An odd stride walks through all columns of a picture; an even one would see some of them alone.
        stride = max(1, flat.size // (_SAMPLES * max(1, len(array)))) | 1
        magnitudes = np.abs(flat[::stride])
        present = magnitudes[magnitudes > 0]
        self.zeros += magnitudes.size - present.size
        places = np.minimum(np.divide(present, self.width, dtype=np.float64), BINS - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=BINS)

    def _make_room(self, largest: float) -> None:
        if self.width == 0.0:
            self.width = largest / BINS * 1.25
            return
        while largest >= self.width * BINS:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self.width *= 2

    @property
    def centres(self) -> NDArray[np.float64]:
        """Returns the magnitude in the middle of each bin, float64 [BINS]."""
        return np.asarray((np.arange(BINS) + 0.5) * self.width, np.float64)

    def threshold(self, method: Method) -> float:
        """Returns the magnitude from which on values are clipped; 1 for a tensor that is zero throughout."""
        if self.largest == 0.0 or not self.counts.any():
            return self.largest or 1.0
        if method == "minmax":
            return self.largest
        if method == "percentile":
            # Exact zeros are values too: leaving them out would clip less.
            reached = np.cumsum(self.counts) + self.zeros
            place = int(np.searchsorted(reached, PERCENTILE / 100 * reached[-1]))
            return float(min(self.largest, (place + 1) * self.width))
        return self._by_mse() if method == "mse" else self._by_entropy()

    def noise(self, threshold: float) -> float:
        """Returns the mean squared error of rounding to a signed byte, over values that are not exactly zero."""
        centres = self.centres
        step = threshold / LEVELS
        rounded = np.minimum(np.rint(centres / step), LEVELS) * step
        error = (centres - rounded) ** 2 + self.width**2 / 12
        return float(np.sum(self.counts * error) / max(1, self.counts.sum()))

    def _by_mse(self) -> float:
        tried = self.largest * np.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES)
        return float(tried[int(np.argmin([self.noise(float(threshold)) for threshold in tried]))])

    def _by_entropy(self) -> float:
        """The threshold whose rounded distribution tells least from the clipped one (Kullback and Leibler).

        S. Migacz, "8-bit inference with TensorRT", GTC 2017, with 128 levels for the magnitudes.
        """
        levels = LEVELS + 1
        used = min(BINS, int(np.ceil(self.largest / self.width)) + 1)
        counts = self.counts[:used].astype(np.float64)
        best, chosen = np.inf, used
        for stop in range(levels, used + 1, max(1, used // _CANDIDATES)):
            clipped = counts[:stop].copy()
            inside = clipped.copy()
            clipped[-1] += counts[stop:].sum()
            group = np.arange(stop) * levels // stop
            present = clipped > 0
            sums = np.bincount(group, weights=inside, minlength=levels)
            numbers = np.bincount(group, weights=present.astype(np.float64), minlength=levels)
            spread = np.where(present, (sums / np.maximum(numbers, 1))[group], 0.0)
            if not (spread > 0).any():
                continue
            p, q = clipped / clipped.sum(), np.maximum(spread / spread.sum(), 1e-12)
            divergence = float(np.sum(p[present] * np.log(p[present] / q[present])))
            if divergence < best:
                best, chosen = divergence, stop
        return float(min(self.largest, chosen * self.width))


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What calibration saw: a histogram by value, and how many samples were run."""

    histograms: Mapping[str, Histogram]
    samples: int

    def ranges(self, method: Method) -> dict[str, float]:
        """Returns a clipping threshold per value."""
        if method not in METHODS:
            raise UsageError(f"unknown calibration method '{method}': choose {', '.join(METHODS)}")
        return {name: histogram.threshold(method) for name, histogram in self.histograms.items()}


def runs(
    model: ModelProto,
    values: Sequence[str],
    batches: Iterable[Feeds],
    *,
    folder: Path,
    source: ModelSource,
    options: RuntimeOptions,
) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    """Runs a float32 model and yields some of its values and the number of samples, batch by batch.

    Args:
        model: The ``ModelProto``.
        values: Names of inputs of the model and of values inside it.
        batches: Feeds of the model; best a few samples each, since all values of a batch are in memory at once.
        folder: Where a temporary copy with these values as outputs may be written.
        source: Where the model came from, which messages name.
        options: What it is opened with.
    """
    path = folder / "observed.onnx"
    inputs = {value.name for value in model.graph.input}
    computed = [name for name in values if name not in inputs]
    # A network of one layer needs the range of its input alone, but a graph has to have an output.
    draft(path, expose(model, computed or [model.graph.output[0].name]))
    with open_runtime(DEFAULT_RUNTIME, source.rewritten(path), options=options) as runtime:
        for feeds in batches:
            found = {**runtime.run(feeds), **feeds}
            yield {name: found[name] for name in values}, max((len(a) for a in feeds.values() if a.ndim), default=1)
    path.unlink()


def require_finite(name: str, array: NDArray[Any], *, what: str) -> None:
    """Raises ``CheckFailed`` where a value of the float32 model is NaN or Inf."""
    if not np.isfinite(array).all():
        raise CheckFailed(
            f"{what}: the float32 model itself computes NaN or Inf at '{name}' on the calibration data",
            fix="check the weights and the pictures",
        )


def mean_values(
    model: ModelProto, values: Sequence[str], batches: Iterable[Feeds], *, folder: Path, source: ModelSource
) -> dict[str, NDArray[np.float64]]:
    """Returns the mean over the samples of values whose shape does not depend on the batch; arguments as ``runs``."""
    sums: dict[str, NDArray[np.float64]] = {}
    done = 0
    for found, samples in runs(model, values, batches, folder=folder, source=source, options=_UNSPUN):
        for name, array in found.items():
            sums[name] = sums.get(name, 0.0) + samples * array.astype(np.float64)
        done += samples
    return {name: total / max(1, done) for name, total in sums.items()}


def observe(
    model: ModelProto,
    values: Sequence[str],
    batches: Iterable[Feeds],
    *,
    folder: Path,
    source: ModelSource,
    progress: Callable[[int], None] = lambda _: None,
) -> Observed:
    """Counts the magnitudes of values of a float32 model; arguments as ``runs``, `progress` gets the samples done.

    Raises:
        CheckFailed: The model computes NaN or Inf on the data.
        UsageError: There are no data.
    """
    histograms = {name: Histogram() for name in values}
    done = 0
    for found, samples in runs(model, values, batches, folder=folder, source=source, options=_UNSPUN):
        for name, array in found.items():
            require_finite(name, array, what=source.name)
            histograms[name].add(array)
        done += samples
        progress(done)
    if not done:
        raise UsageError(f"{source.name}: there are no calibration pictures")
    return Observed(histograms=histograms, samples=done)


_UNSPUN = RuntimeOptions(spin=False)
