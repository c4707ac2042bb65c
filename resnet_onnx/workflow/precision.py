"""Changing a model's precision: calibrating on real pictures, choosing, and a gate that nothing lossy passes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_onnx import __version__
from resnet_onnx.parity.budget import LABELLED_NEEDED, LEAST_SQNR_DB, MAX_DROP
from resnet_onnx.workflow.feeds import feeds_of, picture_input, sample_feeds, specs
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.request import METADATA_PREFIX, Model, refuse_special
from resnet_onnx.workflow.resolving import classes_of
from runtimes import files
from runtimes.errors import BadData, CheckFailed, UnsupportedModel, UsageError
from runtimes.registry import open_runtime
from runtimes.spec import Feeds, ModelSource, RuntimeOptions

if TYPE_CHECKING:
    from converters.calibration import Method, Observed
    from converters.int8 import Plan
    from resnet_onnx.data.datasets import PictureSet

Precision = Literal["fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8")

DEFAULT_COUNT = 512
"""Calibration pictures: more changed no decision of the measured networks."""

_HELD_OUT = 5_000
_CHOOSING = 1_024
_CORRECTING = 128
"""Pictures over which the mean of each layer is taken, and on which the correction must show its worth."""
_BATCH = 32
_CALIBRATION_BYTES = 2**28
"""Of all values of a batch that calibration looks at together."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a conversion should be.

    Attributes:
        to: The precision.
        calibration: Data set; None takes crops of sample photos, where nothing better can be asked for.
        method: How ranges are found: ``minmax``, ``entropy``, ``percentile``, ``mse``, or ``auto``: the best of them
            by agreement with fp32 on pictures that calibration did not see.
        count: Calibration pictures.
        seed: Of their choice.
        held_out: At most so many pictures for the gate.
        max_drop: Largest loss of top-1 that passes, in points.
        min_speedup: Least speed over fp32 on each of `runtimes`; None measures none.
        runtimes: Where `min_speedup` is measured.
        keep_fp32: Patterns of names of layers that stay in float32.
        half_io: Whether inputs and outputs become half too.
        per_channel: Weight scales per output channel.
    """

    to: Precision
    calibration: str | None = None
    method: str = "auto"
    count: int = DEFAULT_COUNT
    seed: int = 0
    held_out: int = _HELD_OUT
    max_drop: float = MAX_DROP
    min_speedup: float | None = None
    runtimes: tuple[str, ...] = ("ort-cpu", "openvino")
    keep_fp32: tuple[str, ...] = ()
    half_io: bool = False
    per_channel: bool = True

    def __post_init__(self) -> None:
        if self.to not in PRECISIONS:
            raise UsageError(f"precision is {', '.join(PRECISIONS)}, not '{self.to}'")
        if self.half_io and self.to == "int8":
            raise UsageError("--half-io is for fp16 and bf16; inputs and outputs of an int8 file stay float32")
        if not self.max_drop > 0:
            raise UsageError(f"--max-drop must be more than 0 points, not {self.max_drop}")
        if self.min_speedup is not None and not 0 < self.min_speedup < math.inf:
            raise UsageError(f"--min-speedup must be a number above 0, not {self.min_speedup}")
        unfit = [name for name in self.runtimes if name not in ("ort-cpu", "openvino", "ort-cuda")]
        if self.min_speedup is not None and unfit:
            raise UsageError(
                f"--min-speedup compares ONNX files, and {', '.join(unfit)} can't run both of them",
                fix="--runtime ort-cpu, openvino or ort-cuda; measure others with resnet-onnx bench and compare",
            )


@dataclass(kw_only=True)
class Comparison:
    """Outputs of a candidate beside those of the float32 model, on the same pictures.

    Attributes:
        images: Pictures compared.
        equal: Pictures with the same top-1 decision.
        signal: Energy of the float32 outputs.
        noise: Energy of the differences; infinite where an output is not finite.
        only_fp32: Labelled pictures that float32 alone gets right.
        only_candidate: Labelled pictures that the candidate alone gets right.
        both: Labelled pictures that both get right.
        labelled: Labelled pictures.
    """

    images: int = 0
    equal: int = 0
    signal: float = 0.0
    noise: float = 0.0
    only_fp32: int = 0
    only_candidate: int = 0
    both: int = 0
    labelled: int = 0

    @property
    def agreement(self) -> float:
        """Share of equal decisions."""
        return self.equal / max(1, self.images)

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio of the outputs, decibels."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(max(self.signal, 1e-300) / self.noise) if math.isfinite(self.noise) else -math.inf

    @property
    def drop(self) -> float:
        """Loss of top-1, in points; negative where the candidate is better."""
        return 100 * (self.only_fp32 - self.only_candidate) / max(1, self.labelled)

    def add(self, expected: NDArray[Any], found: NDArray[Any], labels: NDArray[np.int64] | None) -> None:
        """Adds a batch of outputs, [picture, …]."""
        a = expected.reshape(len(expected), -1).astype(np.float64)
        b = found.reshape(len(found), -1).astype(np.float64)
        self.images += len(a)
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((a - b) ** 2)) if np.isfinite(b).all() else math.inf
        first, second = a.argmax(axis=1), np.where(np.isfinite(b).all(axis=1), b.argmax(axis=1), -1)
        self.equal += int((first == second).sum())
        if labels is None:
            return
        right, still = first == labels, second == labels
        self.labelled += len(labels)
        self.both += int((right & still).sum())
        self.only_fp32 += int((right & ~still).sum())
        self.only_candidate += int((still & ~right).sum())

    def drop_interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of the drop, in points.

        Of the difference of two matched proportions, with half a picture added to each of the four counts: Agresti and
        Min, Statistics in Medicine 24(5), 2005.
        """
        count = self.labelled + 2
        lost, won = self.only_fp32 + 0.5, self.only_candidate + 0.5
        middle = (lost - won) / count
        deviation = math.sqrt(max(0.0, (lost + won) - (lost - won) ** 2 / count)) / count
        return 100 * (middle - 1.959964 * deviation), 100 * (middle + 1.959964 * deviation)


