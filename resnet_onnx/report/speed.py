"""What saved benchmarks say: which runtime is fastest, how sure that is, and how far from the machine's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar, Point, Roof
from resnet_onnx.report.columns import BenchTable, speed_text
from resnet_onnx.report.page import Chart, Section
from resnet_onnx.report.words import joined, listed
from resnet_onnx.results.bench import Bench, BenchRow, HarnessRecord
from resnet_onnx.results.commands import Finding
from resnet_onnx.results.document import Environment, Peaks, known

Rows = Sequence[BenchRow]

_SCOPES = {"device": "Device-resident work, nothing is copied.", "end-to-end": "Host array in, host array out."}
_FEWEST_FOR_SPREAD = 20
"""Fewer samples have no tails to show."""

_FEW_MODELS = 3
"""Up to so many, the page begins with a sentence on each."""

_MOST_BARS = 40
"""More do not fit into a drawing; the table has all of them."""


class Speed:
    """The benchmarks of one model on one machine, in whatever precisions and scopes.

    Args:
        documents: Results of ``bench`` that ``by_model`` put together, at least one.
        apart: What tells them from another ``Speed`` of the same name, or "".

    Attributes:
        model: The model's name, and what tells it apart.
        title: It with the precision, where there is only one.
        measured: The rows that have a speed.
        lost: The rows that were not measured to their end.
    """

    def __init__(self, documents: Sequence[Bench], apart: str = "") -> None:
        self._documents = documents
        found = [row for document in documents for row in document.results]
        self._document = {id(row): document for document in documents for row in document.results}
        self.model = documents[0].model.name + apart
        self._devices = len({row.device for row in found if row.device}) > 1
        self._precisions = len({row.precision for row in found}) > 1
        self._threads = len({row.cpu_threads for row in found}) > 1
        self._scopes = len({_scope(row) for row in found}) > 1
        self.title = self.model if self._precisions else f"{self.model} {found[0].precision}"
        self._rows = sorted(found, key=lambda row: (row.batch, row.streams, -row.speed))
        self.measured = [row for row in self._rows if row.speed and not row.error]
        self.lost = [row for row in self._rows if row.error]

    def best(self) -> BenchRow | None:
        """Returns the fastest row, or None where nothing was measured."""
        return max(self.measured, key=lambda row: row.speed, default=None)

    def findings(self, proven: Collection[tuple[str, str, str]]) -> list[Finding]:
        """Returns the fastest, what can't be trusted, and what is missing, a sentence each.

        Args:
            proven: Hash of the model file or its weights, precision and runtime of what was shown to compute the same.
        """
        best = self.best()
        if best is None:
            return [Finding(state="bad", text=f"{self.title}: nothing could be measured.")]
        rivals = [row for row in self.measured if _place(row) != _place(best) and not _clearly_faster(best, row)]
        shared = f", not told apart from {listed([self.label(row) for row in rivals[:3]])}" if rivals else ""
        text = f"{self.title}: {self.label(best)} is fastest with {speed_text(best)} images per second"
        text += f"{_against_torch(best, self.measured)}{shared}"
        model = self._document[id(best)].model
        if (model.sha256 or model.weights_sha256, best.precision, best.runtime) in proven:
            text += ", and computes the same function"
        found = [Finding(state="good" if best.stable else "doubt", text=f"{text}.")]
        doubtful = sum(not row.stable for row in self.measured)
        if doubtful:
            text = f"{self.title}: {doubtful} of {len(self.measured)} rows are not stable: the machine was disturbed "
            text += "or the interval is wide. They are hatched and marked ~."
            found.append(Finding(state="doubt", text=text))
        if self.lost:
            text = f"{self.title}: not measured to the end: {listed([self.label(row) for row in self.lost])}."
            found.append(Finding(state="doubt", text=text))
        return found

    def label(self, row: BenchRow) -> str:
        """Names a row in few words."""
        streams = f" × {row.streams}" if row.streams > 1 else ""
        precision = f" {row.precision}" if self._precisions else ""
        count = row.cpu_threads
        threads = f" · {count or 'all'} thread{'' if count == 1 else 's'}" if self._threads else ""
        threads += " · offline" if row.offline else " · server" if row.capacity is not None else ""
        threads += f" · LoadGen {row.harness.scenario}" if row.harness else ""
        threads += f" · {row.device}" if self._devices and row.device else ""
        host = " · host" if self._scopes and row.scope != "device" else ""
        included = "".join(f" + {name}" for name in row.includes)
        return f"{row.runtime}{precision} · batch {row.batch}{streams}{threads}{host}{included}"

    def section(self, palette: dict[str, str]) -> Section:
        """Returns the charts and the table."""
        table = BenchTable(rows=self._rows, place="page", reference="torch", unit=_unit)
        reasons: dict[str, list[str]] = {}
        for row in self._rows:
            if row.error or not row.stable:
                reason = row.error.message if row.error else row.unstable_reason
                reasons.setdefault(str(reason), []).append(self.label(row))
        return Section(
            heading=f"How fast is it? {self.title}",
            text=self._conditions(),
            charts=[
                *self._bars(palette),
                *self._front(palette),
                *self._load(palette),
                *self._roofline(palette),
                *self._spreads(palette),
            ],
            columns=table.headings(),
            rows=table.cells(),
            notes=[
                *[f"{listed(labels)}: {reason}" for reason, labels in reasons.items()],
                *[f"{self.label(row)}: {_loadgen(row.harness)}" for row in self._rows if row.harness is not None],
            ],
        )

    def _conditions(self) -> str:
        told = dict.fromkeys(document.model.description for document in self._documents)
        scopes = dict.fromkeys(_SCOPES.get(document.settings.scope, "") for document in self._documents)
        included = {name for row in self._rows for name in row.includes}
        more = f"Included in the time: {listed(sorted(included))}." if included else ""
        return " ".join(filter(None, ["; ".join(filter(None, told)), "·", *scopes, more]))

    def _bars(self, palette: dict[str, str]) -> list[Chart]:
        if not self.measured:
            return []
        shown = self.measured
        caption = "Throughput with the 95 % interval of the median. Hatched: not stable."
        if len(shown) > _MOST_BARS:
            shown = sorted(shown, key=lambda row: -row.speed)[:_MOST_BARS]
            caption += f" The fastest {_MOST_BARS}."
        bars = [
            Bar(
                label=self.label(row),
                value=row.speed,
                interval=row.images_per_second_ci95,
                text=speed_text(row) + ("" if row.stable else " ~"),
                series=row.runtime,
                doubtful=not row.stable,
            )
            for row in shown
        ]
        return [Chart(svg=charts.bars(bars, unit="images per second", palette=palette), caption=caption)]

    def _front(self, palette: dict[str, str]) -> list[Chart]:
        points = [row for row in self.measured if row.latency_ms.p50 and not row.offline and row.capacity is None]
        if len({(row.batch, row.streams) for row in points}) < 2:
            return []
        # Work that leaves something out would always win.
        shown = [row for row in points if _scope(row) == _scope(points[0])]
        items = []
        for row in shown:
            streams = f"×{row.streams}" if row.streams > 1 else ""
            point = Point(
                line=joined(row.runtime, row.precision if self._precisions else "", streams),
                series=row.runtime,
                x=row.latency_ms.p50 or 0.0,
                y=row.speed,
                text=str(row.batch),
                ringed=_on_front(row, shown),
            )
            items.append(point)
        caption = "Latency and throughput by batch size. Ringed: nothing here is better in both (the Pareto front)."
        return [Chart(svg=charts.front(items, palette=palette), caption=caption)]

    def _load(self, palette: dict[str, str]) -> list[Chart]:
        """Draws how the latency of a server grows with its load, a picture for each limit."""
        found: dict[float, list[Point]] = {}
        for row in self.measured:
            for trial in row.capacity.trials if row.capacity is not None else ():
                point = Point(
                    line=self.label(row),
                    series=row.runtime,
                    x=trial.queries_per_second,
                    y=trial.p99_ms,
                    ringed=trial.confirms,
                )
                found.setdefault(row.capacity.limit_ms if row.capacity is not None else 0.0, []).append(point)
        return [
            Chart(
                svg=charts.load(points, limit_ms=limit, palette=palette),
                caption=f"Latency from arrival to answer against load; the dashed line is the limit of {limit:g} ms. "
                "Ringed: served on fresh arrivals, to confirm.",
            )
            for limit, points in found.items()
        ]

    def _roofline(self, palette: dict[str, str]) -> list[Chart]:
        items: list[Point] = []
        roofs: dict[tuple[str, float], Roof] = {}
        for row in self.measured:
            found = row.roofline
            intensity, achieved = found.operations_per_byte, found.achieved_gflops
            roof = _roof(row, known(self._document[id(row)].environment.peaks))
            if not intensity or not achieved or roof is None:
                continue
            roofs[roof.name, roof.top] = roof
            line = joined(row.runtime, row.precision if self._precisions else "")
            items.append(Point(line=line, series=row.runtime, x=intensity, y=achieved, text=str(row.batch)))
        if not items:
            return []
        caption = (
            "Roofline: the dashed lines are what this machine reaches, measured here by large copies (slope) and "
            "matrix products (flat); how far a point lies below is what is left to win. The numbers are batch sizes."
        )
        if not all(roof.undisturbed for roof in roofs.values()):
            caption += " Other programs ran while the machine was measured, so that the lines are too low."
        return [Chart(svg=charts.roofline(items, list(roofs.values()), palette=palette), caption=caption)]

    def _spreads(self, palette: dict[str, str]) -> list[Chart]:
        spread = [
            (self.label(row), row.runtime, [time / 1e6 for part in row.raw_ns for time in part])
            for row in self.measured
            if row.streams == 1
            and row.capacity is None
            and row.raw_ns
            and sum(map(len, row.raw_ns)) >= _FEWEST_FOR_SPREAD
        ][:_MOST_BARS]
        if not spread:
            return []
        svg = charts.spreads(spread, unit="time of a run, ms", palette=palette)
        return [Chart(svg=svg, caption="How single runs spread: 1st to 99th percentile, the middle half, the median.")]


def by_model(documents: Sequence[Bench]) -> list[Speed]:
    """Returns one ``Speed`` a model and machine, in the order in which their benchmarks come.

    Results stand together where their rows may be compared: the same network, input and machine. Two that have a row in
    common are two measurements, one before something changed and one after it, and stand apart.
    """
    groups: list[list[Bench]] = []
    for document in documents:
        ours = {_identity(row) for row in document.results}
        for group in groups:
            there = {_identity(row) for other in group for row in other.results}
            if _same_subject(group[0], document) and not ours & there and _one_file(group, document):
                group.append(document)
                break
        else:
            groups.append([document])
    return [Speed(group, _apart(group, groups)) for group in groups]


def _same_subject(one: Bench, other: Bench) -> bool:
    """Whether two results are of one network on one machine, by the hash of its weights or by its name."""
    ours, theirs = one.model, other.model
    alike = ours.name == theirs.name or (ours.weights_sha256 and ours.weights_sha256 == theirs.weights_sha256)
    same_input = list(ours.inputs) == list(theirs.inputs)
    return bool(alike) and same_input and _machine(one.environment) == _machine(other.environment)


def _one_file(group: Sequence[Bench], document: Bench) -> bool:
    """Whether results of the document's precision in a group are of its file, as far as the results can tell."""
    ours = document.model
    there = [other.model for other in group if other.model.precision == ours.precision]
    pairs = [(one.sha256, ours.sha256) for one in there] + [(one.weights_sha256, ours.weights_sha256) for one in there]
    return not any(theirs and digest and theirs != digest for theirs, digest in pairs)


