"""Turns saved results of any kind into one page: verdict, speed, parity, accuracy, conditions, commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.parity.proportions import share_interval
from resnet_onnx.report import charts, conversion, pairs, search, speed
from resnet_onnx.report.charts import Bar
from resnet_onnx.report.page import Chart, Section, write_page
from resnet_onnx.report.words import listed
from resnet_onnx.results.bench import Bench, BenchRow
from resnet_onnx.results.commands import Finding
from resnet_onnx.results.compare import Compare, ComparedRow
from resnet_onnx.results.convert import Convert
from resnet_onnx.results.document import Environment, Saved
from resnet_onnx.results.evaluate import Evaluate, EvaluateRow
from resnet_onnx.results.optimize import CandidateRow, Optimize
from resnet_onnx.results.parity import Parity, ParityRow
from resnet_onnx.results.reading import AnyResult, of_kind


def write_report(
    path: Path,
    documents: Sequence[AnyResult],
    *,
    title: str | None = None,
    verdict: Finding | None = None,
    sections: Sequence[Section] = (),
) -> list[Finding]:
    """Writes the page.

    Args:
        path: HTML file to write.
        documents: As ``results.reading.read`` returns them, at least one.
        title: Of the page; by default the models and what is said of them.
        verdict: The answer above all findings; by default the first of them.
        sections: What else there is to show, before the speed.

    Returns:
        The findings that stand on top of the page.

    Raises:
        FileProblem: The page can't be written.
    """
    palette = charts.colours([row.runtime for found in documents for row in _rows(found)])
    speeds = speed.by_model([found for found in documents if isinstance(found, Bench)])
    findings = speed.findings(speeds, proven=_proven(documents))
    judged: list[Section] = []
    for parity in of_kind(documents, Parity):
        findings += _parity_findings(parity)
        judged.append(_parity(parity))
    for evaluation in of_kind(documents, Evaluate):
        findings += _evaluate_findings(evaluation)
        judged.append(_evaluate(evaluation, palette))
    for converted in of_kind(documents, Convert):
        findings += conversion.findings(converted)
        judged.append(conversion.section(converted, palette))
    for compared in of_kind(documents, Compare):
        findings += pairs.findings(compared)
        judged.append(pairs.section(compared))
    for searched in of_kind(documents, Optimize):
        findings += search.findings(searched)
        judged = [*search.sections(searched), *judged]
    # What is bad comes first whatever it is of; otherwise the question that most come with: how fast is it?
    findings.sort(key=lambda finding: finding.state != "bad")
    if verdict is not None:
        findings.insert(0, verdict)
    parts = [
        *sections,
        *speed.overview(speeds, palette),
        *[found.section(palette) for found in speeds],
        *judged,
        _files(documents),
        *_environments(documents),
        _commands(documents),
    ]
    write_page(
        path,
        title=title or _title(documents),
        findings=findings,
        sections=parts,
        footer=f"Made by {documents[0].tool} from {len(documents)} saved "
        f"result{'' if len(documents) == 1 else 's'}. Needs no network.",
    )
    return findings


def _title(documents: Sequence[AnyResult]) -> str:
    subjects = {
        "bench": "speed",
        "parity": "parity",
        "evaluate": "accuracy",
        "convert": "precision",
        "compare": "comparison",
        "optimize": "the fastest engine",
    }
    kinds = {found.kind for found in documents}
    told = listed([subject for kind, subject in subjects.items() if kind in kinds])
    models = list(dict.fromkeys(_model(found) for found in documents))
    return f"{', '.join(models) if len(models) < 4 else f'{len(models)} models'}: {told}"


def _rows(document: AnyResult) -> Sequence[BenchRow | ParityRow | EvaluateRow | ComparedRow | CandidateRow]:
    """Returns the rows of a result: one per runtime and, with ``bench``, batch and streams; ``convert`` has none."""
    if isinstance(document, Bench):
        return document.results
    return [] if isinstance(document.result, Convert) else document.result.results


def _model(document: AnyResult) -> str:
    return document.model.name if isinstance(document, Bench) else document.result.model


def _about(document: AnyResult) -> str:
    precision = document.results[0].precision if isinstance(document, Bench) else document.result.precision
    return f"{_model(document)} {precision}"


def _proven(documents: Sequence[AnyResult]) -> set[tuple[str, str, str]]:
    """Returns hash, precision and runtime of what passed the test of parity."""
    return {
        (found.artifacts.sha256, found.result.precision, row.runtime)
        for found in of_kind(documents, Parity)
        for row in found.result.results
        if row.passed and found.artifacts.sha256 is not None
    }


def _parity_findings(document: Saved[Parity]) -> list[Finding]:
    found = document.result.results
    failed = [row.runtime for row in found if not row.passed]
    name, inputs = _about(document), f"{document.result.pictures:g} inputs"
    if failed:
        return [Finding(state="bad", text=f"{name}: not the same function on {listed(failed)} ({inputs}).")]
    text = f"{name}: the same function on {listed([row.runtime for row in found])}, within the error budget ({inputs})."
    return [Finding(state="good", text=text)]


def _parity(document: Saved[Parity]) -> Section:
    body, found = document.result, document.result.results
    items = [
        Bar(
            label=row.runtime,
            value=row.share,
            text=("pass" if row.passed else "FAIL") + ("" if row.share is not None else ": no number"),
            series="passed" if row.passed else "failed",
        )
        for row in found
    ]
    palette = {"passed": charts.GOOD, "failed": charts.BAD}
    chart = charts.dots(items, unit="error ÷ budget", palette=palette, log=True, limit=1.0)
    reasons = {budget.reason for budget in (body.budgets or {}).values() if budget.reason}
    return Section(
        heading=f"Does every runtime compute the same? {_about(document)}",
        text=f"Gold: {body.gold}, {body.pictures:g} inputs."
        + (f" Budget: {'; '.join(sorted(reasons))}." if reasons else ""),
        charts=[Chart(svg=chart, caption="Error as a share of its budget; beyond the dashed line it fails.")],
        columns=["runtime", "relative RMSE", "budget", "of it", "top-1 equal", "verdict"],
        rows=[
            [
                row.runtime,
                "not finite" if row.relative_rmse is None else f"{row.relative_rmse:.1e}",
                "–" if row.budget is None else f"{row.budget:.1e}",
                _times(row.share),
                "–" if row.top1_agreement is None else f"{100 * row.top1_agreement:.1f} %",
                "pass" if row.passed else "FAIL",
            ]
            for row in found
        ],
        notes=[row.reason for row in found if not row.passed],
    )


def _times(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %" if share < 10 else f"{share:,.0f}×"


def _evaluate_findings(document: Saved[Evaluate]) -> list[Finding]:
    found = document.result.results
    shares = sorted({f"{100 * row.top1:.2f}" for row in found}, key=float)
    told = f"{shares[0]} %" if len(shares) == 1 else f"{shares[0]} to {shares[-1]} %"
    data = f"{found[0].images:,g} pictures of {Path(document.result.data).name}{_views(document)}"
    runtimes = listed([row.runtime for row in found])
    return [Finding(state="good", text=f"{_about(document)}: {told} top-1 on {data} ({runtimes}).")]


def _views(document: Saved[Evaluate]) -> str:
    """Says how many views of each picture were averaged, where it was more than the usual one."""
    views = document.result.views
    return f", the mean over {views}" if views not in (None, "1 crop") else ""


def _evaluate(document: Saved[Evaluate], palette: dict[str, str]) -> Section:
    items, cells = [], []
    for row in document.result.results:
        count = row.images
        low, high = share_interval(round(min(row.top1, 1.0) * count), count) if count else (0.0, 1.0)
        items.append(
            Bar(
                label=row.runtime,
                value=100 * row.top1,
                interval=(100 * low, 100 * high),
                text=f"{100 * row.top1:.2f} %",
                series=row.runtime,
            )
        )
        cells.append(
            [
                row.runtime,
                f"{100 * row.top1:.2f}",
                f"{100 * low:.1f} – {100 * high:.1f}",
                "–" if row.top5 is None else f"{100 * row.top5:.2f}",
                f"{count:,}",
                rounded(row.images_per_second, 3),
            ]
        )
    return Section(
        heading=f"How often is it right? {_about(document)}",
        text=f"On {document.result.data}{_views(document)}.",
        charts=[
            Chart(
                svg=charts.dots(items, unit="top-1 accuracy, %", palette=palette),
                caption="Top-1 accuracy with the 95 % interval (Wilson) that so many pictures allow.",
            )
        ],
        columns=["runtime", "top-1 %", "95 %", "top-5 %", "images", "img/s with decoding"],
        rows=cells,
    )


def _files(documents: Sequence[AnyResult]) -> Section:
    cells = []
    for found in documents:
        digest = _digest(found)
        cells.append([found.kind, _about(found), digest[:16] if digest else "–", found.made, found.tool])
    columns = ["result", "model", "SHA-256 begins", "made", "by"]
    return Section(heading="What this page was made from", columns=columns, rows=cells)


def _digest(document: AnyResult) -> str | None:
    """Returns the hash of the file or, where there is none, of the weights; of a conversion, of the file it made."""
    if isinstance(document, Bench):
        return document.model.sha256 or document.model.weights_sha256
    made = document.result.sha256 if isinstance(document.result, Convert) else ""
    return made or document.artifacts.sha256


def _environments(documents: Sequence[AnyResult]) -> list[Section]:
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for document in documents:
        found.setdefault(tuple(_environment(document.environment)), []).append(document.kind)
    return [
        Section(
            heading="Environment" if len(found) == 1 else f"Environment of {listed(list(dict.fromkeys(kinds)))}",
            facts=facts,
        )
        for facts, kinds in found.items()
    ]


def _environment(environment: Environment) -> list[tuple[str, str]]:
    cpu, memory = environment.cpu, environment.memory_bytes
    lines = [
        ("CPU", f"{cpu.model}, {cpu.usable_cores} usable cores{_quota(environment)}"),
        ("instruction sets", ", ".join(cpu.instruction_sets)),
        ("GPU", ", ".join(gpu.name for gpu in environment.gpu.gpus) if environment.gpu is not None else ""),
        ("memory", f"{memory / 2**30:.1f} GiB" if memory is not None else ""),
        ("system", environment.system or ""),
        ("Python", environment.python or ""),
        ("libraries", ", ".join(f"{name} {version}" for name, version in environment.libraries.items())),
    ]
    return [(name, text or "none") for name, text in lines if text or name == "GPU"]


def _quota(environment: Environment) -> str:
    quota = environment.cpu.quota_cores
    return "" if quota is None else f", a quota of {quota:g}"


def _commands(documents: Sequence[AnyResult]) -> Section:
    lines = []
    for found in documents:
        words = list(found.command)
        lines.append(shlex.join(words if words[:1] == ["resnet-onnx"] else ["resnet-onnx", *words]))
    return Section(heading="Make these numbers again", commands=list(dict.fromkeys(lines)))
