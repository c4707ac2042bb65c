"""Labels and probabilities for pictures, as values and as a drawing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.batches import Batches, Skipped, prepared_picture
from resnet_onnx.data.datasets import PictureSet, picture_files
from resnet_onnx.evaluation import PictureModel, Progress, probabilities
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.results.evaluate import Candidate, PredictionRecord
from runtimes.base import Runtime
from runtimes.errors import BadData, BadModel, UsageError
from runtimes.files import atomic_file

MAX_DRAWN = 48
"""Most pictures that one drawing shows."""

_COLUMNS = 4
_BATCH = 16


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, likeliest first.

    Attributes:
        image: The picture's path or name.
        top: The classes.
        pictures: The set that the picture came from; ``draw`` reads it from there.
        position: Its place in that set.
        preprocessing: How it was prepared.
    """

    image: str
    top: tuple[Candidate, ...]
    pictures: PictureSet = field(repr=False, compare=False)
    position: int = field(repr=False, compare=False)
    preprocessing: Preprocessing = field(repr=False, compare=False)

    def record(self) -> PredictionRecord:
        """Returns what ``--json`` carries."""
        return PredictionRecord(image=self.image, top=self.top)


class Predictions(Sequence[Prediction]):
    """The predictions in the order of the pictures, and what was left out.

    Attributes:
        skipped: Pictures that can't be decoded, where skipping was requested.
    """

    def __init__(self, predictions: Sequence[Prediction], skipped: Sequence[Skipped]) -> None:
        self._predictions = tuple(predictions)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self._predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self._predictions[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._predictions)


def predict(
    runtime: Runtime,
    sources: Sequence[Path] | PictureSet,
    preprocessing: Preprocessing,
    *,
    labels: Sequence[str] | None = None,
    top_k: int = 5,
    skip_bad: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> Predictions:
    """Predicts the classes of pictures.

    Args:
        runtime: The opened model.
        sources: Picture files and folders (with everything below them, in sorted order), or a set of pictures.
        preprocessing: The model's.
        labels: A name per output; without it classes are named by their index.
        top_k: Classes a picture; at most as many as the model has.
        skip_bad: Leave pictures out that can't be decoded, counted and named, instead of raising.
        workers: Processes that decode.
        progress: Called after each batch.

    Raises:
        BadData: A source is not there or holds no picture, or none could be decoded.
        BadPicture: A picture can't be decoded, and `skip_bad` is not set.
        BadModel: The model is not a picture classifier, or gave NaN or Inf.
        UsageError: `top_k` is below 1, or the labels are not as many as the outputs.
    """
    if top_k < 1:
        raise UsageError(f"the number of classes to show must be at least 1, not {top_k}")
    pictures = sources if isinstance(sources, PictureSet) else picture_files(sources)
    model = PictureModel(runtime, preprocessing)
    found: list[Prediction] = []
    with Batches(
        pictures,
        preprocessing,
        batch_size=model.fixed_batch or min(_BATCH, len(pictures)),
        workers=workers,
        skip_bad=skip_bad,
    ) as batches:
        for batch in batches:
            scores = model.scores(batch.pictures)
            if labels is not None and len(labels) != scores.shape[1]:
                raise UsageError(
                    f"{runtime.source.name}: has {scores.shape[1]} outputs and {len(labels)} labels",
                    fix="give the model's own labels",
                )
            unusable = (np.isnan(scores) | np.isposinf(scores)).any(axis=1)
            if unusable.any():
                name = batch.names[int(unusable.argmax())]
                raise BadModel(f"{runtime.source.name}: gave NaN or Inf for {name}", fix="check it with parity")
            for name, row, index in zip(batch.names, probabilities(scores), batch.indices, strict=True):
                top = tuple(
                    Candidate(
                        label=labels[best] if labels is not None else f"class {best}",
                        index=int(best),
                        probability=float(share),
                    )
                    for best, share in _likeliest(row, top_k)
                )
                found.append(Prediction(name, top, pictures, int(index), preprocessing))
            if progress is not None:
                progress(len(found) + len(batches.skipped), len(pictures))
        skipped = batches.skipped
    if not found:
        raise BadData(
            f"none of the {len(pictures)} pictures could be decoded" + (f"; {skipped[0].reason}" if skipped else "")
        )
    return Predictions(found, skipped)


def draw(predictions: Sequence[Prediction], out: Path) -> None:
    """Draws pictures as the model saw them, each with bars for its likeliest classes; a PNG.

    The title is the picture's name, followed by its class where the set has labels.

    At most ``MAX_DRAWN`` are drawn, and the drawing says how many there are.

    Args:
        predictions: What ``predict`` returned.
        out: Where to write it.

    Raises:
        BadData: There is nothing to draw.
        FileProblem: The file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not predictions:
        raise BadData("there are no predictions to draw")
    shown = list(predictions[:MAX_DRAWN])
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    most = max(len(prediction.top) for prediction in shown)
    bars_height = 0.25 * most + 0.1
    figure = Figure(figsize=(3.0 * columns + 0.4, rows * (3.3 + bars_height) + 0.4), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.8, bars_height] * rows)
    for place, prediction in enumerate(shown):
        row, column = divmod(place, columns)
        picture = prepared_picture(prediction.pictures, prediction.position, prediction.preprocessing)
        above = figure.add_subplot(grid[2 * row, column])
        above.imshow(picture, interpolation="nearest" if picture.shape[0] < 64 else "antialiased")
        above.set_axis_off()
        above.set_title(_plain(_title(prediction), 34), fontsize=9)
        below = figure.add_subplot(grid[2 * row + 1, column])
        below.set_xlim(0, 1)
        below.set_ylim(most - 0.5, -0.5)
        below.set_axis_off()
        for line, candidate in enumerate(prediction.top):
            below.barh(line, 1.0, height=0.86, color="#eef1f4")
            below.barh(line, candidate.probability, height=0.86, color="#7fb2e5" if line == 0 else "#c3d7eb")
            below.text(0.02, line, _plain(candidate.label, 30), va="center", fontsize=8.5)
            below.text(0.98, line, f"{candidate.probability:.1%}", va="center", ha="right", fontsize=8.5)
    if len(predictions) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(predictions)} pictures", fontsize=10)
    with atomic_file(Path(out)) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a box stands for an unknown letter
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _title(prediction: Prediction) -> str:
    """The file's name, and what the picture really shows where that is known."""
    name, pictures = Path(prediction.image).name, prediction.pictures
    return f"{name} · {pictures.classes[pictures.labels[prediction.position]]}" if pictures.labelled else name


def _plain(text: str, width: int) -> str:
    """Shortens, and keeps matplotlib from reading a dollar sign as the start of a formula."""
    short = text if len(text) <= width else f"{text[: width - 1]}…"
    return short.replace("$", r"\$")


def _likeliest(shares: NDArray[np.float64], count: int) -> list[tuple[int, float]]:
    order = np.argsort(-shares, kind="stable")[:count]
    return [(int(index), float(shares[index])) for index in order]