def _machine(environment: Environment) -> str:
    cpu, gpus = environment.cpu, environment.gpu_names()
    return f"{cpu.model}, {cpu.usable_cores} cores" + (f", {gpus}" if gpus != "none" else "")


def _identity(row: BenchRow) -> tuple[Any, ...]:
    """Returns what tells rows of one model and machine apart."""
    return (*_place(row), *_unit(row))


def _apart(group: Sequence[Bench], groups: Sequence[Sequence[Bench]]) -> str:
    """Returns what tells a group from the others of its name: their inputs, their machines, or when they were made."""
    first = group[0]
    others = [each[0] for each in groups if each is not group and each[0].model.name == first.model.name]
    inputs, machine = list(first.model.inputs), _machine(first.environment)
    told = []
    if any(list(other.model.inputs) != inputs for other in others) and inputs:
        told.append(listed(inputs))
    if any(_machine(other.environment) != machine for other in others):
        told.append(machine)
    if any(_same_subject(other, first) for other in others):
        told.append(first.made)
    return f" ({'; '.join(told)})" if told else ""


def findings(speeds: Sequence[Speed], *, proven: Collection[tuple[str, str, str]]) -> list[Finding]:
    """Returns the findings of all models; of many, a summary with what there is to doubt."""
    if len(speeds) <= _FEW_MODELS:
        return [finding for found in speeds for finding in found.findings(proven)]
    best = [row for found in speeds if (row := found.best()) is not None]
    if not best:
        return [Finding(state="bad", text=f"Of {len(speeds)} models nothing could be measured.")]
    winners = Counter(joined(row.runtime, row.precision) for row in best).most_common()
    told = listed([f"{name} on {count}" for name, count in winners])
    stable = sum(bool(row.stable) for row in best)
    found = [Finding(state="good" if stable == len(best) else "doubt", text=f"Fastest on {len(best)} models: {told}.")]
    every = [row for each in speeds for row in each.measured]
    doubtful = sum(not row.stable for row in every)
    if doubtful:
        text = f"{doubtful} of {len(every)} rows are not stable. They are hatched and marked ~."
        found.append(Finding(state="doubt", text=text))
    lost = _lost(speeds)
    if lost:
        found.append(Finding(state="doubt", text=f"Not measured to the end: {listed(lost)}."))
    return found


