"""``resnet-onnx bench``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.bench_profile import print_profile
from resnet_onnx.cli.gpu_options import check_tuning, tuning_options
from resnet_onnx.cli.options import (
    Number,
    OutputFile,
    WholeNumbers,
    device_option,
    early_problem,
    make_command,
    model_options,
    runtime_option,
    save_option,
)
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from resnet_onnx.bench.plan import BenchPlan, Scenario
    from resnet_onnx.results.bench import BenchRow, CapacityRecord, HarnessRecord
    from resnet_onnx.results.document import Environment
    from resnet_onnx.workflow import Measurement, Model, Request
    from runtimes.spec import RuntimeOptions, Scope

_DEFAULT_MODEL = "resnet50"
_DURATION_S, _SERVER_S = 5.0, 60.0


@make_command("bench", example="resnet-onnx bench resnet50 --runtime torch,ort-cpu,openvino --batch 1,8")
@model_options(required=False)
@runtime_option(default="all", several=True)
@click.option("--batch", type=WholeNumbers(), help="Batch sizes.  [default: 1,8, or the model's own fixed batch]")
@click.option("--streams", type=WholeNumbers(), help="Concurrent runs.  [default: 1, or each runtime's own best]")
@click.option("--threads", type=WholeNumbers(), help="CPU threads, all streams together.  [default: all usable cores]")
@click.option(
    "--duration",
    type=Number(0, min_open=True),
    help="Seconds a row, at most.  [default: 5; of the server scenario 60]",
)
@click.option(
    "--percentile",
    type=click.Choice(["p90", "p95", "p99", "p99.9"]),
    help="Measure every row until it has this one, however long that takes.",
)
@click.option(
    "--precision-target",
    type=Number(0, 100, min_open=True),
    metavar="PERCENT",
    help="A row ends early when the 95 % interval of its median is within ± this.  [default: 1]",
)
@click.option(
    "--scenario",
    type=click.Choice(["latency", "throughput", "offline", "server"]),
    help="One run at a time, several beside each other, all at once, or arriving at random.  [default: by --streams]",
)
@click.option(
    "--p99",
    type=Number(0, min_open=True),
    metavar="MS",
    help="Of the server scenario: limit of the 99th percentile from arrival to answer.",
)
@click.option(
    "--price", type=Number(0, min_open=True), help="Of the machine per hour: adds what a million pictures cost."
)
@click.option(
    "--cut-off",
    type=Number(0, 1000),
    metavar="PERCENT",
    help="No larger batch once throughput grew by less than this.  [default: measure every batch]",
)
@click.option(
    "--scope",
    type=click.Choice(["device", "end-to-end"]),
    help="Device memory to device memory, or host array to host array with copies.  [default: device]",
)
@click.option(
    "--include",
    type=click.Choice(["decode"]),
    help="Time this too: reading and preprocessing picture files, end to end.",
)
@click.option("--data", metavar="D", help="Pictures to decode: a folder or a .zip; two sample photos by default.")
@click.option("--profile", is_flag=True, help="Time of each layer beside its own ideal: where the missing share goes.")
@click.option(
    "--harness",
    type=click.Choice(["mlperf"]),
    help="Measure by MLPerf LoadGen: SingleStream, MultiStream, Offline; Server with --p99.",
)
@click.option(
    "--harness-logs", type=OutputFile(folder=True, file=False), help="Folder that keeps the harness's own logs."
)
@device_option
@tuning_options
@save_option
@click.option("--csv", "csv_file", type=OutputFile(), help="Write the rows as CSV, for a spreadsheet.")
@click.option("--markdown", type=OutputFile(), help="Write the table as Markdown, for a README or a pull request.")
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtimes: str,
    batch: tuple[int, ...] | None,
    streams: tuple[int, ...] | None,
    duration: float | None,
    p99: float | None,
    price: float | None,
    percentile: str | None,
    precision_target: float | None,
    scenario: Scenario | None,
    scope: Scope | None,
    include: str | None,
    data: str | None,
    cut_off: float | None,
    profile: bool,
    harness: str | None,
    harness_logs: Path | None,
    device: str | None,
    threads: tuple[int, ...] | None,
    tuning: RuntimeOptions,
    save: Path | None,
    csv_file: Path | None,
    markdown: Path | None,
) -> None:
    """Measure throughput and latency of MODEL (resnet50) on several runtimes, in turns.

    A row ends when the 95 % interval of its median is within 1 %, or after --duration.
    """
    from dataclasses import replace

    from resnet_onnx import workflow
    from resnet_onnx.bench.loadgen import require_loadgen
    from runtimes import registry

    if request.model is None:
        request = replace(request, model=_DEFAULT_MODEL)
    chosen_streams = _streams(streams, scenario)
    _check_decoding(include, data, scope)
    of_rounds = {"streams": streams, "cut_off": cut_off, "include": include, "profile": profile or None,
                 "precision_target": precision_target, "percentile": percentile}  # fmt: skip
    _check_server(scenario, p99, **of_rounds)
    _check_harness(
        harness,
        harness_logs,
        threads=threads,
        scenario=None if scenario == "server" else scenario,
        scope="device" if scope == "device" else None,
        **of_rounds,
    )
    names = registry.parse_names(runtimes, device=device)
    check_tuning(tuning, names, device=device)
    problem = early_problem(request)
    registry.require_all(names, device=device)
    if harness is not None:
        require_loadgen()
    if problem is not None:
        raise problem
    with terminal.status("preparing the model", refresh_per_second=1) as status:
        model = workflow.resolve(request)
        _say_notes(terminal, model)
        plan = workflow.MeasuringPlan(
            bench=_bench_plan(
                batches=workflow.batch_sizes(model, batch),
                streams=chosen_streams,
                threads=threads or (None,),
                duration_s=duration or (_SERVER_S if scenario == "server" else _DURATION_S),
                limit_s=None if p99 is None else p99 / 1000,
                percentile=None if percentile is None else float(percentile[1:]),
                precision_target=precision_target,
                scenario=scenario,
                scope=scope or ("device" if include is None and harness is None and p99 is None else "end-to-end"),
                feed_factory=workflow.decoding(model, data) if include else None,
                cut_off=cut_off,
                profile=profile,
            ),
            runtimes=tuple(names),
            chosen_by_all=registry.means_all(runtimes),
            device=device,
            options=tuning,
            seed=request.seed,
            harness=harness is not None,
            harness_logs=harness_logs,
            price=price,
        )
        measured = workflow.measure_model(model, plan, progress=status.update)
    _report(terminal, measured, profile=profile, save=save, csv_file=csv_file, markdown=markdown)
    if any(row.error is not None and row.error.kind != "out-of-memory" for row in measured.rows):
        raise click.exceptions.Exit(Unavailable.exit_code)


def _say_notes(terminal: Terminal, model: Model) -> None:
    for note in model.notes:
        terminal.note(f"{model.name}: {note}")


def _bench_plan(*, precision_target: float | None, cut_off: float | None, **settings: Any) -> BenchPlan:
    """Returns the plan of the rows; a target for the interval and a cut-off are given in percent."""
    from resnet_onnx.bench.plan import BenchPlan

    if precision_target is not None:
        settings["precision_target"] = precision_target / 100
    return BenchPlan(cut_off=None if cut_off is None else cut_off / 100, **settings)


def _check_decoding(include: str | None, data: str | None, scope: Scope | None) -> None:
    if include is None and data is not None:
        raise UsageError("--data names pictures to decode, and without --include decode nothing is decoded")
    if include is not None and scope == "device":
        raise UsageError(
            "--include decode begins with files in host memory, and --scope device was given", fix="leave --scope out"
        )


def _check_server(scenario: str | None, p99: float | None, **given: object) -> None:
    """Raises ``UsageError`` where the server scenario comes without its limit, or with what contradicts it."""
    if (scenario == "server") != (p99 is not None):
        given_one = "--scenario server" if scenario == "server" else "--p99"
        raise UsageError(
            f"{given_one} was given alone: a server is measured against the limit of its 99th percentile",
            fix="--scenario server --p99 MS",
        )
    useless = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if scenario == "server" and useless:
        raise UsageError(
            f"the server scenario runs one batch at a time as pictures arrive, and {', '.join(useless)} was given",
            fix="leave it out; --batch is the largest batch that is tried",
        )


def _streams(streams: tuple[int, ...] | None, scenario: str | None) -> tuple[int | None, ...]:
    if scenario == "latency" and streams is not None and max(streams) > 1:
        raise UsageError(
            f"the latency scenario runs one request at a time, and --streams {','.join(map(str, streams))} was given",
            fix="use --scenario throughput, or leave --streams out",
        )
    if streams is not None:
        return streams
    return (None,) if scenario in ("throughput", "offline") else (1,)


def _check_harness(harness: str | None, logs: Path | None, *, threads: tuple[int, ...] | None, **given: object) -> None:
    """Raises ``UsageError`` for options that contradict each other."""
    if harness is None:
        if logs is not None:
            raise UsageError("--harness-logs keeps the logs of a harness, and none was chosen", fix="--harness mlperf")
        return
    useless = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if threads is not None and len(threads) > 1:
        useless.append("several --threads")
    if useless:
        raise UsageError(
            f"--harness {harness} has its own rules for how runs follow each other, and {', '.join(useless)} was given",
            fix="leave it out; --duration, --batch (Offline) and one number of --threads are used",
        )


# ---- for people ------------------------------------------------------------------------------------------------------


def _report(
    terminal: Terminal,
    measured: Measurement,
    *,
    profile: bool,
    save: Path | None,
    csv_file: Path | None,
    markdown: Path | None,
) -> None:
    """Prints what was measured, and writes the files."""
    from resnet_onnx.report import columns
    from resnet_onnx.results.writing import write
    from runtimes import files

    if measured.left_out:
        terminal.note(f"left out: {', '.join(measured.left_out)}")
    _print(terminal, measured.model, measured.environment, measured.results(raw=False), measured.plan)
    if profile:
        print_profile(terminal, measured.results(raw=False))
    for row in measured.skipped:
        terminal.note(f"cut off: {row} ({row.cut_off})")
    if measured.peaks_disturbed:
        terminal.note("the machine's peak was measured while other programs ran: shares of it come out too high")
    if save is not None:
        write(save, measured.document(raw=True))
        terminal.note(f"saved: {save}")
    if csv_file is not None:
        files.write_text(csv_file, columns.bench_csv(measured.results(raw=False)))
        terminal.note(f"saved: {csv_file}")
    if markdown is not None:
        files.write_text(markdown, _markdown(measured))
        terminal.note(f"saved: {markdown}")
    terminal.emit(measured.document(raw=False))


def _print(
    terminal: Terminal, model: Model, environment: Environment, rows: Sequence[BenchRow], plan: BenchPlan
) -> None:
    terminal.line(model.description)
    terminal.line(_machine(environment, rows))
    terminal.line()
    terminal.table(*_table(rows))
    terminal.line()
    for line in _conditions(rows, plan):
        terminal.line(line)
    _print_next(terminal, model, rows)


def _markdown(measured: Measurement) -> str:
    """Returns what the terminal shows, for a page that renders Markdown."""
    from resnet_onnx.results import tables

    rows = measured.results(raw=False)
    return tables.markdown(
        *_table(rows),
        above=[f"**{measured.model.description}**", _machine(measured.environment, rows)],
        below=_conditions(rows, measured.plan),
        command=measured.document(raw=False).command,
    )


def _table(rows: Sequence[BenchRow]) -> tuple[list[str], list[list[str]]]:
    """Returns the headings and the cells of the table."""
    from resnet_onnx.report.columns import BenchTable

    def unit(row: BenchRow) -> tuple[int, int, int]:
        return row.batch, row.streams, row.cpu_threads or 0

    table = BenchTable(
        rows=sorted(rows, key=lambda row: (*unit(row), -row.speed)),
        place="terminal",
        reference="torch" if any(row.runtime == "torch" for row in rows) else rows[0].runtime,
        unit=unit,
    )
    return table.headings(), table.cells()


def _machine(environment: Environment, rows: Sequence[BenchRow]) -> str:
    cpu = environment.cpu
    sets = {"amx_tile": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    best = next((text for flag, text in sets.items() if flag in cpu.instruction_sets), "")
    quota = "" if cpu.quota_cores is None else f" (a quota of {cpu.quota_cores:g})"
    versions = dict.fromkeys(f"{row.runtime} {row.version}" for row in rows if row.version)
    return " · ".join([", ".join(filter(None, [cpu.model, f"{cpu.usable_cores} cores{quota}", best])), *versions])


def _conditions(rows: Sequence[BenchRow], plan: BenchPlan) -> list[str]:
    """Returns what was timed and what to doubt, a line each."""
    from resnet_onnx.bench.statistics import samples_needed

    work = "Device-resident work" if plan.scope == "device" else "End to end, host arrays in and out, copies included"
    if plan.feed_factory is not None:
        work = f"End to end, picture files in and scores out, decoding included: {plan.feed_factory.label}"
    counts = sorted({row.streams for row in rows})
    streams = ", ".join(map(str, counts))
    complete = [row for row in rows if row.error is None]
    stable = sum(row.stable for row in complete)
    verdict = "yes" if stable == len(complete) else "no" if not stable else "in part"
    lines = [
        f"{work}, {streams} stream{'' if counts == [1] else 's'}. Stable: {verdict} ({stable} of {len(complete)})."
    ]
    for row in rows:
        where = f"{row.runtime} batch {row.batch}" + (f", {row.streams} streams" if row.streams > 1 else "")
        if len(plan.threads) > 1 and row.cpu_threads is not None:
            where += f", {row.cpu_threads} thread{'' if row.cpu_threads == 1 else 's'}"
        if row.error is not None:
            full = row.error.kind == "out-of-memory"
            lines.append(f"  {where}: {'out of memory' if full else row.error.message}")
        elif not row.stable:
            lines.append(f"  ~ {where}: {row.unstable_reason}")
    for row in rows:
        if row.split and row.split.enqueue_bound:
            share = (row.split.enqueue_ms or 0.0) / row.split.run_ms
            lines.append(
                f"  {row.runtime} batch {row.batch} is enqueue-bound: handing a run over takes the host "
                f"{100 * share:.0f} % of it → {row.split.remedy}"
            )
    lines += [_loadgen_line(row.runtime, row.harness) for row in rows if row.harness is not None]
    unread = dict.fromkeys(row.energy.reason for row in rows if row.energy is not None and row.energy.reason)
    lines += [f"Energy: not readable here ({reason})." for reason in unread]
    if any(row.pareto and not row.best for row in rows) and len(rows) > 2:
        lines.append("front: no other row has more img/s in as few ms.")
    lines += [_server_line(row.runtime, row.capacity) for row in rows if row.capacity is not None]
    offline = [row.samples_at_once for row in rows if row.samples_at_once]
    if offline:
        sizes = f"{min(offline):,}" if len(set(offline)) == 1 else f"{min(offline):,} to {max(offline):,}"
        lines.append(f"Offline: {sizes} samples handed over at once; ms are until the last of them is done.")
    elif any(row.latency_ms.p90 is None for row in rows if row.samples):
        lines.append(
            f"p90 needs {samples_needed(90)} samples and p99 {samples_needed(99)}: {_seconds_for(99, rows)} or "
            "--percentile p99 gives them to every row."
        )
    return lines


def _seconds_for(percent: float, rows: Sequence[BenchRow]) -> str:
    """Returns the ``--duration`` in which the slowest row has the samples of a percentile."""
    from resnet_onnx.bench.statistics import samples_needed

    slowest = max((row.latency_ms.p50 / row.streams for row in rows if row.samples and row.latency_ms.p50), default=1.0)
    return f"--duration {math.ceil(1.1 * samples_needed(percent) * slowest / 1000)}"


def _server_line(runtime: str, found: CapacityRecord) -> str:
    """Says what a server of an engine can do."""
    from resnet_onnx.bench.statistics import rounded

    if not found.queries_per_second:
        return f"Server on {runtime}: no rate is answered within {found.limit_ms:g} ms."
    waits = f" that wait up to {rounded(found.max_wait_ms, 2)} ms" if found.max_wait_ms else ""
    high = rounded(found.ci95[1], 3)
    return (
        f"Server on {runtime}: {rounded(found.queries_per_second, 3)} arrivals/s within p99 {found.limit_ms:g} ms "
        f"({found.verdict}; p99 {rounded(found.p99_ms or 0.0, 3)} ms; broken or always busy at {high}), "
        f"batches up to {found.max_batch}{waits}; ms are from arrival to answer."
    )


def _loadgen_line(runtime: str, found: HarnessRecord) -> str:
    """Says what LoadGen found, and how its run differs from an official one."""
    from resnet_onnx.bench.statistics import rounded

    p90 = found.latency_ms.p90
    figure = f"{rounded(found.samples_per_second or 0.0, 3)} samples/s" if p90 is None else f"p90 {rounded(p90, 3)} ms"
    verdict = "VALID" if found.valid else f"INVALID: {found.reason or 'see its logs (--harness-logs)'}"
    seconds, official = (each.min_duration_ms / 1000 if each else 0.0 for each in (found.settings, found.official))
    return (
        f"LoadGen {found.scenario} on {runtime}: {verdict}, {figure}, {found.samples or 0:,} samples in at least "
        f"{seconds:g} s (an official run: {official:g} s)."
    )


def _print_next(terminal: Terminal, model: Model, rows: Sequence[BenchRow]) -> None:
    from resnet_onnx.cli.main import COMMANDS

    what = model.onnx or model.name
    if len({row.runtime for row in rows}) > 1 or model.network is not None:
        terminal.advice(f"Parity: not checked here → resnet-onnx parity {what}")
    if "convert" in COMMANDS and model.precision == "fp32":
        onnx = model.onnx or f"{model.file_stem}.onnx"
        terminal.advice(f"Faster still: int8 → resnet-onnx convert {onnx} --to int8 --calibration DATA")
