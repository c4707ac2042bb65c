"""``resnet-onnx compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import CheckFailed

if TYPE_CHECKING:
    from resnet_onnx.results.commands import Compare, ComparedRow


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


@make_command("compare", example="resnet-onnx compare before.json after.json --tolerance 3%")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--tolerance", type=Percent(), default="2", show_default="2", help="Change that does not matter, in percent."
)
@click.option("--force", is_flag=True, help="Compare different work all the same: another model, input or scope.")
def command(terminal: Terminal, *, base: Path, new: Path, tolerance: float, force: bool) -> None:
    """Say which rows of two saved benchmarks became faster or slower.

    BASE and NEW are files of bench --save. The ratio is images per second of NEW over BASE; a row is slower (exit
    code 1) only when its whole 95 % interval lies beyond the tolerance.
    """
    from resnet_onnx.bench.compare import compare
    from resnet_onnx.results.reading import read_bench

    found = compare(read_bench(base), read_bench(new), tolerance=tolerance / 100, force=force)
    _print(terminal, found)
    terminal.emit(found)
    if found.regressed:
        raise click.exceptions.Exit(CheckFailed.exit_code)


def _print(terminal: Terminal, found: Compare) -> None:
    from resnet_onnx.bench.statistics import rounded

    terminal.line(_summary(found))
    for reason in found.different_work:
        terminal.line(f"  compared by force: {reason}")
    terminal.line()
    several = any(row.streams > 1 for row in found.rows)
    threads = len({row.threads for row in found.rows}) > 1
    arranged = [*(["streams"] if several else []), *(["threads"] if threads else [])]
    columns = ["runtime", "batch", *arranged, "BASE img/s", "NEW img/s", "ratio", "95 %"]
    terminal.table(
        [*columns, "verdict"],
        [
            [
                row.runtime,
                str(row.batch),
                *([str(row.streams)] if several else []),
                *([str(row.threads or "all")] if threads else []),
                "–" if row.base_images_per_second is None else rounded(row.base_images_per_second, 3),
                "–" if row.new_images_per_second is None else rounded(row.new_images_per_second, 3),
                "–" if row.ratio is None else f"{row.ratio:.3f}×",
                "–" if row.ci95 is None else f"{row.ci95[0]:.3f} – {row.ci95[1]:.3f}",
                "FAILED" if row.failed else row.verdict.upper() if row.verdict == "slower" else row.verdict,
            ]
            for row in found.rows
        ],
    )
    terminal.line()
    first = found.rows[0]
    scopes = {"device": "device-resident work", "end-to-end": "end to end"}
    terminal.line(
        f"{first.model} · {first.precision} · {scopes.get(first.scope, first.scope)} · "
        f"ratio: images per second, NEW over BASE · tolerance {100 * found.tolerance:g} %"
    )
    for row in found.rows:
        for note in row.notes:
            terminal.line(f"  {_where(row)}: {note}")
    for which, names in (("only in BASE", found.missing), ("only in NEW", found.extra)):
        for name in names:
            terminal.line(f"  {which}: {name}")
    if any(row.verdict == "inconclusive" and not row.failed for row in found.rows):
        terminal.line("To settle what is inconclusive: a longer bench --duration, both on a quiet machine.")
    if found.environment_differs:
        terminal.line("The environments differ:")
        for text in found.environment_differs:
            terminal.line(f"  {text}")


def _summary(found: Compare) -> str:
    counts = {
        name: sum(row.verdict == name and not row.failed for row in found.rows)
        for name in ("slower", "faster", "same", "inconclusive")
    }
    counts["failed"] = sum(row.failed for row in found.rows)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if found.environment_differs:
        told += "; the environments differ, which may be the cause (below)"
    if counts["slower"] or counts["failed"]:
        return f"{'Slower' if counts['slower'] else 'Failed'}: {told}"
    return f"{'Not shown to be slower' if counts['inconclusive'] else 'Not slower'}: {told}"


def _where(row: ComparedRow) -> str:
    streams = f", {row.streams} streams" if row.streams > 1 else ""
    threads = f", {row.threads} threads" if row.threads else ""
    return f"{row.runtime} batch {row.batch}{streams}{threads}"