def _lost(speeds: Sequence[Speed]) -> list[str]:
    """Returns what could not be measured; a runtime that lacks a precision is told once for all models."""
    whole: dict[tuple[str, str], list[str]] = {}
    for each in speeds:
        for key in dict.fromkeys((row.runtime, row.precision) for row in each.lost):
            if not any((row.runtime, row.precision) == key for row in each.measured):
                whole.setdefault(key, []).append(each.model)
    several = {key for key, models in whole.items() if len(models) > 1}
    single = [
        f"{each.model} {each.label(row)}"
        for each in speeds
        for row in each.lost
        if (row.runtime, row.precision) not in several
    ]
    return [f"{joined(*key)} on {len(whole[key])} models" for key in sorted(several)] + single


def overview(speeds: Sequence[Speed], palette: dict[str, str]) -> list[Section]:
    """Returns the best images per second by model, runtime and precision; nothing for a single model."""
    if len(speeds) < 2:
        return []
    found: dict[str, dict[tuple[str, str], BenchRow]] = {}
    for model, row in ((speed.model, row) for speed in speeds for row in speed.measured):
        cells = found.setdefault(model, {})
        key = _place(row)
        if key not in cells or row.speed > cells[key].speed:
            cells[key] = row
    fastest = {model: max(cells.values(), key=lambda row: row.speed) for model, cells in found.items()}
    columns = sorted({key for cells in found.values() for key in cells}, key=_column_order)
    doubtful = any(not row.stable for cells in found.values() for row in cells.values())
    bars = [
        Bar(
            label=model,
            value=row.speed,
            text=joined(rounded(row.speed, 3), *_place(row)),
            series=row.runtime,
            doubtful=not row.stable,
        )
        for model, row in fastest.items()
    ]
    svg = charts.bars(bars, unit="images per second", palette=palette, room=0.75)
    rows = [[model, *[_glance(cells.get(key), fastest[model]) for key in columns]] for model, cells in found.items()]
    section = Section(
        heading="All models at a glance",
        text="Images per second, the best over what was measured. ★ is the fastest of a row"
        + (", ~ not stable." if doubtful else "."),
        charts=[Chart(svg=svg, caption="The fastest runtime and precision of each model.")],
        columns=["model", *[joined(*key) for key in columns]],
        rows=rows,
    )
    return [section]


