"""What saved benchmarks say: which runtime is fastest, how sure that is, and how far from the machine's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from resnet_onnx.bench.compare import gpus_of
from resnet_onnx.bench.statistics import rounded, significant
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar, Point, Roof
from resnet_onnx.report.page import Chart, Finding, Section
from resnet_onnx.report.results import rows
from resnet_onnx.report.words import joined, listed

Document = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

_SCOPES = {"device": "Device-resident work, nothing is copied.", "end-to-end": "Host array in, host array out."}
_FEWEST_FOR_SPREAD = 20
"""Fewer samples have no tails to show."""

_FEW_MODELS = 3
"""Up to so many, the page begins with a sentence on each."""

_MOST_BARS = 40
"""More are no picture any more; the table has all of them."""


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

    def __init__(self, documents: Sequence[Document], apart: str = "") -> None:
        self._documents = documents
        found = [row for document in documents for row in rows(document)]
        self._peaks = {
            id(row): document["environment"].get("peaks") for document in documents for row in rows(document)
        }
        self._hashes = {
            id(row): document["model"].get("sha256") or document["model"].get("weights_sha256")
            for document in documents
            for row in rows(document)
        }
        self.model: str = documents[0]["model"]["name"] + apart
        self._devices = len({row["device"] for row in found if row["device"]}) > 1
        self._precisions = len({row["precision"] for row in found}) > 1
        self._threads = len({row.get("threads") for row in found}) > 1
        self._scopes = len({_scope(row) for row in found}) > 1
        self.title = self.model if self._precisions else f"{self.model} {found[0]['precision']}"
        self._rows = sorted(found, key=lambda row: (row["batch"], row["streams"], -(row["images_per_second"] or 0.0)))
        self.measured = [row for row in self._rows if row["images_per_second"] and not row["error"]]
        self.lost = [row for row in self._rows if row["error"]]

    # ---- in words ----------------------------------------------------------------------------------------------------

    def best(self) -> Mapping[str, Any] | None:
        """Returns the fastest row, or None where nothing was measured."""
        return max(self.measured, key=lambda row: row["images_per_second"], default=None)

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
        text = f"{self.title}: {self.label(best)} is fastest with {_speed(best)[0]} images per second"
        text += f"{_against_torch(best, self.measured)}{shared}"
        if (self._hashes[id(best)], best["precision"], best["runtime"]) in proven:
            text += ", and computes the same function"
        found = [Finding(state="good" if best["stable"] else "doubt", text=f"{text}.")]
        doubtful = sum(not row["stable"] for row in self.measured)
        if doubtful:
            found.append(
                Finding(
                    state="doubt",
                    text=f"{self.title}: {doubtful} of {len(self.measured)} rows are not stable: the machine was "
                    "disturbed or the interval is wide. They are hatched and marked ~.",
                )
            )
        if self.lost:
            text = f"{self.title}: not measured to the end: {listed([self.label(row) for row in self.lost])}."
            found.append(Finding(state="doubt", text=text))
        return found

    def label(self, row: Mapping[str, Any]) -> str:
        """Names a row in few words."""
        streams = f" × {row['streams']}" if row["streams"] > 1 else ""
        precision = f" {row['precision']}" if self._precisions else ""
        threads = _threads(row.get("threads")) if self._threads else ""
        threads += " · offline" if row.get("scenario") == "offline" else ""
        threads += f" · LoadGen {row['harness']['scenario']}" if row.get("harness") else ""
        threads += f" · {row['device']}" if self._devices and row["device"] else ""
        return f"{row['runtime']}{precision} · batch {row['batch']}{streams}{threads}{self._work(row)}"

    def _work(self, row: Mapping[str, Any]) -> str:
        included = "".join(f" + {name}" for name in _included(row))
        return f"{' · host' if self._scopes and row['scope'] != 'device' else ''}{included}"

    # ---- drawn -------------------------------------------------------------------------------------------------------

    def section(self, palette: dict[str, str]) -> Section:
        """Returns the charts and the table."""
        ordered, measured = self._rows, self.measured
        several = any(row["streams"] > 1 for row in ordered)
        base = {_unit(row): row for row in measured if row["runtime"] == "torch"}
        columns = ["runtime", *(["precision"] if self._precisions else []), "batch", *(["streams"] if several else []),
                   *(["threads"] if self._threads else []),
                   *(["work"] if self._scopes else []), "img/s", "± 95 %", *(["vs torch"] if base else []), "p50 ms",
                   "p90 ms", "p99 ms", "share of peak", "stable"]  # fmt: skip
        reasons: dict[str, list[str]] = {}
        for row in ordered:
            if row["error"] or not row["stable"]:
                reason = row["error"]["message"] if row["error"] else row["unstable_reason"]
                reasons.setdefault(str(reason), []).append(self.label(row))
        return Section(
            heading=f"How fast is it? {self.title}",
            text=self._conditions(),
            charts=[*self._bars(palette), *self._front(palette), *self._roofline(palette), *self._spreads(palette)],
            columns=columns,
            rows=[self._cells(row, base, several) for row in ordered],
            notes=[
                *[f"{listed(labels)}: {reason}" for reason, labels in reasons.items()],
                *[f"{self.label(row)}: {_loadgen(row)}" for row in ordered if row.get("harness")],
            ],
        )

    def _conditions(self) -> str:
        told = dict.fromkeys(document["model"]["description"] for document in self._documents)
        scopes = dict.fromkeys(_SCOPES.get(document["settings"]["scope"], "") for document in self._documents)
        included = {name for row in self._rows for name in _included(row)}
        more = f"Included in the time: {listed(sorted(included))}." if included else ""
        return " ".join(filter(None, ["; ".join(filter(None, told)), "·", *scopes, more]))

    def _bars(self, palette: dict[str, str]) -> list[Chart]:
        if not self.measured:
            return []
        shown = self.measured
        caption = "Throughput with the 95 % interval of the median. Hatched: not stable."
        if len(shown) > _MOST_BARS:
            shown = sorted(shown, key=lambda row: -row["images_per_second"])[:_MOST_BARS]
            caption += f" The fastest {_MOST_BARS}."
        bars = [self._bar(row) for row in shown]
        return [Chart(svg=charts.bars(bars, unit="images per second", palette=palette), caption=caption)]

    def _bar(self, row: Mapping[str, Any]) -> Bar:
        interval = row["images_per_second_ci95"]
        return Bar(
            label=self.label(row),
            value=row["images_per_second"],
            interval=(interval[0], interval[1]) if interval else None,
            text=_speed(row)[0] + ("" if row["stable"] else " ~"),
            series=row["runtime"],
            doubtful=not row["stable"],
        )

    def _front(self, palette: dict[str, str]) -> list[Chart]:
        points = [row for row in self.measured if row["latency_ms"]["p50"] and row.get("scenario") != "offline"]
        if len({(row["batch"], row["streams"]) for row in points}) < 2:
            return []
        # Work that leaves something out would always win.
        shown = [row for row in points if _scope(row) == _scope(points[0])]
        items = [
            Point(
                line=joined(row["runtime"], row["precision"] if self._precisions else "", f"×{row['streams']}"
                                if row["streams"] > 1 else ""),
                series=row["runtime"],
                x=row["latency_ms"]["p50"],
                y=row["images_per_second"],
                text=str(row["batch"]),
                ringed=_on_front(row, shown),
            )
            for row in shown
        ]  # fmt: skip
        caption = "Latency and throughput by batch size. Ringed: nothing here is better in both (the Pareto front)."
        return [Chart(svg=charts.front(items, palette=palette), caption=caption)]

    def _roofline(self, palette: dict[str, str]) -> list[Chart]:
        items: list[Point] = []
        roofs: dict[tuple[str, float], Roof] = {}
        for row in self.measured:
            found = row["roofline"]
            intensity, achieved = found.get("operations_per_byte"), found["achieved_gflops"]
            roof = _roof(row, self._peaks[id(row)])
            if not intensity or not achieved or roof is None:
                continue
            roofs[roof.name, roof.top] = roof
            items.append(
                Point(
                    line=joined(row["runtime"], row["precision"] if self._precisions else ""),
                    series=row["runtime"],
                    x=intensity,
                    y=achieved,
                    text=str(row["batch"]),
                )
            )
        if not items:
            return []
        return [
            Chart(
                svg=charts.roofline(items, list(roofs.values()), palette=palette),
                caption="Roofline: the dashed lines are what this machine reaches, measured here by large copies "
                "(slope) and matrix products (flat); how far a point lies below is what is left to win. The numbers "
                "are batch sizes."
                + (
                    ""
                    if all(roof.undisturbed for roof in roofs.values())
                    else " Other programs ran while the machine was measured, so that the lines are too low."
                ),
            )
        ]

    def _spreads(self, palette: dict[str, str]) -> list[Chart]:
        spread = [
            (self.label(row), row["runtime"], [time / 1e6 for part in row["raw_ns"] for time in part])
            for row in self.measured
            if row["streams"] == 1 and row["raw_ns"] and sum(map(len, row["raw_ns"])) >= _FEWEST_FOR_SPREAD
        ][:_MOST_BARS]
        if not spread:
            return []
        return [
            Chart(
                svg=charts.spreads(spread, unit="time of a run, ms", palette=palette),
                caption="How single runs spread: 1st to 99th percentile, the middle half, the median.",
            )
        ]

    def _cells(self, row: Mapping[str, Any], base: Mapping[Any, Mapping[str, Any]], several: bool) -> list[str]:
        speed, uncertainty = _speed(row)
        latency, roofline = row["latency_ms"], row["roofline"]
        share = "–"
        if roofline["limit_fraction"] is not None:
            share = f"{100 * roofline['limit_fraction']:.0f} % {roofline.get('bound') or ''}".strip()
        rival = base.get(_unit(row))
        ratio = "–"
        if rival is not None and row["images_per_second"]:
            ratio = f"{row['images_per_second'] / rival['images_per_second']:.2f}×"
        return [
            row["runtime"],
            *([row["precision"]] if self._precisions else []),
            str(row["batch"]),
            *([str(row["streams"])] if several else []),
            *([str(row.get("threads") or "all")] if self._threads else []),
            *([work_name(row)] if self._scopes else []),
            speed,
            uncertainty,
            *([ratio] if base else []),
            *["–" if latency[name] is None else rounded(latency[name], 3) for name in ("p50", "p90", "p99")],
            share,
            "failed" if row["error"] else "yes" if row["stable"] else "no ~",
        ]


def by_model(documents: Sequence[Document]) -> list[Speed]:
    """Returns one ``Speed`` a model and machine, in the order in which their benchmarks come.

    Results stand together where their rows may be compared: the same name, input and machine. Two that have a row in
    common are two measurements, one before something changed and one after it, and stand apart.
    """
    groups: list[list[Document]] = []
    for document in (found for found in documents if found["kind"] == "bench"):
        ours = {_identity(row) for row in rows(document)}
        for group in groups:
            there = {_identity(row) for other in group for row in rows(other)}
            if _subject(group[0]) == _subject(document) and not ours & there and _one_file(group, document):
                group.append(document)
                break
        else:
            groups.append([document])
    return [Speed(group, _apart(group, groups)) for group in groups]


def _subject(document: Document) -> tuple[Any, ...]:
    model = document["model"]
    return (model["name"], str(model.get("inputs")), _machine(document))


def _one_file(group: Sequence[Document], document: Document) -> bool:
    """Whether results of the document's precision in a group are of its file, as far as the results can tell."""
    ours = document["model"]
    there = [other["model"] for other in group if other["model"].get("precision") == ours.get("precision")]
    return not any(
        one.get(key) and ours.get(key) and one[key] != ours[key]
        for one in there
        for key in ("sha256", "weights_sha256")
    )


