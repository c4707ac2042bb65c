"""Labels and probabilities for pictures, as values and as a drawing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_onnx.data.batches import Batches, prepared_picture
from resnet_onnx.data.datasets import PictureSet, picture_files
from resnet_onnx.evaluation import PictureModel, Progress, probabilities
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.results.document import SkippedPicture
from resnet_onnx.results.evaluate import Candidate, PredictionRecord
from runtimes.base import Runtime
from runtimes.errors import BadData, BadModel, UsageError
from runtimes.files import atomic_file
from runtimes.text import shown as written_out

MAX_DRAWN = 48
"""Most pictures that one drawing shows."""

_WRONG = "#b3261e"
_COLUMNS = 4
_BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The predictions in the order of the pictures, and what was left out.

    Attributes:
        records: The likeliest classes of each picture.
        positions: The place of each picture in `pictures`.
        pictures: The set that they came from; ``draw`` reads them from there.
        preprocessing: How they were prepared.
        skipped: Pictures that can't be decoded, where skipping was requested.
        notes: What the user should know of how the pictures were found.
    """

    records: Sequence[PredictionRecord]
    positions: Sequence[int]
    pictures: PictureSet
    preprocessing: Preprocessing
    skipped: Sequence[SkippedPicture]
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[PredictionRecord]:
        return iter(self.records)


def predict(
    runtime: Runtime,
    sources: Sequence[Path] | PictureSet,
    preprocessing: Preprocessing,
    *,
    labels: Sequence[str] | None = None,
    scores: str | None = None,
    top_k: int = 5,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Predicts the classes of pictures.

    Args:
        runtime: The opened model.
        sources: Picture files and folders (with everything below them, in sorted order), or a set of pictures.
        preprocessing: The model's.
        labels: A name per output; without it classes are named by their index.
        scores: Name of the output that holds them; needed where several could, see ``data.scores.find_scores``.
        top_k: Classes a picture; at most as many as the model has.
        skip_bad: Leave pictures out that can't be decoded, counted and named, instead of raising.
        progress: Called after each batch.

    Raises:
        BadData: A source is not there or holds no picture, or none could be decoded.
        BadPicture: A picture can't be decoded, and `skip_bad` is not set.
        BadModel: The model is not a picture classifier, or gave NaN or Inf.
        UsageError: `top_k` is below 1, the labels are not as many as the scores, or several outputs could hold these.
    """
    if top_k < 1:
        raise UsageError(f"the number of classes to show must be at least 1, not {top_k}")
    pictures = sources if isinstance(sources, PictureSet) else picture_files(sources)
    model = PictureModel(runtime, preprocessing, scores=scores)
    found: list[PredictionRecord] = []
    positions: list[int] = []
    with Batches(
        pictures,
        preprocessing,
        batch_size=model.fixed_batch or min(_BATCH, len(pictures)),
        skip_bad=skip_bad,
    ) as batches:
        for batch in batches:
            rows = model.scores(batch.pictures)
            if labels is not None and len(labels) != rows.shape[1]:
                raise UsageError(
                    f"{runtime.source.name}: has {rows.shape[1]} outputs and {len(labels)} labels",
                    fix="give the model's own labels",
                )
            unusable = (np.isnan(rows) | np.isposinf(rows)).any(axis=1)
            if unusable.any():
                name = batch.names[int(unusable.argmax())]
                raise BadModel(f"{runtime.source.name}: gave NaN or Inf for {name}", fix="check it with parity")
            positions += batch.indices.tolist()
            for name, row in zip(batch.names, probabilities(rows), strict=True):
                likeliest = np.argsort(-row, kind="stable")[:top_k].tolist()
                top = tuple(
                    Candidate(
                        label=labels[best] if labels is not None else f"class {best}",
                        index=best,
                        probability=float(row[best]),
                    )
                    for best in likeliest
                )
                found.append(PredictionRecord(image=name, top=top))
            if progress is not None:
                progress(len(found) + len(batches.skipped), len(pictures))
        skipped = batches.skipped
    if not found:
        raise BadData(
            f"none of the {len(pictures)} pictures could be decoded" + (f"; {skipped[0].reason}" if skipped else "")
        )
    return Predictions(
        records=found,
        positions=positions,
        pictures=pictures,
        preprocessing=preprocessing,
        skipped=skipped,
        notes=pictures.notes,
    )


def draw(predictions: Predictions, out: Path) -> None:
    """Draws pictures as the model saw them, each with bars for its likeliest classes; a PNG.

    The title is the picture's name, followed by its class where the set has labels. At most ``MAX_DRAWN`` are drawn,
    and the drawing says how many there are.

    Raises:
        FileProblem: The file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, pictures = predictions.records[:MAX_DRAWN], predictions.pictures
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    most = max(len(prediction.top) for prediction in shown)
    bars_height = 0.25 * most + 0.1
    figure = Figure(figsize=(3.0 * columns + 0.4, rows * (3.3 + bars_height) + 0.4), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.8, bars_height] * rows)
    for place, prediction in enumerate(shown):
        row, column = divmod(place, columns)
        position = predictions.positions[place]
        picture = prepared_picture(pictures, position, predictions.preprocessing)
        above = figure.add_subplot(grid[2 * row, column])
        above.imshow(picture, interpolation="nearest" if picture.shape[0] < 64 else "antialiased")
        above.set_axis_off()
        name = Path(prediction.image).name
        is_class = pictures.classes[pictures.labels[position]] if pictures.labelled else None
        wrong = is_class is not None and _spelling(is_class) != _spelling(prediction.top[0].label)
        title = name if is_class is None else f"{'✗ ' * wrong}{name} · {is_class}"
        above.set_title(_plain(title, 34), fontsize=9, color=_WRONG if wrong else "black")
        below = figure.add_subplot(grid[2 * row + 1, column])
        below.set_xlim(0, 1)
        below.set_ylim(most - 0.5, -0.5)
        below.set_axis_off()
        for line, candidate in enumerate(prediction.top):
            below.barh(line, 1.0, height=0.86, color="#eef1f4")
            below.barh(line, candidate.probability, height=0.86, color="#7fb2e5" if line == 0 else "#c3d7eb")
            below.text(0.02, line, _plain(candidate.label, 30), va="center", fontsize=8.5)
            below.text(0.98, line, f"{candidate.probability:.1%}", va="center", ha="right", fontsize=8.5)
    figure.suptitle(_legend(predictions, len(shown), columns), fontsize=9)
    with atomic_file(Path(out)) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # a box stands for an unknown letter
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _legend(predictions: Predictions, drawn: int, columns: int) -> str:
    """Returns what the drawing shows: how much of the pictures, and what names, bars and the mark mean."""
    parts = [f"the first {drawn} of {len(predictions)} pictures"] if len(predictions) > drawn else []
    named = "name · its class, ✗ where the answer is another" if predictions.pictures.labelled else "name"
    return (" · " if columns > 2 else "\n").join(
        [*parts, f"above: {named}", "bars: probability of the likeliest classes"]
    )


def _spelling(name: str) -> str:
    """Returns a class's name without what people write differently: capitals, blanks and underscores."""
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _plain(text: str, width: int) -> str:
    """Shortens, and keeps matplotlib from reading a dollar sign as the start of a formula."""
    text = written_out(text)
    short = text if len(text) <= width else f"{text[: width - 1]}…"
    return short.replace("$", r"\$")
