"""Turns saved results of any kind into one page: verdict, speed, parity, accuracy, conditions, commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.parity.proportions import share_interval
from resnet_onnx.report import charts, conversion, speed
from resnet_onnx.report.charts import Bar
from resnet_onnx.report.page import Chart, Finding, Section, write_page
from resnet_onnx.report.results import rows
from resnet_onnx.report.words import listed

Document = Mapping[str, Any]


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
    palette = charts.colours([row["runtime"] for found in documents for row in rows(found) if "runtime" in row])
    speeds = speed.by_model(documents)
    findings = speed.findings(speeds, proven=_proven(documents))
    others = [found for kind in _FINDINGS for found in documents if found["kind"] == kind]
    findings += [finding for found in others for finding in _FINDINGS[found["kind"]](found)]
    # What is bad comes first whatever it is of; otherwise the question that most come with: how fast is it?
    findings.sort(key=lambda finding: finding.state != "bad")
    whole = speed.overview(speeds, palette)
    sections = [
        *([whole] if whole is not None else []),
        *[found.section(palette) for found in speeds],
        *[_SECTIONS[found["kind"]](found, palette) for found in others],
        _files(documents),
        *_environments(documents),
        _commands(documents),
    ]
    write_page(
        path,
        title=_title(documents),
        verdict=findings[0].text,
        passed=findings[0].state != "bad",
        doubtful=findings[0].state == "doubt",
        findings=findings[1:],
        sections=sections,
        footer=f"Made by {documents[0]['tool']} from {len(documents)} saved "
        f"result{'' if len(documents) == 1 else 's'}. Needs no network.",
    )
    return findings


def _title(documents: Sequence[Document]) -> str:
    subjects = {"bench": "speed", "parity": "parity", "evaluate": "accuracy", "convert": "precision"}
    kinds = {found["kind"] for found in documents}
    told = listed([subject for kind, subject in subjects.items() if kind in kinds])
    models = list(dict.fromkeys(_model(found) for found in documents))
    return f"{', '.join(models) if len(models) < 4 else f'{len(models)} models'}: {told}"


def _model(document: Document) -> str:
    name: str = document["model"]["name"] if document["kind"] == "bench" else document["result"]["model"]
    return name


def _about(document: Document) -> str:
    if document["kind"] == "bench":
        return f"{document['model']['name']} {rows(document)[0]['precision']}"
    return f"{document['result']['model']} {document['result']['precision']}"


def _proven(documents: Sequence[Document]) -> set[tuple[str, str, str]]:
    """Returns hash, precision and runtime of what passed the test of parity.

    The hash is that of the file, and that of the weights only where there was no file: a file may do anything to them.
    """
    return {
        (digest, found["result"]["precision"], row["runtime"])
        for found in documents
        if found["kind"] == "parity"
        for digest in [found["artifacts"].get("onnx_sha256") or found["artifacts"].get("weights_sha256")]
        for row in rows(found)
        if row["passed"] and isinstance(digest, str)
    }


# ---- parity ----------------------------------------------------------------------------------------------------------


def _parity_findings(document: Document) -> list[Finding]:
    found = rows(document)
    failed = [row["runtime"] for row in found if not row["passed"]]
    name, inputs = _about(document), f"{document['result']['pictures']:g} inputs"
    if failed:
        return [Finding(state="bad", text=f"{name}: not the same function on {listed(failed)} ({inputs}).")]
    text = (
        f"{name}: the same function on {listed([row['runtime'] for row in found])}, within the error budget ({inputs})."
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
        str(b.get("reason")) for b in (body.get("budgets") or {}).values() if isinstance(b, dict) and b.get("reason")
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
            f"{Path(document['result']['data']).name}{_views(document)} ({listed([row['runtime'] for row in found])}).",
        )
    ]


def _views(document: Document) -> str:
    """Says how many views of each picture were averaged, where it was more than the usual one."""
    views = document["result"].get("views")
    return f", the mean over {views}" if isinstance(views, str) and views != "1 crop" else ""


def _evaluate(document: Document, palette: dict[str, str]) -> Section:
    items, cells = [], []
    for row in rows(document):
        count = int(row["images"])
        low, high = share_interval(round(min(row["top1"], 1.0) * count), count) if count else (0.0, 1.0)
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
        text=f"On {document['result']['data']}{_views(document)}.",
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
        if found["kind"] == "convert":
            known = {**known, "sha256": found["result"].get("sha256")}  # the file that was made, not its source
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
            heading="Environment" if len(found) == 1 else f"Environment of {listed(list(dict.fromkeys(kinds)))}",
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


_FINDINGS = {"parity": _parity_findings, "evaluate": _evaluate_findings, "convert": conversion.findings}
_SECTIONS = {"parity": _parity, "evaluate": _evaluate, "convert": conversion.section}
"""In the order of the page, after speed."""
