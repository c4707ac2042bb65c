"""The network before any change, and how what others compute differs from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.optimization.pictures import prepared_batches
from resnet_onnx.workflow.feeds import feeds_of, need_preprocessing, sample_feeds, takes_pictures
from resnet_onnx.workflow.measuring import fixed_batch
from resnet_onnx.workflow.opening import target
from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.request import Model
from runtimes.base import Runtime
from runtimes.errors import ToolkitError, reason
from runtimes.registry import DEFAULT_RUNTIME, open_target
from runtimes.spec import Feeds, RuntimeOptions, Target, check_rows

if TYPE_CHECKING:
    from resnet_onnx.data.datasets import PictureSet

Outputs = Mapping[str, NDArray[Any]]

_SAMPLES = 128
"""Sample pictures where no data is named."""

_KEPT_BYTES = 2**28

_AT_ONCE = 4


class DoesNotCompute(Exception):
    """A form raised, or gave something else than rows of outputs; the text says what."""


@dataclass(kw_only=True, eq=False)
class Original:
    """The network before any change, opened on the runtime that a user meets first; use it as a context manager.

    Attributes:
        model: The network.
        outputs: The model's output for each class of the data; None where accuracy can't be judged.
    """

    model: Model
    outputs: NDArray[np.int64] | None = None
    _opened: Runtime | None = None
    _kept: dict[tuple[int, tuple[int, ...]], list[Outputs]] = field(default_factory=dict)

    def __enter__(self) -> Original:
        return self

    def __exit__(self, *error: object) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def deciding(self) -> str:
        """The output whose highest value is a decision."""
        opened = self._open()
        return (self.model.scores.output or opened.outputs[0]).name

    def run(self, feeds: Feeds) -> Outputs:
        """Returns what the network computes."""
        return self._open().run(feeds)

    def computed(self, feeds: Feeds) -> Outputs:
        """Returns what the network computes of pictures, a few at a time whatever their number.

        So a runtime that is itself the network's, and wrong at some batch size, is not held against itself there.
        """
        if fixed_batch(self.model) is not None or not takes_pictures(self.model):
            return self.run(feeds)
        (name, array), *_ = feeds.items()
        parts = [self.run({name: array[start : start + _AT_ONCE]}) for start in range(0, len(array), _AT_ONCE)]
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    def compared(
        self, other: Target, pictures: PictureSet | None, sizes: Sequence[int], *, labelled: bool = True
    ) -> Comparison:
        """Compares what a form computes with what the network does, in batches of the given sizes.

        Args:
            other: The form.
            pictures: None takes crops of the sample photos, or seeded numbers.
            sizes: Of the batches, in turn.
            labelled: Whether to count who is right.

        Raises:
            DoesNotCompute: The form fails, or its outputs have no row for each picture.
        """
        found = Comparison()
        key = (id(pictures), tuple(sizes))
        kept = self._kept.get(key, [])
        expected: list[Outputs] = []
        with contextlib.ExitStack() as stack:
            with _told():
                opened = stack.enter_context(open_target(other))
            for number, (feeds, count, labels) in enumerate(self._batches(pictures, sizes)):
                outputs = kept[number] if number < len(kept) else self.computed(feeds)
                expected.append(outputs)
                with _told():
                    cast = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in opened.inputs}
                    theirs = opened.run(cast)
                    if pictures is not None or takes_pictures(self.model):
                        check_rows(theirs, len(next(iter(feeds.values()))), who=other.source.name)
                self._add(found, outputs, theirs, count, labels if labelled else None)
        if sum(array.nbytes for each in expected for array in each.values()) < _KEPT_BYTES:
            self._kept[key] = expected
        return found

    def _add(
        self, found: Comparison, ours: Outputs, theirs: Outputs, count: int, labels: NDArray[np.int64] | None
    ) -> None:
        names = [self.deciding, *(name for name in ours if name != self.deciding)]
        if len(ours) == len(theirs) == 1:
            theirs = {self.deciding: next(iter(theirs.values()))}
        if missing := [name for name in names if name not in theirs]:
            raise DoesNotCompute(f"output {', '.join(missing)} is missing")
        mine, other = ([np.atleast_1d(outputs[name])[:count] for name in names] for outputs in (ours, theirs))
        if wrong := [name for name, a, b in zip(names, mine, other, strict=True) if a.shape != b.shape]:
            shapes = next(
                f"{list(b.shape)}, expected {list(a.shape)}"
                for a, b in zip(mine, other, strict=True)
                if a.shape != b.shape
            )
            raise DoesNotCompute(f"output '{wrong[0]}' has shape {shapes}")
        found.add(mine, other, labels)

    def _batches(
        self, pictures: PictureSet | None, sizes: Sequence[int]
    ) -> Iterator[tuple[Feeds, int, NDArray[np.int64] | None]]:
        """Yields feeds, how many of their samples count, and the right outputs where they are known."""
        fixed = fixed_batch(self.model)
        if pictures is None:
            done = turn = 0
            while done < _SAMPLES or turn < len(sizes):
                size = fixed or sizes[turn % len(sizes)]
                yield sample_feeds(self.model, size, seed=turn), size, None
                done, turn = done + size, turn + 1
            return
        from resnet_onnx.data.feeds import filled

        for found, places in prepared_batches(pictures, need_preprocessing(self.model), [fixed] if fixed else sizes):
            labels = None if self.outputs is None else self.outputs[pictures.labels[places]]
            yield feeds_of(self.model, filled(found, fixed)), len(places), labels

    def _open(self) -> Runtime:
        if self._opened is None:
            options = RuntimeOptions(spin=False)
            self._opened = open_target(target(self.model, DEFAULT_RUNTIME, device=None, options=options, batches=()))
        return self._opened


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns whatever the code of a runtime raises into ``DoesNotCompute``."""
    try:
        yield
    except ToolkitError as error:
        raise DoesNotCompute(error.message) from error
    except (KeyboardInterrupt, DoesNotCompute):
        raise
    except Exception as error:  # the code of somebody else
        raise DoesNotCompute(f"{type(error).__name__}: {reason(error)}") from error
