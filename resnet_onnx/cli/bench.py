"""``resnet-onnx bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    WholeNumbers,
    device_option,
    early_problem,
    make_command,
    model_options,
    runtime_option,
    save_option,
    threads_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from resnet_onnx.bench.measure import Plan, Row, Scenario
    from resnet_onnx.bench.roofline import Peaks, Work
    from resnet_onnx.workflow import Model, Request
    from runtimes.spec import Feeds, RuntimeOptions, Scope

_DEFAULT_MODEL = "resnet50"
_DEFAULT_BATCHES = (1, 8)
_PICTURES = 16
"""Distinct sample pictures in a batch; a larger batch repeats them, since the time of a run does not depend on them."""


@make_command("bench", example="resnet-onnx bench resnet50 --runtime torch,ort-cpu,openvino --batch 1,8")
@model_options(required=False)
@runtime_option(default="all", several=True)
@click.option("--batch", type=WholeNumbers(), help="Batch sizes.  [default: 1,8, or the model's own fixed batch]")
@click.option("--streams", type=WholeNumbers(), help="Concurrent runs.  [default: 1]")
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds a row, at most.",
)
@click.option(
    "--scenario",
    type=click.Choice(["latency", "throughput"]),
    help="One run at a time, or as many as --streams.  [default: by --streams]",
)
@click.option(
    "--scope",
    type=click.Choice(["device", "end-to-end"]),
    default="device",
    show_default=True,
    help="Device memory to device memory, or host array to host array with copies.",
)
@device_option
@threads_option
@tuning_options
@save_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtimes: str,
    batch: tuple[int, ...] | None,
    streams: tuple[int, ...] | None,
    duration: float,
    scenario: Scenario | None,
    scope: Scope,
    device: str | None,
    threads: int | None,
    tuning: RuntimeOptions,
    save: Path | None,
) -> None:
    """Measure throughput and latency of MODEL (resnet50) on several runtimes, in turns.

    A row ends when the 95 % interval of its median is within 1 %, or after --duration.
    """
    import sys
    import time
    from dataclasses import asdict, replace

    from resnet_onnx import __version__, workflow
    from runtimes import files, registry
    from runtimes.environment import describe_machine

    if request.model is None:
        request = replace(request, model=_DEFAULT_MODEL)
    chosen_streams = _streams(streams, scenario)
    names = registry.parse_names(runtimes, device=device)
    check_tuning(tuning, names, device=device)
    problem = early_problem(request)
    registry.require_all(names, device=device)
    if problem is not None:
        raise problem

    from resnet_onnx.bench import record, roofline
    from resnet_onnx.bench.measure import Contender, Plan, measure

    with terminal.status("preparing the model", refresh_per_second=1) as status:
        model = workflow.resolve(request)
        names, left_out = workflow.runnable(model, names, chosen_by_all="all" in runtimes.split(","))
        batches, count = _batches(model, batch)
        plan = Plan(batches=batches, streams=chosen_streams, duration_s=duration, scope=scope)
        feeds = workflow.sample_feeds(model, count, seed=request.seed)
        path = workflow.graph_path(model)
        contenders = []
        for name in names:
            options = workflow.tuned(model, name, replace(tuning, threads=threads), batches)
            found = workflow.source(model, name, device=device, options=options, batches=batches)
            contenders.append(Contender(runtime=name, source=found, device=device, options=options))
        shapes = {size: _shapes(feeds, workflow.specs(model), size) for size in batches}
        work = {size: roofline.count_work(path, shapes[size]) if path else None for size in batches}
        for note in model.notes:
            terminal.note(f"{model.name}: {note}")
        if left_out:
            terminal.note(f"left out: {', '.join(left_out)} (the torch weights of this file are not at hand)")
        rows = measure(contenders, feeds, plan, progress=status.update)
        if all(row.error is not None and not row.slices for row in rows):
            raise next(row.error for row in rows if row.error is not None)
        status.update("measuring the machine's peak")
        peaks = _peaks(rows)

    def results(*, raw: bool) -> list[dict[str, Any]]:
        return [_result(row, model, scenario, work[row.batch], peaks, raw) for row in rows]

    environment = describe_machine()
    about = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tool": f"resnet-onnx {__version__}",
        "command": ["resnet-onnx", *sys.argv[1:]],
        "model": _about(model, path),
        "environment": {
            **environment,
            "peaks": {str(threads): asdict(found) for threads, found in peaks.items() if found is not None},
        },
    }
    shown = results(raw=False)
    _print(terminal, model, environment, shown, plan)
    if any(found is not None and not found.undisturbed for found in peaks.values()):
        terminal.note("the machine's peak was measured while other programs ran: shares of it come out too high")
    if save is not None:
        files.write_json(save, record.document(results(raw=True), plan=plan, about=about))
        terminal.note(f"saved: {save}")
    terminal.emit(record.document(shown, plan=plan, about=about))
    failed = [row.error for row in rows if row.error is not None and row.error.kind != "out-of-memory"]
    if failed:
        raise click.exceptions.Exit(Unavailable.exit_code)


def _streams(streams: tuple[int, ...] | None, scenario: str | None) -> tuple[int, ...]:
    if scenario == "latency" and streams is not None and max(streams) > 1:
        raise UsageError(
            f"the latency scenario runs one request at a time, and --streams {','.join(map(str, streams))} was given",
            fix="use --scenario throughput, or leave --streams out",
        )
    if streams is not None:
        return streams
    if scenario == "throughput":
        from runtimes.base import usable_cores

        return (max(2, usable_cores()),)
    return (1,)


def _batches(model: Model, asked: tuple[int, ...] | None) -> tuple[tuple[int, ...], int]:
    """Returns the batch sizes to measure, and how many distinct samples the feeds should have."""
    from resnet_onnx import workflow

    first = next((spec.shape[0] for spec in workflow.specs(model) if spec.shape), 1)
    if isinstance(first, int):
        if asked is not None and asked != (first,):
            raise UsageError(
                f"{model.name} has a fixed batch of {first}, and --batch {','.join(map(str, asked))} was asked for",
                fix=f"--batch {first}, or export it with --batch dynamic",
            )
        return (first,), first
    batches = asked or _DEFAULT_BATCHES
    return batches, min(max(batches), _PICTURES)


def _shapes(feeds: Feeds, specs: Sequence[Any], batch: int) -> dict[str, tuple[int, ...]]:
    free = {spec.name for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    return {name: (batch, *array.shape[1:]) if name in free else array.shape for name, array in feeds.items()}


def _peaks(rows: Sequence[Row]) -> dict[int, Peaks | None]:
    """Returns the machine's peaks by thread count, for the rows that ran on the CPU."""
    from resnet_onnx.bench import roofline

    counts = {_cpu_threads(row) for row in rows if row.slices}
    return {count: roofline.peaks(count) for count in sorted(counts - {0})}