def _glance(row: BenchRow | None, fastest: BenchRow) -> str:
    if row is None:
        return "–"
    text = rounded(row.speed, 3)
    return joined(text, "★" if row is fastest else "", "" if row.stable else "~")


def _against_torch(best: BenchRow, measured: Rows) -> str:
    theirs = [row.speed for row in measured if row.runtime == "torch" and _scope(row) == _scope(best)]
    if not theirs or best.runtime == "torch":
        return ""
    return f", {best.speed / max(theirs):.1f}× the best of torch"


def _column_order(key: tuple[str, str]) -> tuple[int, str, int, str]:
    runtime, precision = key
    order = ("fp32", "bf16", "fp16", "int8")
    return (runtime != "torch", runtime, order.index(precision) if precision in order else len(order), precision)


def _scope(row: BenchRow) -> tuple[str, ...]:
    return (row.scope, *row.includes)


def _place(row: BenchRow) -> tuple[str, str]:
    return (row.runtime, row.precision)


def _unit(row: BenchRow) -> tuple[Any, ...]:
    return (row.batch, row.streams, row.cpu_threads, row.scenario, row.loadgen, row.device, *_scope(row))


def _clearly_faster(row: BenchRow, other: BenchRow) -> bool:
    ours = row.images_per_second_ci95
    most = _at_most(other)
    return bool(ours and most is not None and ours[0] > most)


def _at_most(row: BenchRow) -> float | None:
    """Returns images per second that the row does not exceed: the end of its interval, or those of its fastest run."""
    if row.images_per_second_ci95:
        return row.images_per_second_ci95[1]
    if not row.latency_ms.min or row.offline:
        return None
    return 1000 * row.batch * row.streams / row.latency_ms.min


def _on_front(row: BenchRow, points: Rows) -> bool:
    return not any(
        other.speed >= row.speed and (other.latency_ms.p50 or 0.0) <= (row.latency_ms.p50 or 0.0) and other is not row
        for other in points
    )


def _loadgen(found: HarnessRecord) -> str:
    return "VALID by MLPerf LoadGen" if found.valid else f"INVALID by MLPerf LoadGen: {found.reason or 'no reason'}"


def _roof(row: BenchRow, measured: Mapping[str, Peaks] | None) -> Roof | None:
    """Returns the limit that the row's share was computed from, or None where the file does not have it."""
    peak = row.roofline.peak_gflops
    for one in (measured or {}).values():
        slope = one.bandwidth_gbs
        if peak and one.gflops.get(row.precision) == peak and slope and slope > 0:
            return Roof(name=row.precision, top=peak, slope=slope, undisturbed=one.undisturbed)
    return None
