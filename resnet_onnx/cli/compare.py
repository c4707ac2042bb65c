"""``resnet-onnx compare``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import (
    Number,
    OutputFile,
    WholeNumbers,
    device_option,
    early_problem,
    make_command,
    model_options,
    save_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from resnet_onnx.results.compare import Compare, ComparedRow, FailOn
    from resnet_onnx.workflow import PairsPlan, Request

_FAILURES = ("slower", "missing", "inconclusive", "different")
_OF_A_MEASUREMENT = ("runtimes", "batch", "streams", "threads", "duration", "device", "base_python", "new_python")
_DURATION_S = 60.0


class Percent(click.ParamType[Any]):
    """A percentage: ``2`` or ``2%``."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the number; the sign may follow it."""
        try:
            number = float(str(value).strip().removesuffix("%"))
        except ValueError:
            self.fail(f"'{value}' is not a percentage like 2 or 2%", param, ctx)
        if not 0 < number < 100:
            self.fail(f"'{value}': expected more than 0 and less than 100 percent", param, ctx)
        return number


class FailOnNames(click.ParamType[Any]):
    """A comma list of what makes a comparison fail."""

    name = "WHAT,WHAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Splits the text; ``none`` is nothing."""
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        unknown = [name for name in names if name not in _FAILURES]
        if names == ("none",):
            return ()
        if unknown or not names:
            self.fail(f"'{value}': expected a list of {', '.join(_FAILURES)}, or none", param, ctx)
        return names


@make_command("compare", example="resnet-onnx compare old.onnx new.onnx --runtime ort-cpu --tolerance 3%")
@click.argument("base")
@click.argument("new")
@click.option(
    "--tolerance", type=Percent(), default="2", show_default="2", help="Change that does not matter, in percent."
)
@click.option(
    "--fail-on",
    type=FailOnNames(),
    default="slower,missing",
    show_default=True,
    help=f"What ends with exit code 1: {', '.join(_FAILURES)}, or none.",
)
@click.option("--force", is_flag=True, help="Of saved results: compare another model, input or scope all the same.")
@click.option("--runtime", "--runtimes", "runtimes", help="Of models: runtimes, a comma list.  [default: ort-cpu]")
@click.option("--batch", type=WholeNumbers(), help="Of models: batch sizes.  [default: 1, or their own fixed batch]")
@click.option("--streams", type=WholeNumbers(), help="Of models: concurrent runs.  [default: 1]")
@click.option("--threads", type=WholeNumbers(), help="Of models: CPU threads.  [default: all usable cores]")
@click.option("--duration", type=Number(0, min_open=True), help="Of models: seconds a row, at most.  [default: 60]")
@click.option("--base-python", type=click.Path(path_type=Path), help="Python of another environment, to run BASE in.")
@click.option("--new-python", type=click.Path(path_type=Path), help="Python of another environment, to run NEW in.")
@device_option
@model_options(argument=False)
@save_option
@click.option("--junit", type=OutputFile(), help="Write the verdicts as JUnit XML.")
@click.option("--markdown", type=OutputFile(), help="Write the table as Markdown.")
def command(
    terminal: Terminal,
    *,
    base: str,
    new: str,
    request: Request,
    tolerance: float,
    fail_on: tuple[FailOn, ...],
    force: bool,
    save: Path | None,
    junit: Path | None,
    markdown: Path | None,
    **measuring: Any,
) -> None:
    """Say whether NEW is faster or slower than BASE, with an interval.

    BASE and NEW are two models (ONNX, engine, checkpoint, name), which are measured here in turns until the verdict is
    certain; the same one twice is allowed. Or they are two files of bench --save. The ratio is images per second of NEW
    over BASE; a row is slower (exit code 1) only when its whole 95 % interval lies beyond the tolerance.
    """
    given = {name: value for name, value in measuring.items() if value is not None}
    if _are_saved(base, new):
        _check_only_saved(given)
        found = _compare_saved(Path(base), Path(new), tolerance=tolerance / 100, fail_on=fail_on, force=force)
    else:
        if force:
            raise UsageError("--force is of saved results; two models are compared in any case", fix="leave it out")
        found = _compare_models(terminal, (base, new), request, tolerance / 100, fail_on, given)
    _print(terminal, found)
    _write(terminal, found, save=save, junit=junit, markdown=markdown)
    terminal.emit(found)
    if not found.passed:
        raise click.exceptions.Exit(CheckFailed.exit_code)