def _cpu_threads(row: Row) -> int:
    """Returns how many CPU threads a row computed with, 0 where it did not run on the CPU."""
    from runtimes.base import usable_cores

    if row.opened is None or row.opened.device != "cpu":
        return 0
    threads = row.opened.recorded.get("threads")
    return min(usable_cores(), threads * row.streams) if isinstance(threads, int) else usable_cores()


def _result(
    row: Row,
    model: Model,
    scenario: Scenario | None,
    work: Work | None,
    peaks: Mapping[int, Peaks | None],
    raw: bool,
) -> dict[str, Any]:
    from resnet_onnx.bench import record, roofline

    speed = record.images_per_second(row)
    share = roofline.share(work, speed[0] / row.batch if speed else None, peaks.get(_cpu_threads(row)), model.precision)
    return record.result(
        row,
        model=model.name,
        precision=model.precision,
        scenario=scenario or ("latency" if row.streams == 1 else "throughput"),
        share=share,
        multiply_adds=work.multiply_adds // row.batch if work else None,
        raw=raw,
    )


def _about(model: Model, path: Path | None) -> dict[str, Any]:
    from resnet_onnx import workflow
    from runtimes import files

    checked = files.check_onnx(path) if path is not None else None
    network = model.network
    return {
        "name": model.name,
        "description": model.description,
        "precision": model.precision,
        "sha256": checked.sha256 if checked else None,
        "engine": str(model.engine) if model.engine else None,
        "weights_sha256": network.weights_sha256 if network else None,
        "weights": network.weights_source if network else None,
        "inputs": [str(spec) for spec in workflow.specs(model)],
        "opset": checked.opset if checked else None,
    }


# ---- for people ------------------------------------------------------------------------------------------------------