def convert(model: Model, output: Path, wishes: Wishes, *, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Converts a float32 model to another precision and writes it, if it passes the gate.

    Args:
        model: The model; exported first where it has no ONNX form yet.
        output: Where to write.
        wishes: What is wanted.
        progress: Told what is being done.

    Returns:
        What ``--json`` carries: ``path, precision, agreement, size_ratio`` and how they came about.

    Raises:
        CheckFailed: It loses too much, or is too slow; nothing was written.
        UsageError: The model is not float32, or the data don't fit it.
        UnsupportedModel: It can't be converted.
    """
    if model.precision != "fp32":
        raise UsageError(
            f"{model.name} is {model.precision} already", fix="convert the float32 model that it was made from"
        )
    if wishes.min_speedup is not None:
        from runtimes.registry import require_all

        require_all(wishes.runtimes)
    source = files.check_onnx(onnx_path(model))
    if output.resolve() == source.path.resolve():
        raise UsageError(f"--output {output} is the model itself, which stays as it is", fix="name another file")
    data = _Pictures(model, wishes)
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as name:
        work = _Work(model=model, source=source, wishes=wishes, data=data, folder=Path(name), progress=progress)
        candidate, details = _int8(work) if wishes.to == "int8" else _half(work)
        progress("comparing with fp32 on pictures held out")
        forms = work.forms(candidate)
        compared = work.compare(forms, data.held_out())
        judged = compared[work.judge]
        gate = _judge(work, judged, details)
        speed = _speed(work, candidate) if wishes.min_speedup is not None else None
        record = {
            "to": wishes.to,
            "from_sha256": source.sha256,
            "made_by": f"resnet-onnx {__version__}",
            "agreement": judged.agreement,
            "gate": gate,
            **details["record"],
        }
        from converters import graph

        graph.set_metadata(candidate, {METADATA_PREFIX + "conversion": json.dumps(_plain(record))})
        written = graph.write(
            output, candidate, {"made_by": f"resnet-onnx {__version__}", "conversion": _plain(record)}
        )
    return {
        "path": str(output),
        "sha256": written.sha256,
        "precision": wishes.to,
        "agreement": judged.agreement,
        "agreement_images": judged.images,
        "agreement_runtime": work.judge,
        "size_ratio": written.size_bytes / _total_bytes(source),
        "size_bytes": written.size_bytes,
        "sqnr_db": judged.sqnr_db,
        "opset": written.opset,
        "model": model.name,
        "gate": gate,
        "speed": speed,
        "source": {"path": str(source.path), "sha256": source.sha256, "size_bytes": source.size_bytes},
        **details["shown"],
    }


def _total_bytes(checked: files.CheckedModel) -> int:
    return checked.size_bytes + sum((checked.path.parent / name).stat().st_size for name in checked.external_data)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- pictures --------------------------------------------------------------------------------------------------------


Judged = tuple[Feeds, int | None, NDArray[np.int64] | None]
"""Feeds, how many of their samples count (None: all), and the right outputs where they are known."""

_FEW = 64
"""With fewer pictures held out than three times this, those that choose between methods judge too."""


class _Pictures:
    """Which pictures calibrate, which choose between methods, and which judge.

    None serves twice, but where a set without splits is small: then those that choose also judge.
    """

    def __init__(self, model: Model, wishes: Wishes) -> None:
        self._model, self._wishes = model, wishes
        self._calibrating: PictureSet | None = None
        self._judging: PictureSet | None = None
        self._choosing: PictureSet | None = None
        self._targets: NDArray[np.int64] | None = None
        self.pictures = picture_input(specs(model)) is not None and model.preprocessing is not None
        if wishes.calibration is None:
            if wishes.to == "int8" and model.trained is not False:
                raise UsageError(
                    "int8 takes its ranges from real pictures, and none were named",
                    fix="--calibration D: a folder or .zip of pictures like those that the model will see",
                )
            return
        if not self.pictures:
            raise UsageError(f"{model.name} takes no RGB pictures, so that --calibration can't be used")
        self._split(wishes.calibration)

    def _split(self, name: str) -> None:
        from resnet_onnx.data.datasets import open_dataset
        from resnet_onnx.data.labels import match_classes

        refuse_special(Path(name), BadData)
        wishes = self._wishes
        train = open_dataset(name, split="train")
        order = np.random.default_rng(wishes.seed).permutation(len(train))
        if train.split is None:
            used = min(wishes.count, max(1, 4 * len(train) // 5))
            rest = order[used:]
            if not len(rest):
                raise BadData(f"--calibration '{name}' has one picture, and some must be held out", fix="name more")
            # Pictures that choose between methods must not judge the choice, where there are enough of both.
            apart = min(_CHOOSING, len(rest) // 3)
            choosing, kept = (rest[:apart], rest[apart:]) if apart >= _FEW else (rest, rest)
            judging = train.subset(np.sort(kept[: wishes.held_out]))
        else:
            used = min(wishes.count, len(train))
            choosing = order[used : used + _CHOOSING]
            test = open_dataset(name, split="test")
            size = min(len(test), wishes.held_out)
            judging = test.subset(np.arange(size) * len(test) // size)
            if not len(choosing):
                choosing = order[:used]
        self._calibrating = train.subset(order[:used])
        self._choosing = train.subset(choosing[:_CHOOSING])
        self._judging = judging
        if judging.labelled and len(judging) >= LABELLED_NEEDED and self._model.trained is not False:
            checked = files.check_onnx(onnx_path(self._model))
            labels = self._model.labels
            classes = classes_of(checked.outputs) or len(labels or judging.classes)
            self._targets = match_classes(judging.classes, labels, classes)[judging.labels]

    def described(self) -> dict[str, Any]:
        """Returns what the record says of the calibration pictures."""
        if self._calibrating is None:
            return {"data": "crops of sample photos", "images": self._wishes.count, "seed": self._wishes.seed}
        seen = hashlib.sha256()
        for index in range(len(self._calibrating)):
            data = self._calibrating.read(index).data
            seen.update(hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).digest())
        return {
            "data": self._calibrating.name,
            "images": max(len(self._calibrating), self._wishes.count if self._crops else 0),
            "files": len(self._calibrating),
            "seed": self._wishes.seed,
            "sha256": seen.hexdigest(),
        }

    @property
    def _crops(self) -> bool:
        """Whether there are fewer files than calibration pictures asked for, so that each is cropped several times."""
        found = self._calibrating
        side = self._model.preprocessing.image_size if self._model.preprocessing else 0
        return found is not None and len(found) < self._wishes.count and side >= 64 and self._wishes.to == "int8"

    def calibration(self, batch: int) -> Iterator[Feeds]:
        """Yields feeds of the calibration pictures."""
        count = self._wishes.count if self._wishes.to == "int8" else min(self._wishes.count, 64)
        if self._calibrating is None:
            size = self._model.form.batch or batch
            for start in range(0, count, size):
                yield sample_feeds(self._model, size, seed=self._wishes.seed + start)
            return
        if self._crops:
            yield from self._cropped(count, batch)
            return
        for feeds, _ in self._batches(self._calibrating.subset(np.arange(min(count, len(self._calibrating)))), batch):
            yield feeds

    def _cropped(self, count: int, batch: int) -> Iterator[Feeds]:
        from resnet_onnx.data.pictures import decode
        from resnet_onnx.data.transforms import prepare

        found, preprocessing = self._calibrating, self._model.preprocessing
        if found is None or preprocessing is None:
            return
        random = np.random.default_rng(self._wishes.seed)
        size = self._model.form.batch or batch
        for start in range(0, count, size):
            pictures = []
            for number in range(start, start + size):
                item = found.read(number % len(found))
                pixels = decode(item.data, item.name) if isinstance(item.data, bytes) else item.data
                if number >= len(found):
                    height, width = pixels.shape[:2]
                    side = max(1, round(min(height, width) * random.uniform(0.5, 1.0)))
                    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
                    pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
                pictures.append(prepare(pixels, preprocessing))
            yield feeds_of(self._model, np.stack(pictures))

    def choosing(self) -> Iterator[Judged]:
        """Yields feeds of pictures that neither calibrate nor judge, where there are enough of them."""
        if self._choosing is None:
            for start in range(0, 64, 8):
                yield self._sample(8, 10_000 + start), None, None
            return
        for feeds, places in self._batches(self._choosing, _BATCH):
            yield feeds, len(places), None

    def held_out(self) -> Iterator[Judged]:
        """Yields feeds of the pictures that judge, and the right outputs where they are known."""
        if self._judging is None:
            for start in range(0, 64, 8):
                yield self._sample(8, 20_000 + start), None, None
            return
        for feeds, places in self._batches(self._judging, _BATCH):
            yield feeds, len(places), None if self._targets is None else self._targets[places]

    def _sample(self, size: int, seed: int) -> Feeds:
        return sample_feeds(self._model, self._model.form.batch or size, seed=self._wishes.seed + seed)

    def _batches(self, pictures: PictureSet, batch: int) -> Iterator[tuple[Feeds, NDArray[np.int64]]]:
        from resnet_onnx.data.batches import Batches

        preprocessing, fixed = self._model.preprocessing, self._model.form.batch
        if preprocessing is None:
            return
        with Batches(pictures, preprocessing, batch_size=fixed or batch, as_bytes=True, skip_bad=True) as found:
            for taken in found:
                whole, places = taken.pictures, taken.indices
                if not len(whole):
                    continue
                if fixed is not None and len(whole) < fixed:  # filled up; `places` says how many count
                    whole = np.resize(whole, (fixed, *whole.shape[1:]))
                yield feeds_of(self._model, whole), places


# ---- candidates ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Work:
    model: Model
    source: files.CheckedModel
    wishes: Wishes
    data: _Pictures
    folder: Path
    progress: Progress
    number: int = field(default=0)

    @property
    def judge(self) -> str:
        """The runtime whose outputs are judged: the one that a user meets first, or the one that runs bfloat16."""
        return "openvino" if self.wishes.to == "bf16" else "ort-cpu"

    def forms(self, candidate: Any) -> dict[str, tuple[str, Path]]:
        """Writes a candidate as the judging runtime opens it."""
        return {self.judge: (self.judge, self.draft(candidate, self.judge))}

    def draft(self, candidate: Any, runtime: str | None) -> Path:
        """Writes a candidate into the working folder, lowered for a runtime where that has a lowering."""
        import onnx

        from converters.lowering import lower

        self.number += 1
        path = self.folder / f"draft-{self.number}.onnx"
        if runtime is not None and self.wishes.to == "int8":
            copy = onnx.ModelProto()
            copy.CopyFrom(candidate)
            lower(copy, runtime)
            candidate = copy
        path.write_bytes(candidate.SerializeToString())
        return path

    def compare(
        self,
        forms: Mapping[str, tuple[str, Path]],
        batches: Iterator[Judged],
        most: int | None = None,
    ) -> dict[str, Comparison]:
        """Runs the float32 model and some forms on the same pictures, a batch at a time."""
        import contextlib

        options = RuntimeOptions(spin=False)
        found = {name: Comparison() for name in forms}
        with contextlib.ExitStack() as stack:
            gold = stack.enter_context(
                open_runtime("ort-cpu", ModelSource(path=self.source.path, label=self.model.name), options=options)
            )
            opened = {
                name: stack.enter_context(
                    open_runtime(runtime, ModelSource(path=path, label=f"{self.model.name} ({name})"), options=options)
                )
                for name, (runtime, path) in forms.items()
            }
            output = gold.outputs[0].name
            for feeds, count, labels in batches:
                expected = gold.run(feeds)[output][:count]
                for name, runtime in opened.items():
                    cast = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runtime.inputs}
                    found[name].add(expected, runtime.run(cast)[output][:count], labels)
                images = next(iter(found.values())).images
                self.progress(f"comparing with fp32: {images} pictures")
                if most is not None and images >= most:
                    break
        if not next(iter(found.values())).images:
            raise BadData(
                "none of the pictures held out could be read, so that nothing can be said of the result",
                fix="name other pictures: --calibration D",
            )
        return found


def _half(work: _Work) -> tuple[Any, dict[str, Any]]:
    from converters import graph, half

    to: Any = work.wishes.to
    work.progress(f"looking for layers that {to} does not hold")
    made = half.convert(
        graph.load(work.source),
        to,
        work.data.calibration(8),
        folder=work.folder,
        what=work.model.name,
        keep=work.wishes.keep_fp32,
        half_io=work.wishes.half_io,
        progress=work.progress,
    )
    kept = [{"node": row.node, "operator": row.operator, "reason": row.reason} for row in made.kept]
    shown = {"kept_fp32": kept, "converted_nodes": made.converted, "casts": made.casts}
    return made.model, {"record": {"kept_fp32": kept, "calibration": work.data.described()}, "shown": shown}


def _int8(work: _Work) -> tuple[Any, dict[str, Any]]:
    from converters import calibration, graph, int8

    wishes = work.wishes
    work.progress("preparing the graph")
    prepared = int8.prepared(graph.load(work.source), what=work.model.name)
    kept = _kept_layers(prepared, wishes)
    plan = int8.plan(prepared, keep_fp32=kept)
    observed = calibration.observe(
        prepared,
        plan.observed,
        work.data.calibration(_calibration_batch(prepared, plan)),
        folder=work.folder,
        what=work.model.name,
        progress=lambda done: work.progress(f"calibrating: {done} pictures"),
    )
    method, tried = _choose(work, plan, observed)
    ranges = observed.ranges(method)
    final, corrected = _corrected(work, plan, ranges)
    candidate = int8.quantise(final, ranges, per_channel=wishes.per_channel)
    record = {
        "method": method,
        "calibration": work.data.described(),
        "kept_fp32": sorted(kept),
        "ranges": {name: float(ranges[name]) for name in plan.observed},
        "per_channel": wishes.per_channel,
        "bias_corrected": corrected,
    }
    shown = {
        "method": method,
        "bias_corrected": corrected,
        "tried": tried,
        "calibration": record["calibration"],
        "kept_fp32": [{"node": name, "operator": "", "reason": "asked for"} for name in sorted(kept)],
        "layers": len(plan.layers),
        "ranges": record["ranges"],
        "weights": _weight_noise(prepared, plan, per_channel=wishes.per_channel),
        "activations": [
            {"tensor": name, "sqnr_db": _range_noise_db(observed, name, ranges[name])} for name in plan.observed
        ],
    }
    # A layer by itself is measured with the biases as they were: the corrections are for all layers together.
    return candidate, {"record": record, "shown": shown, "plan": plan, "ranges": ranges}


def _corrected(work: _Work, plan: Plan, ranges: Mapping[str, float]) -> tuple[Plan, bool]:
    """Returns the plan with corrected biases where that lowers the noise of the outputs, and whether it did."""
    from converters import calibration, int8

    work.progress("correcting biases")
    per_channel = work.wishes.per_channel
    model, names = int8.with_shifts(plan, ranges, per_channel=per_channel)
    batch = max(1, _calibration_batch(plan.model, plan) // 2)
    feeds = itertools.islice(work.data.calibration(batch), max(1, _CORRECTING // batch))
    means = calibration.mean_values(model, list(names.values()), feeds, folder=work.folder, what=work.model.name)
    changed = int8.corrected(plan, {layer: means[name] for layer, name in names.items()})
    forms = {
        name: (work.judge, work.draft(int8.quantise(one, ranges, per_channel=per_channel), work.judge))
        for name, one in (("as it was", plan), ("corrected", changed))
    }
    found = work.compare(forms, work.data.choosing(), most=_CORRECTING)
    for _, path in forms.values():
        path.unlink()
    better = found["corrected"].sqnr_db > found["as it was"].sqnr_db
    return (changed if better else plan), better


def _kept_layers(prepared: Any, wishes: Wishes) -> set[str]:
    from converters import half, int8
    from converters.graph import Graph

    if not wishes.keep_fp32:
        return set()
    return set().union(*half.check_patterns(Graph(prepared), wishes.keep_fp32, int8.PRODUCTS))


def _calibration_batch(prepared: Any, plan: Plan) -> int:
    """Returns how many pictures fit into the memory that calibration may use at once."""
    from converters.graph import shapes

    known = shapes(prepared)
    values = sum(math.prod(e for e in known.get(name, ())[1:] if isinstance(e, int)) for name in plan.observed)
    return max(1, min(_BATCH, _CALIBRATION_BYTES // max(1, 4 * values)))


def _choose(work: _Work, plan: Plan, observed: Observed) -> tuple[Method, list[dict[str, Any]]]:
    """Returns the method to use; ``auto`` measures each on pictures that calibration did not see."""
    from converters import int8
    from converters.calibration import METHODS

    if work.wishes.method != "auto":
        chosen: Any = work.wishes.method
        return chosen, []
    work.progress("choosing the method")
    forms: dict[str, tuple[str, Path]] = {}
    for method in METHODS:
        made = int8.quantise(plan, observed.ranges(method), per_channel=work.wishes.per_channel)
        forms[method] = (work.judge, work.draft(made, work.judge))
    compared = work.compare(forms, work.data.choosing())
    for _, path in forms.values():
        path.unlink()
    rows = [{"method": name, "agreement": c.agreement, "sqnr_db": c.sqnr_db} for name, c in compared.items()]
    highest = max(found.agreement for found in compared.values())
    images = max(1, next(iter(compared.values())).images)
    # Differences within the sampling error of so many pictures say nothing; there the outputs' noise decides, which
    # every picture contributes to.
    error = math.sqrt(max(highest * (1 - highest), 1 / images) / images)
    alike = [name for name in METHODS if compared[name].agreement >= highest - 2 * error]
    return max(alike, key=lambda name: compared[name].sqnr_db), rows


def _weight_noise(prepared: Any, plan: Plan, *, per_channel: bool) -> list[dict[str, Any]]:
    from converters import int8
    from converters.graph import Graph, name_of

    graph = Graph(prepared)
    rows = []
    for node in int8.products(graph):
        weight = graph.array(node.input[1])
        if name_of(node) in plan.layers and weight is not None:
            noise = int8.weight_sqnr_db(node, weight, per_channel=per_channel)
            rows.append({"layer": name_of(node), "sqnr_db": noise})
    return rows


def _range_noise_db(observed: Observed, name: str, threshold: float) -> float:
    histogram = observed.histograms[name]
    signal = float(np.sum(histogram.counts * histogram.centres**2) / max(1, histogram.counts.sum()))
    noise = histogram.noise(threshold)
    return math.inf if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)


def sensitivity(work: _Work, plan: Plan, ranges: Mapping[str, float], *, images: int = 16) -> list[dict[str, Any]]:
    """Measures what each layer costs by itself: the outputs' signal-to-noise ratio with that layer alone in int8.

    Returns:
        Rows of ``layer`` and ``sqnr_db``, the most sensitive layer first.
    """
    from converters import int8

    rows = []
    for number, layer in enumerate(plan.layers):
        work.progress(f"measuring layers alone: {number + 1} of {len(plan.layers)}")
        alone = int8.plan(plan.model, keep_fp32=set(plan.layers) - {layer})
        made = int8.quantise(alone, ranges, per_channel=work.wishes.per_channel)
        path = work.draft(made, work.judge)
        found = work.compare({layer: (work.judge, path)}, work.data.choosing(), most=images)[layer]
        path.unlink()
        rows.append({"layer": layer, "sqnr_db": found.sqnr_db})
    return sorted(rows, key=lambda row: float(row["sqnr_db"]))


# ---- the gate --------------------------------------------------------------------------------------------------------


def _judge(work: _Work, found: Comparison, details: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how the gate was passed, or raises ``CheckFailed`` naming the layers that cost most."""
    wishes = work.wishes
    if found.labelled >= LABELLED_NEEDED:
        low, high = found.drop_interval()
        gate: dict[str, Any] = {
            "kind": "top1",
            "images": found.labelled,
            "fp32_top1": (found.both + found.only_fp32) / found.labelled,
            "top1": (found.both + found.only_candidate) / found.labelled,
            "drop_points": found.drop,
            "drop_ci95": [low, high],
            "max_drop_points": wishes.max_drop,
            "sqnr_db": found.sqnr_db,
        }
        if high <= wishes.max_drop and math.isfinite(found.noise):
            return gate
        problem = (
            f"{wishes.to} loses {found.drop:.2f} points of top-1 (95 % interval {low:.2f} to {high:.2f}) on "
            f"{found.labelled} pictures held out, allowed are {wishes.max_drop:g}"
        )
    else:
        gate = {
            "kind": "sqnr",
            "images": found.images,
            "sqnr_db": found.sqnr_db,
            "least_sqnr_db": LEAST_SQNR_DB,
            "agreement": found.agreement,
        }
        if found.sqnr_db >= LEAST_SQNR_DB:
            return gate
        problem = (
            f"{wishes.to} has a signal-to-noise ratio of {found.sqnr_db:.1f} dB at its outputs on {found.images} "
            f"pictures held out, needed are {LEAST_SQNR_DB:g}"
        )
    if wishes.to != "int8":
        raise CheckFailed(f"{problem}; nothing was written", fix="keep the layers that need it: --keep-fp32 PATTERN")
    worst = sensitivity(work, details["plan"], details["ranges"])[:3]
    named = ", ".join(f"{row['layer']} ({row['sqnr_db']:.0f} dB)" for row in worst)
    advice = [f"--keep-fp32 '{worst[0]['layer']}'"]
    if not wishes.per_channel:
        advice.append("scales per channel (leave --per-tensor out)")
    if wishes.method != "auto":
        advice.append("--method auto")
    advice.append("more or other calibration pictures")
    raise CheckFailed(
        f"{problem}; nothing was written. Layers that cost most by themselves: {named}", fix=", ".join(advice)
    )


def _speed(work: _Work, candidate: Any) -> dict[str, Any]:
    """Measures fp32 and the candidate, interleaved, on each runtime; raises ``CheckFailed`` where it is too slow."""
    from resnet_onnx.bench.measure import Contender, Plan, measure

    wishes = work.wishes
    least = wishes.min_speedup or 0.0
    batch = work.model.form.batch or 8
    contenders = []
    for runtime in wishes.runtimes:
        plain = ModelSource(path=work.source.path, label=f"{work.model.name} fp32")
        changed = ModelSource(path=work.draft(candidate, runtime), label=f"{work.model.name} {wishes.to}")
        contenders += [Contender(runtime=runtime, source=plain), Contender(runtime=runtime, source=changed)]
    feeds = sample_feeds(work.model, batch, seed=wishes.seed)
    rows = measure(contenders, feeds, Plan(batches=(batch,)), progress=work.progress)
    found = {}
    for runtime, slow, fast in zip(wishes.runtimes, rows[::2], rows[1::2], strict=True):
        for row in (slow, fast):
            if row.error is not None:
                raise row.error
        before, after = slow.seconds_per_run(), fast.seconds_per_run()
        if before is None or after is None:
            raise UnsupportedModel(f"{runtime}: too few runs to measure a speed")
        found[runtime] = {
            "speedup": before.median / after.median,
            "fp32_images_per_second": batch / before.median,
            "images_per_second": batch / after.median,
        }
    slow_ones = [f"{name} {row['speedup']:.2f}×" for name, row in found.items() if row["speedup"] < least]
    if slow_ones:
        raise CheckFailed(
            f"{wishes.to} is not {least:g}× as fast as fp32 at batch {batch}: {', '.join(slow_ones)}; nothing was "
            "written",
            fix="another precision, fewer layers in --keep-fp32, or a lower --min-speedup",
        )
    return {"batch": batch, "min_speedup": least, "runtimes": found}


def export_half(model: Model, output: Path, precision: Any, *, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Exports a network and converts it to half precision in one step.

    Returns:
        What ``export`` returns of the verified float32 file, with path, hash, size and precision of the converted one,
        and ``conversion``: what ``convert`` returns.
    """
    from resnet_onnx.workflow.onnx_form import export

    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as name:
        plain = Path(name) / output.name
        result = export(model, plain)
        converted = convert(replace(model, onnx=plain), output, Wishes(to=precision), progress=progress)
    converted["source"] = {**converted["source"], "path": None}
    return {
        **result,
        **{key: converted[key] for key in ("path", "sha256", "precision", "size_bytes", "opset")},
        "conversion": converted,
    }


def default_output(model: Model, to: str) -> Path:
    """Returns the name of a converted file where none was given."""
    return Path(f"{model.name}-{to}.onnx")


def build_lowered(model: Model, runtime: str, output: Path | None, *, exact: bool = False) -> dict[str, Any]:
    """Makes an int8 model's form for one runtime, in the cache or as a file to deploy.

    Args:
        model: An int8 model in the portable form.
        runtime: Who will load it.
        output: Where to copy it; None leaves it in the cache.
        exact: Clip where the portable file clips.

    Returns:
        ``path, key, seconds, cached`` and what was changed.

    Raises:
        UsageError: There is nothing to lower, or `output` is the model itself.
    """
    from converters import graph
    from converters.lowering import lowered_file
    from resnet_onnx.bench.clock import Watch

    if model.precision != "int8":
        raise UsageError(
            f"there is nothing to build for runtime '{runtime}': it loads the ONNX file itself "
            f"where that is {model.precision}",
            fix=f"make the ONNX file: resnet-onnx export, or an int8 one: resnet-onnx convert {model.name} --to int8",
        )
    checked = files.check_onnx(onnx_path(model))
    watch = Watch()
    made = lowered_file(checked, runtime, exact=exact)
    if made is None:
        raise UsageError(
            f"{checked.path} is not in the portable int8 form (signed bytes with zero point 0), so that {runtime} "
            "loads it as it is",
            fix="convert the float32 model: resnet-onnx convert MODEL --to int8",
        )
    path = made.path
    if output is not None:
        path = output / f"{model.name}-{runtime}.onnx" if output.is_dir() else output
        if path.resolve() == checked.path.resolve():
            raise UsageError(f"--output {output} is the model itself, which stays as it is", fix="name another file")
        graph.write(path, graph.load(made.checked), {"made_by": f"resnet-onnx {__version__}", "lowered_for": runtime})
    return {
        "path": str(path),
        "key": made.key,
        "seconds": watch.stop().wall_s,
        "cached": made.cached,
        "cache_path": str(made.path),
        "runtime": runtime,
        "model": model.name,
        "precision": model.precision,
        "exact": exact,
        "changes": dict(made.changes),
        "size_bytes": made.checked.size_bytes,
        "onnx": {"path": str(checked.path), "sha256": checked.sha256, "size_bytes": checked.size_bytes},
    }