def _machine(document: Document) -> str:
    cpu, gpus = document["environment"]["cpu"], gpus_of(document["environment"])
    return f"{cpu['model']}, {cpu['usable_cores']} cores" + (f", {gpus}" if gpus != "none" else "")


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what tells rows of one model and machine apart."""
    return (*_place(row), *_unit(row))


def _apart(group: Sequence[Document], groups: Sequence[Sequence[Document]]) -> str:
    """Returns what tells a group from the others of its name: their inputs, their machines, or when they were made."""
    first = group[0]
    others = [each[0] for each in groups if each is not group and each[0]["model"]["name"] == first["model"]["name"]]
    told = []
    if any(str(other["model"].get("inputs")) != str(first["model"].get("inputs")) for other in others):
        told.append(listed([str(spec) for spec in first["model"].get("inputs") or []]))
    if any(_machine(other) != _machine(first) for other in others):
        told.append(_machine(first))
    if any(_subject(other) == _subject(first) for other in others):
        told.append(str(first["made"]))
    return f" ({'; '.join(told)})" if told else ""


def findings(speeds: Sequence[Speed], *, proven: Collection[tuple[str, str, str]]) -> list[Finding]:
    """Returns the findings of all models; of many, a summary with what there is to doubt."""
    if len(speeds) <= _FEW_MODELS:
        return [finding for found in speeds for finding in found.findings(proven)]
    best = [row for found in speeds if (row := found.best()) is not None]
    if not best:
        return [Finding(state="bad", text=f"Of {len(speeds)} models nothing could be measured.")]
    winners = Counter(joined(row["runtime"], row["precision"]) for row in best).most_common()
    told = listed([f"{name} on {count}" for name, count in winners])
    stable = sum(bool(row["stable"]) for row in best)
    found = [Finding(state="good" if stable == len(best) else "doubt", text=f"Fastest on {len(best)} models: {told}.")]
    every = [row for each in speeds for row in each.measured]
    doubtful = sum(not row["stable"] for row in every)
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
        for key in dict.fromkeys((row["runtime"], row["precision"]) for row in each.lost):
            if not any((row["runtime"], row["precision"]) == key for row in each.measured):
                whole.setdefault(key, []).append(each.model)
    several = {key for key, models in whole.items() if len(models) > 1}
    single = [
        f"{each.model} {each.label(row)}"
        for each in speeds
        for row in each.lost
        if (row["runtime"], row["precision"]) not in several
    ]
    return [f"{joined(*key)} on {len(whole[key])} models" for key in sorted(several)] + single


def overview(speeds: Sequence[Speed], palette: dict[str, str]) -> Section | None:
    """Returns the best images per second by model, runtime and precision, drawn and as a table.

    Returns:
        The section, or None for a single model.
    """
    if len(speeds) < 2:
        return None
    found: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for model, row in ((speed.model, row) for speed in speeds for row in speed.measured):
        cells = found.setdefault(model, {})
        key = _place(row)
        if key not in cells or row["images_per_second"] > cells[key]["images_per_second"]:
            cells[key] = row
    fastest = {model: max(cells.values(), key=lambda row: row["images_per_second"]) for model, cells in found.items()}
    columns = sorted({key for cells in found.values() for key in cells}, key=_column_order)
    doubtful = any(not row["stable"] for cells in found.values() for row in cells.values())
    bars = [
        Bar(
            label=model,
            value=row["images_per_second"],
            text=joined(rounded(row["images_per_second"], 3), *_place(row)),
            series=row["runtime"],
            doubtful=not row["stable"],
        )
        for model, row in fastest.items()
    ]
    return Section(
        heading="All models at a glance",
        text="Images per second, the best over what was measured. ★ is the fastest of a row"
        + (", ~ not stable." if doubtful else "."),
        charts=[
            Chart(
                svg=charts.bars(bars, unit="images per second", palette=palette, room=0.75),
                caption="The fastest runtime and precision of each model.",
            )
        ],
        columns=["model", *[joined(*key) for key in columns]],
        rows=[[model, *[_glance(cells.get(key), fastest[model]) for key in columns]] for model, cells in found.items()],
    )


def _glance(row: Mapping[str, Any] | None, fastest: Mapping[str, Any]) -> str:
    if row is None:
        return "–"
    text = rounded(row["images_per_second"], 3)
    return joined(text, "★" if row is fastest else "", "" if row["stable"] else "~")


def _against_torch(best: Mapping[str, Any], measured: Rows) -> str:
    theirs = [row["images_per_second"] for row in measured if row["runtime"] == "torch" and _scope(row) == _scope(best)]
    if not theirs or best["runtime"] == "torch":
        return ""
    return f", {best['images_per_second'] / max(theirs):.1f}× the best of torch"


def work_name(row: Mapping[str, Any]) -> str:
    """Returns which work a row timed, in words."""
    return " + ".join([str(row["scope"]), *_included(row)])


def _column_order(key: tuple[str, str]) -> tuple[int, str, int, str]:
    runtime, precision = key
    order = ("fp32", "bf16", "fp16", "int8")
    return (runtime != "torch", runtime, order.index(precision) if precision in order else len(order), precision)


def _included(row: Mapping[str, Any]) -> list[str]:
    found = row.get("includes")
    return [str(name) for name in found] if isinstance(found, list) else []


def _scope(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (str(row["scope"]), *_included(row))


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return (row["runtime"], row["precision"])


def _unit(row: Mapping[str, Any]) -> tuple[Any, ...]:
    said = row.get("harness")
    how = (row.get("threads"), row.get("scenario"), said["scenario"] if said else None, row["device"])
    return (row["batch"], row["streams"], *how, *_scope(row))


def _clearly_faster(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ours = row["images_per_second_ci95"]
    most = _at_most(other)
    return bool(ours and most is not None and ours[0] > most)


def _at_most(row: Mapping[str, Any]) -> float | None:
    """Returns images per second that the row does not exceed: the end of its interval, or those of its fastest run."""
    if row["images_per_second_ci95"]:
        return float(row["images_per_second_ci95"][1])
    least = row["latency_ms"].get("min")
    if not least or row.get("scenario") == "offline":
        return None
    return float(1000 * row["batch"] * row["streams"] / least)


def _on_front(row: Mapping[str, Any], points: Rows) -> bool:
    return not any(
        other["images_per_second"] >= row["images_per_second"]
        and other["latency_ms"]["p50"] <= row["latency_ms"]["p50"]
        and other is not row
        for other in points
    )


def _threads(count: int | None) -> str:
    return f" · {count or 'all'} thread{'' if count == 1 else 's'}"


def _loadgen(row: Mapping[str, Any]) -> str:
    said = row["harness"]
    return "VALID by MLPerf LoadGen" if said["valid"] else f"INVALID by MLPerf LoadGen: {said['reason'] or 'no reason'}"


def _roof(row: Mapping[str, Any], measured: Any) -> Roof | None:
    """Returns the limit that the row's share was computed from, or None where the file does not have it."""
    peak = row["roofline"].get("peak_gflops")
    for one in measured.values() if isinstance(measured, dict) else ():
        if not isinstance(one, dict) or not isinstance(one.get("gflops"), dict):
            continue
        slope = one.get("bandwidth_gbs")
        if peak and one["gflops"].get(row["precision"]) == peak and isinstance(slope, int | float) and slope > 0:
            return Roof(
                name=row["precision"], top=peak, slope=float(slope), undisturbed=bool(one.get("undisturbed", True))
            )
    return None


def _speed(row: Mapping[str, Any]) -> tuple[str, str]:
    speed, interval = row["images_per_second"], row["images_per_second_ci95"]
    if not speed:
        return "–", "–"
    return significant(speed, (interval[1] - interval[0]) / 2 if interval else None)