def _print(
    terminal: Terminal, model: Model, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], plan: Plan
) -> None:
    terminal.line(model.description)
    terminal.line(_machine(environment, rows))
    terminal.line()
    names = {row["runtime"] for row in rows}
    reference = "torch" if "torch" in names else rows[0]["runtime"]
    several = len(plan.streams) > 1 or plan.streams[0] > 1
    columns = ["runtime", "batch", "img/s", "± 95 %", "p50 ms", "p90 ms", "p99 ms", "share of peak"]
    if several:
        columns.insert(2, "streams")
    if len(names) > 1:
        columns.append(f"vs {reference}")
    base = {(r["batch"], r["streams"]): r["images_per_second"] for r in rows if r["runtime"] == reference}
    ordered = sorted(rows, key=lambda r: (r["batch"], r["streams"], -(r["images_per_second"] or 0.0)))
    cells = []
    for row in ordered:
        ratio = _ratio(row["images_per_second"], base.get((row["batch"], row["streams"])))
        doubtful = row["error"] is None and not row["stable"]
        cells.append(
            [
                row["runtime"] + (" ~" if doubtful else ""),
                str(row["batch"]),
                *([str(row["streams"])] if several else []),
                *_figures(row),
                _share(row["roofline"]),
                *([ratio] if len(names) > 1 else []),
            ]
        )
    terminal.table(columns, cells)
    terminal.line()
    _print_conditions(terminal, rows, plan)
    _print_next(terminal, model, rows)


def _figures(row: Mapping[str, Any]) -> list[str]:
    from resnet_onnx.bench.statistics import rounded, significant

    speed, interval = row["images_per_second"], row["images_per_second_ci95"]
    latency = row["latency_ms"]
    if speed is None:
        return ["–"] * 5
    half = (interval[1] - interval[0]) / 2 if interval else None
    value, uncertainty = significant(speed, half)
    half_ms = latency["p50"] * half / speed if half is not None else None
    median = significant(latency["p50"], half_ms)[0] if row["streams"] == 1 else rounded(latency["p50"], 3)
    tails = [rounded(latency[name], 3) if latency[name] is not None else "–" for name in ("p90", "p99")]
    return [value, f"± {uncertainty}" if interval else "–", median, *tails]


def _share(roofline: Mapping[str, Any]) -> str:
    if roofline["fraction"] is None:
        return "–"
    return f"{roofline['limit_fraction']:.0%} {roofline['bound']}".replace("%", " %")


def _ratio(speed: float | None, base: float | None) -> str:
    return "–" if speed is None or not base else f"{speed / base:.2f}×"


def _machine(environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    cpu = environment["cpu"]
    sets = {"amx_tile": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    best = next((text for flag, text in sets.items() if flag in cpu["instruction_sets"]), "")
    versions = dict.fromkeys(f"{row['runtime']} {row['version']}" for row in rows if row["version"])
    return " · ".join([", ".join(filter(None, [cpu["model"], f"{cpu['usable_cores']} cores", best])), *versions])


def _print_conditions(terminal: Terminal, rows: Sequence[Mapping[str, Any]], plan: Plan) -> None:
    from resnet_onnx.bench.statistics import samples_needed

    work = "Device-resident work" if plan.scope == "device" else "End to end, host arrays in and out, copies included"
    streams = ", ".join(str(count) for count in plan.streams)
    complete = [row for row in rows if row["error"] is None]
    stable = sum(row["stable"] for row in complete)
    verdict = "yes" if stable == len(complete) else "no" if not stable else "in part"
    terminal.line(
        f"{work}, {streams} stream{'' if plan.streams == (1,) else 's'}. "
        f"Stable: {verdict} ({stable} of {len(complete)})."
    )
    for row in rows:
        where = f"{row['runtime']} batch {row['batch']}" + (f", {row['streams']} streams" if row["streams"] > 1 else "")
        if row["error"] is not None:
            full = row["error"]["kind"] == "out-of-memory"
            terminal.line(f"  {where}: {'out of memory' if full else row['error']['message']}")
        elif not row["stable"]:
            terminal.line(f"  ~ {where}: {row['unstable_reason']}")
    measured = [row for row in rows if row["samples"]]
    if any(row["latency_ms"]["p90"] is None for row in measured):
        terminal.line(
            f"p90 needs {samples_needed(90)} samples, p99 {samples_needed(99)}: a longer --duration gives them."
        )


def _print_next(terminal: Terminal, model: Model, rows: Sequence[Mapping[str, Any]]) -> None:
    from resnet_onnx.cli.main import COMMANDS

    what = model.onnx or model.name
    if len({row["runtime"] for row in rows}) > 1 or model.network is not None:
        terminal.line(f"Parity: not checked here → resnet-onnx parity {what}")
    if "convert" in COMMANDS and model.precision == "fp32":
        onnx = model.onnx or f"{model.name}.onnx"
        terminal.line(f"Faster still: int8 → resnet-onnx convert {onnx} --to int8 --calibration DATA")
