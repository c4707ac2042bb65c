"""Turns saved results of any kind into one page: verdict, speed, parity, accuracy, conditions, commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_onnx.bench.statistics import rounded, significant
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar
from resnet_onnx.report.page import Chart, Finding, Section, write_page
from resnet_onnx.report.results import rows

Document = Mapping[str, Any]

_SCOPES = {"device": "Device-resident work, nothing is copied.", "end-to-end": "Host array in, host array out."}


def write_report(path: Path, documents: Sequence[Document]) -> list[Finding]:
    """Writes the page.

    Args:
        path: HTML file to write.
        documents: As ``results.read`` returns them, at least one.

    Returns:
        The findings that stand on top of the page.

    Raises:
        FileProblem: The page can't be written.
    """
    palette = charts.colours([row["runtime"] for found in documents for row in rows(found)])
    findings = [finding for found in documents for finding in _FINDINGS[found["kind"]](found)]
    models = dict.fromkeys(_model(found) for found in documents)
    sections = [
        _SECTIONS[kind](found, palette)
        for kind in ("bench", "parity", "evaluate")
        for found in documents
        if found["kind"] == kind
    ]
    sections += [_files(documents), *_environments(documents), _commands(documents)]
    first = next((finding for finding in findings if finding.state == "bad"), findings[0])
    write_page(
        path,
        title=f"{', '.join(models)}: speed, parity and accuracy" if len(models) < 4 else f"{len(models)} models",
        verdict=first.text,
        passed=first.state != "bad",
        doubtful=first.state == "doubt",
        findings=[finding for finding in findings if finding is not first],
        sections=sections,
        footer=f"Made by {documents[0]['tool']} from {len(documents)} saved "
        f"result{'' if len(documents) == 1 else 's'}. Needs no network.",
    )
    return findings


def _model(document: Document) -> str:
    name: str = document["model"]["name"] if document["kind"] == "bench" else document["result"]["model"]
    return name


# ---- speed -----------------------------------------------------------------------------------------------------------


def _bench_findings(document: Document) -> list[Finding]:
    measured = [row for row in rows(document) if row["images_per_second"]]
    name = _about(document)
    if not measured:
        return [Finding(state="bad", text=f"{name}: nothing could be measured.")]
    best = max(measured, key=lambda row: row["images_per_second"])
    value = _speed(best)[0]
    rivals = [row for row in measured if row["runtime"] != best["runtime"] and not _clearly_faster(best, row)]
    shared = f", not told apart from {_and([_label(row) for row in rivals[:3]])}" if rivals else ""
    text = f"{name}: {_label(best)} is fastest with {value} images per second{shared}."
    found = [Finding(state="good" if best["stable"] else "doubt", text=text)]
    doubtful = sum(not row["stable"] for row in measured)
    if doubtful:
        found.append(
            Finding(
                state="doubt",
                text=f"{name}: {doubtful} of {len(measured)} rows are not stable: the machine was disturbed or the "
                "interval is wide. They are hatched and marked ~.",
            )
        )
    lost = [row for row in rows(document) if row["error"]]
    if lost:
        found.append(
            Finding(state="doubt", text=f"{name}: not measured to the end: {_and([_label(r) for r in lost])}.")
        )
    return found


def _clearly_faster(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ours, theirs = row["images_per_second_ci95"], other["images_per_second_ci95"]
    return bool(ours and theirs and ours[0] > theirs[1])


def _bench(document: Document, palette: dict[str, str]) -> Section:
    ordered = sorted(rows(document), key=lambda r: (r["batch"], r["streams"], -(r["images_per_second"] or 0.0)))
    measured = [row for row in ordered if row["images_per_second"]]
    pictures = []
    if measured:
        pictures.append(
            Chart(
                svg=charts.bars([_bar(row) for row in measured], unit="images per second", palette=palette),
                caption="Throughput with the 95 % interval of the median. Hatched: not stable.",
            )
        )
    pictures += _front(measured, palette)
    spread = [
        (_label(row), row["runtime"], [time / 1e6 for part in row["raw_ns"] for time in part])
        for row in measured
        if row["streams"] == 1 and row["raw_ns"] and sum(map(len, row["raw_ns"])) >= _FEWEST_FOR_SPREAD
    ]
    if spread:
        pictures.append(
            Chart(
                svg=charts.spreads(spread, unit="time of a run, ms", palette=palette),
                caption="How single runs spread: 1st to 99th percentile, the middle half, the median.",
            )
        )
    several = any(row["streams"] > 1 for row in ordered)
    return Section(
        heading=f"How fast is it? {_about(document)}",
        text=" ".join(
            filter(None, [document["model"]["description"], "·", _SCOPES.get(document["settings"]["scope"], "")])
        ),
        charts=pictures,
        columns=["runtime", "batch", *(["streams"] if several else []), "img/s", "± 95 %", "p50 ms", "p90 ms", "p99 ms",
                 "share of peak", "stable"],
        rows=[_bench_cells(row, several) for row in ordered],
        notes=[
            f"{_label(row)}: {row['error']['message'] if row['error'] else row['unstable_reason']}"
            for row in ordered
            if row["error"] or not row["stable"]
        ],
    )  # fmt: skip


_FEWEST_FOR_SPREAD = 20
"""Fewer samples have no tails to show."""


def _front(measured: Sequence[Mapping[str, Any]], palette: dict[str, str]) -> list[Chart]:
    points = [row for row in measured if row["streams"] == 1 and row["latency_ms"]["p50"]]
    if len({row["batch"] for row in points}) < 2:
        return []

    def best(row: Mapping[str, Any]) -> bool:
        return not any(
            other["images_per_second"] >= row["images_per_second"]
            and other["latency_ms"]["p50"] <= row["latency_ms"]["p50"]
            and other is not row
            for other in points
        )

    items = [
        (row["runtime"], row["latency_ms"]["p50"], row["images_per_second"], row["batch"], best(row)) for row in points
    ]
    caption = "Latency and throughput by batch size. Ringed: nothing here is better in both (the Pareto front)."
    return [Chart(svg=charts.front(items, palette=palette), caption=caption)]


def _bar(row: Mapping[str, Any]) -> Bar:
    interval = row["images_per_second_ci95"]
    return Bar(
        label=_label(row),
        value=row["images_per_second"],
        interval=(interval[0], interval[1]) if interval else None,
        text=_speed(row)[0] + ("" if row["stable"] else " ~"),
        series=row["runtime"],
        doubtful=not row["stable"],
    )


def _bench_cells(row: Mapping[str, Any], several: bool) -> list[str]:
    speed, uncertainty = _speed(row)
    latency, roofline = row["latency_ms"], row["roofline"]
    share = "–"
    if roofline["limit_fraction"] is not None:
        share = f"{100 * roofline['limit_fraction']:.0f} % {roofline.get('bound') or ''}".strip()
    return [
        row["runtime"],
        str(row["batch"]),
        *([str(row["streams"])] if several else []),
        speed,
        uncertainty,
        *["–" if latency[name] is None else rounded(latency[name], 3) for name in ("p50", "p90", "p99")],
        share,
        "failed" if row["error"] else "yes" if row["stable"] else "no ~",
    ]


def _speed(row: Mapping[str, Any]) -> tuple[str, str]:
    speed, interval = row["images_per_second"], row["images_per_second_ci95"]
    if not speed:
        return "–", "–"
    return significant(speed, (interval[1] - interval[0]) / 2 if interval else None)


def _label(row: Mapping[str, Any]) -> str:
    streams = f" × {row['streams']}" if row["streams"] > 1 else ""
    return f"{row['runtime']} · batch {row['batch']}{streams}"


def _about(document: Document) -> str:
    if document["kind"] == "bench":
        return f"{document['model']['name']} {rows(document)[0]['precision']}"
    return f"{document['result']['model']} {document['result']['precision']}"


# ---- parity ----------------------------------------------------------------------------------------------------------


def _parity_findings(document: Document) -> list[Finding]:
    found = rows(document)
    failed = [row["runtime"] for row in found if not row["passed"]]
    name, inputs = _about(document), f"{document['result']['pictures']:g} inputs"
    if failed:
        return [Finding(state="bad", text=f"{name}: not the same function on {_and(failed)} ({inputs}).")]
    text = (
        f"{name}: the same function on {_and([row['runtime'] for row in found])}, within the error budget ({inputs})."
    )
    return [Finding(state="good", text=text)]


def _parity(document: Document, palette: dict[str, str]) -> Section:
    body, found = document["result"], rows(document)
    items = []
    for row in found:
        share = _share(row)
        items.append(
            Bar(
                label=row["runtime"],
                value=share,
                text=("pass" if row["passed"] else "FAIL") + ("" if share is not None else ": no number"),
                series="passed" if row["passed"] else "failed",
            )
        )
    chart = charts.dots(
        items,
        unit="error ÷ budget",
        palette={"passed": charts.GOOD, "failed": charts.BAD},
        log=True,
        limit=1.0,
    )
    reasons = {
        str(b.get("reason")) for b in body.get("budgets", {}).values() if isinstance(b, dict) and b.get("reason")
    }
    return Section(
        heading=f"Does every runtime compute the same? {_about(document)}",
        text=f"Gold: {body['gold']}, {body['pictures']:g} inputs."
        + (f" Budget: {'; '.join(sorted(reasons))}." if reasons else ""),
        charts=[Chart(svg=chart, caption="Error as a share of its budget; beyond the dashed line it fails.")],
        columns=["runtime", "relative RMSE", "budget", "of it", "top-1 equal", "verdict"],
        rows=[
            [
                row["runtime"],
                "not finite" if row["relative_rmse"] is None else f"{row['relative_rmse']:.1e}",
                "–" if row["budget"] is None else f"{row['budget']:.1e}",
                _times(_share(row)),
                "–" if row["top1_agreement"] is None else f"{100 * row['top1_agreement']:.1f} %",
                "pass" if row["passed"] else "FAIL",
            ]
            for row in found
        ],
        notes=[row["reason"] for row in found if not row["passed"]],
    )


def _share(row: Mapping[str, Any]) -> float | None:
    if row["relative_rmse"] is None or not row["budget"]:
        return None
    return float(row["relative_rmse"] / row["budget"])


def _times(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %" if share < 10 else f"{share:,.0f}×"


# ---- accuracy --------------------------------------------------------------------------------------------------------


def _evaluate_findings(document: Document) -> list[Finding]:
    found = rows(document)
    shares = sorted({f"{100 * row['top1']:.2f}" for row in found}, key=float)
    told = f"{shares[0]} %" if len(shares) == 1 else f"{shares[0]} to {shares[-1]} %"
    return [
        Finding(
            state="good",
            text=f"{_about(document)}: {told} top-1 on {found[0]['images']:,g} pictures of "
            f"{document['result']['data']} ({_and([row['runtime'] for row in found])}).",
        )
    ]


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson, J. American Statistical Association 22, 1927)."""
    from scipy import stats

    found = stats.binomtest(round(min(share, 1.0) * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _evaluate(document: Document, palette: dict[str, str]) -> Section:
    items, cells = [], []
    for row in rows(document):
        count = int(row["images"])
        low, high = _wilson(row["top1"], count) if count else (0.0, 1.0)
        items.append(
            Bar(
                label=row["runtime"],
                value=100 * row["top1"],
                interval=(100 * low, 100 * high),
                text=f"{100 * row['top1']:.2f} %",
                series=row["runtime"],
            )
        )
        cells.append(
            [
                row["runtime"],
                f"{100 * row['top1']:.2f}",
                f"{100 * low:.1f} – {100 * high:.1f}",
                "–" if row["top5"] is None else f"{100 * row['top5']:.2f}",
                f"{count:,}",
                rounded(row["images_per_second"], 3),
            ]
        )
    return Section(
        heading=f"How often is it right? {_about(document)}",
        text=f"On {document['result']['data']}.",
        charts=[
            Chart(
                svg=charts.dots(items, unit="top-1 accuracy, %", palette=palette),
                caption="Top-1 accuracy with the 95 % interval (Wilson) that so many pictures allow.",
            )
        ],
        columns=["runtime", "top-1 %", "95 %", "top-5 %", "images", "img/s with decoding"],
        rows=cells,
    )


# ---- conditions ------------------------------------------------------------------------------------------------------


def _files(documents: Sequence[Document]) -> Section:
    cells = []
    for found in documents:
        known = found["model"] if found["kind"] == "bench" else found["artifacts"]
        digest = known.get("sha256") or known.get("onnx_sha256") or known.get("weights_sha256")
        cells.append([found["kind"], _about(found), str(digest)[:16] if digest else "–", found["made"], found["tool"]])
    return Section(
        heading="What this page was made from",
        columns=["result", "model", "SHA-256 begins", "made", "by"],
        rows=cells,
    )


def _environments(documents: Sequence[Document]) -> list[Section]:
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for document in documents:
        found.setdefault(tuple(_environment(document["environment"])), []).append(document["kind"])
    return [
        Section(
            heading="Environment" if len(found) == 1 else f"Environment of {_and(list(dict.fromkeys(kinds)))}",
            facts=facts,
        )
        for facts, kinds in found.items()
    ]


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    cpu, memory = environment["cpu"], environment.get("memory_bytes")
    sets = cpu.get("instruction_sets")
    gpu = environment.get("gpu")
    gpus = gpu.get("gpus") if isinstance(gpu, dict) else None
    names = [str(one.get("name")) for one in gpus if isinstance(one, dict)] if isinstance(gpus, list) else []
    lines = [
        ("CPU", f"{cpu['model']}, {cpu['usable_cores']} usable cores"),
        ("instruction sets", ", ".join(map(str, sets)) if isinstance(sets, list) else ""),
        ("GPU", ", ".join(names) or "none"),
        ("memory", f"{memory / 2**30:.1f} GiB" if isinstance(memory, int) else ""),
        ("system", str(environment.get("system") or "")),
        ("Python", str(environment.get("python") or "")),
        ("libraries", ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())),
    ]
    return [(name, text) for name, text in lines if text]


def _commands(documents: Sequence[Document]) -> Section:
    lines = []
    for found in documents:
        words = found["command"]
        lines.append(shlex.join(words if words[:1] == ["resnet-onnx"] else ["resnet-onnx", *words]))
    return Section(heading="Make these numbers again", commands=list(dict.fromkeys(lines)))


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


_FINDINGS = {"bench": _bench_findings, "parity": _parity_findings, "evaluate": _evaluate_findings}
_SECTIONS = {"bench": _bench, "parity": _parity, "evaluate": _evaluate}