def _are_saved(base: str, new: str) -> bool:
    """Returns whether both are saved results, and not models.

    Raises:
        UsageError: One is a saved result, and the other a model.
    """
    saved = [_is_saved(Path(name)) for name in (base, new)]
    if saved[0] != saved[1]:
        result, model = (base, new) if saved[0] else (new, base)
        raise UsageError(
            f"{result} is a saved result and {model} a model: expected two of a kind",
            fix="name two models, which are measured in turns, or two files of bench --save",
        )
    return saved[0]


def _is_saved(path: Path) -> bool:
    """A JSON file, or what is named like one; anything else that can't be a model is a result that can't be read."""
    if path.suffix.lower() == ".json" or (path.exists() and not path.is_file() and not path.is_dir()):
        return True
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False


def _check_only_saved(given: dict[str, Any]) -> None:
    useless = [
        f"--{name.replace('_', '-').replace('runtimes', 'runtime')}" for name in _OF_A_MEASUREMENT if name in given
    ]
    if useless:
        raise UsageError(
            f"{', '.join(useless)} was given, and saved results are measured already",
            fix="leave it out, or name two models",
        )


def _compare_saved(base: Path, new: Path, **options: Any) -> Compare:
    from resnet_onnx.bench.compare import compare
    from resnet_onnx.results.reading import read_bench

    return compare(read_bench(base), read_bench(new), **options)


def _compare_models(
    terminal: Terminal,
    names: tuple[str, str],
    request: Request,
    tolerance: float,
    fail_on: tuple[FailOn, ...],
    given: dict[str, Any],
) -> Compare:
    from resnet_onnx import workflow
    from runtimes import registry

    architecture = request.name or request.model  # --model NAME: the architecture of a weights file
    requests = [replace(request, model=name, name=architecture) for name in names]
    chosen = registry.parse_names(given["runtimes"] if "runtimes" in given else _own_runtime(names))
    plan = _plan(chosen, tolerance, fail_on, given, request.seed)
    problems = [early_problem(one) for one in requests]
    if plan.base_python is None or plan.new_python is None:
        registry.require_all(chosen, device=plan.device)
    for problem in problems:
        if problem is not None:
            raise problem
    with terminal.status("preparing the models", refresh_per_second=1) as status:
        models = [workflow.resolve(one) for one in requests]
        for note in dict.fromkeys(f"{model.name}: {note}" for model in models for note in model.notes):
            terminal.note(note)
        return workflow.compare_models(models[0], models[1], plan, progress=status.update)


def _own_runtime(names: Sequence[str]) -> str:
    """Returns the runtime of models where nobody named one: that of an engine's library, or the default."""
    from runtimes import engines, registry

    for name in names:
        if name.endswith(engines.SUFFIX) and Path(name).is_file():
            return engines.read_record(Path(name)).key.library
    return registry.DEFAULT_RUNTIME


def _plan(
    runtimes: Sequence[str], tolerance: float, fail_on: tuple[FailOn, ...], given: dict[str, Any], seed: int
) -> PairsPlan:
    from resnet_onnx.bench.paired import PairedPlan
    from resnet_onnx.workflow import PairsPlan

    return PairsPlan(
        pair=PairedPlan(duration_s=given.get("duration", _DURATION_S), tolerance=tolerance),
        runtimes=tuple(runtimes),
        batches=given.get("batch"),
        streams=given.get("streams", (1,)),
        threads=given.get("threads", (None,)),
        device=given.get("device"),
        base_python=given.get("base_python"),
        new_python=given.get("new_python"),
        fail_on=fail_on,
        seed=seed,
    )


# ---- for people ------------------------------------------------------------------------------------------------------


def _print(terminal: Terminal, found: Compare) -> None:
    terminal.line(_summary(found))
    for reason in found.different_work:
        terminal.line(f"  compared by force: {reason}")
    terminal.line()
    terminal.table(*_table(found))
    terminal.line()
    for line in _conditions(found):
        terminal.line(line)


def _table(found: Compare) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the cells of the table."""
    from resnet_onnx.bench.statistics import rounded

    several = any(row.streams > 1 for row in found.rows)
    threads = len({row.threads for row in found.rows}) > 1
    arranged = [*(["streams"] if several else []), *(["threads"] if threads else [])]
    paired = ["blocks"] if found.paired else []
    columns = ["runtime", "batch", *arranged, *paired, "BASE img/s", "NEW img/s", "ratio", "95 %", "verdict"]
    cells = [
        [
            row.runtime,
            str(row.batch),
            *([str(row.streams)] if several else []),
            *([str(row.threads or "all")] if threads else []),
            *([str(row.block_count)] if found.paired else []),
            "–" if row.base_images_per_second is None else rounded(row.base_images_per_second, 3),
            "–" if row.new_images_per_second is None else rounded(row.new_images_per_second, 3),
            "–" if row.ratio is None else f"{row.ratio:.3f}×",
            "–" if row.ci95 is None else f"{row.ci95[0]:.3f} – {row.ci95[1]:.3f}",
            "FAILED" if row.failed else row.verdict.upper() if row.verdict == "slower" else row.verdict,
        ]
        for row in found.rows
    ]
    return columns, cells


def _conditions(found: Compare) -> list[str]:
    """Returns what was compared and what to doubt, a line each."""
    first = found.rows[0]
    scopes = {"device": "device-resident work", "end-to-end": "end to end"}
    lines = [
        f"{found.model} · {first.precision} · {scopes.get(first.scope, first.scope)} · "
        f"ratio: images per second, NEW over BASE · tolerance {100 * found.tolerance:g} %"
    ]
    if found.paired:
        lines.append("Measured in turns; the interval holds whenever it is looked at.")
    for row in found.rows:
        notes = [*row.notes, *([f"outputs {row.outputs.text}"] if row.outputs is not None else [])]
        lines += [f"  {_where(row)}: {note}" for note in notes]
    for which, names in (("only in BASE", found.missing), ("only in NEW", found.extra)):
        lines += [f"  {which}: {name}" for name in names]
    if not found.paired and any(row.verdict == "inconclusive" and not row.failed for row in found.rows):
        lines.append("To settle what is inconclusive: compare the two models themselves, which measures them in turns.")
    if found.environment_differs:
        lines.append("The environments differ:")
        lines += [f"  {text}" for text in found.environment_differs]
    return lines


def _summary(found: Compare) -> str:
    counts = {
        name: sum(row.verdict == name and not row.failed for row in found.rows)
        for name in ("slower", "faster", "same", "inconclusive")
    }
    counts["failed"] = sum(row.failed for row in found.rows)
    counts["missing"] = len(found.missing)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if any(row.outputs is not None and row.outputs.different for row in found.rows):
        told += "; the outputs differ"
    if found.environment_differs:
        told += "; the environments differ, which may be the cause (below)"
    if found.failures == ["different"]:
        return f"Different: {told}"
    for name in ("slower", "failed", "missing"):
        if counts[name]:
            return f"{name.capitalize()}: {told}"
    return f"{'Not shown to be slower' if counts['inconclusive'] else 'Not slower'}: {told}"


def _where(row: ComparedRow) -> str:
    streams = f", {row.streams} streams" if row.streams > 1 else ""
    threads = f", {row.threads} threads" if row.threads else ""
    return f"{row.runtime} batch {row.batch}{streams}{threads}"


# ---- files -----------------------------------------------------------------------------------------------------------


def _write(terminal: Terminal, found: Compare, *, save: Path | None, junit: Path | None, markdown: Path | None) -> None:
    from resnet_onnx import workflow
    from resnet_onnx.results import tables
    from resnet_onnx.results.writing import write
    from runtimes import files

    if save is not None:
        write(save, workflow.saved_comparison(found))
    if junit is not None:
        _write_junit(junit, found)
    if markdown is not None:
        command = ["resnet-onnx", *sys.argv[1:]]
        above = [f"**{_summary(found)}**"]
        files.write_text(
            markdown, tables.markdown(*_table(found), above=above, below=_conditions(found), command=command)
        )
    for path in (save, junit, markdown):
        if path is not None:
            terminal.note(f"saved: {path}")


def _write_junit(path: Path, found: Compare) -> None:
    """Writes a case a row, and one for each row that only BASE has; it fails by what ``--fail-on`` names."""
    from resnet_onnx.bench.compare import row_failures
    from resnet_onnx.results.junit import Case, write_suite

    cases = []
    for row in found.rows:
        interval = "" if row.ci95 is None else f" ({row.ci95[0]:.3f} – {row.ci95[1]:.3f})"
        ratio = "" if row.ratio is None else f": {row.ratio:.3f}×{interval}"
        outputs = [] if row.outputs is None else [f"outputs {row.outputs.text}"]
        said = "; ".join([f"{'failed' if row.failed else row.verdict}{ratio}", *row.notes, *outputs])
        failed = any(name in found.fail_on for name in row_failures(row))
        cases.append(Case(name=_where(row), seconds=row.measured_s or 0.0, failure=said if failed else None, text=said))
    for name in found.missing:
        missing = "only BASE has it" if "missing" in found.fail_on else None
        cases.append(Case(name=name, seconds=0.0, failure=missing, text="only BASE has it"))
    write_suite(path, "compare", found.model, cases)
