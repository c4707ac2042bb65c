"""Rows as the document has them, and the judgement whether they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from resnet_onnx.bench.capacity import Found
from resnet_onnx.bench.clock import Disturbance
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.statistics import PERCENTILES, coefficient_of_variation, percentile, rounded
from resnet_onnx.results.bench import (
    BenchRow,
    BenchSettings,
    Breakdown,
    CapacityRecord,
    DisturbanceRecord,
    Ends,
    EnergyRecord,
    GpuReadings,
    Latency,
    LayerRecord,
    ServedRate,
    Utilization,
)
from resnet_onnx.results.document import ErrorRecord
from runtimes.errors import ToolkitError

OTHERS_LIMIT = 0.05
"""Share of the usable cores that other processes may take. A quiet desktop or server stays below 0.02."""

STOLEN_LIMIT = 0.02
"""Share of the usable cores that the hypervisor may give to other machines."""

SWITCHES_LIMIT = 150.0
"""Involuntary context switches per second and core. A thread that competes for its core with another of equal weight
is switched out some 250 times a second (a slice of 3–4 ms under Linux); one that is alone, a few times."""

WIDTH_LIMIT = 0.05
"""Half-width of the 95 % interval as a fraction of the median, beyond which a figure is not worth comparing."""

CLOCK_LIMIT = 0.05
"""Share by which a GPU's clock may differ between rounds: as much as ``WIDTH_LIMIT`` allows the times."""

DELIVERED_LIMIT = 0.1
"""Share by which the delivered rate may differ from the figure of a row, which then says what nobody gets."""

RAW_IN_DOCUMENT = 5_000
"""A row's samples are printed with the result up to this number; the saved file has all of them."""


def unstable_reason(row: Row) -> str | None:
    """Says why a row can't be trusted, or None where it can."""
    if row.error is not None or not row.slices:
        return "it was not measured to its end"
    reasons = []
    seen = row.disturbance
    if seen.others_share > OTHERS_LIMIT:
        used = seen.others_share * seen.cores
        reasons.append(f"other programs used {used:.1f} of {seen.cores} cores{_remedy(row)}")
    if seen.stolen_share > STOLEN_LIMIT:
        reasons.append(f"the hypervisor took {seen.stolen_share * seen.cores:.2g} of {seen.cores} cores away")
    switches = seen.switches_per_s / seen.cores
    # Several streams, and the threads of a harness, take the cores from each other too.
    if switches > SWITCHES_LIMIT and row.streams == 1 and row.harness is None:
        reasons.append(f"the threads lost their core {switches:.0f} times a second")
    if seen.throttled:
        reasons.append(f"the processor lowered its clock {seen.throttled} times for heat")
    reasons += _gpu_problems(row)
    reasons += _undelivered(row)
    if row.capacity is not None:
        return "; ".join([*reasons, *_unconfirmed(row.capacity)]) or None
    interval = row.seconds_per_run()
    if interval is None or interval.low is None:
        count = 0 if interval is None else int(interval.effective_samples)
        reasons.append(f"{count} independent sample{'s are' if count != 1 else ' is'} too few for a 95 % interval")
    elif interval.relative_half_width > WIDTH_LIMIT:
        reasons.append(f"the 95 % interval is ±{100 * interval.relative_half_width:.0f} %")
    return "; ".join(reasons) or None


def _remedy(row: Row) -> str:
    """Says what helps where one session has a thread on every core: each layer waits for the last of them."""
    threads, cores = row.target.options.threads, row.disturbance.cores
    on_all = row.opened is not None and row.opened.device == "cpu" and (threads or cores) >= cores > 1
    if not on_all or row.streams > 1 or row.harness is not None:
        return ""
    return f", and a run on all of them waits for its last thread (--streams {cores} gives each run one)"


def _unconfirmed(found: Found) -> list[str]:
    if found.verdict == "met":
        return []
    if not found.rate:
        return ["even single pictures are answered later than the limit"]
    if found.verdict == "broken":
        return ["the limit was broken at every rate that was to be confirmed: batches took longer than they had before"]
    return ["whether the limit is kept at this rate is undecided: a longer --duration serves more pictures"]


def capacity(row: Row, limit_s: float | None) -> CapacityRecord | None:
    """Returns what was found in the server scenario, or None in the others."""
    found = row.capacity
    if found is None or limit_s is None:
        return None
    confirmed = found.confirmation
    return CapacityRecord(
        queries_per_second=found.rate,
        ci95=(found.low, found.high),
        p99_ms=None if confirmed is None else 1e3 * confirmed.percentile(0.99),
        limit_ms=1e3 * limit_s,
        verdict=found.verdict,
        max_batch=found.policy.max_batch,
        max_wait_ms=1e3 * found.policy.max_wait_s,
        trials=[
            ServedRate(
                queries_per_second=trial.rate,
                queries=len(trial.latencies_s),
                p50_ms=1e3 * trial.percentile(0.5),
                p99_ms=1e3 * trial.percentile(0.99),
                confirms=trial.confirms,
            )
            for trial in found.trials
        ],
    )


def _undelivered(row: Row) -> list[str]:
    speed, delivered = images_per_second(row), delivered_per_second(row)
    if speed is None or delivered is None or abs(delivered / speed[0] - 1) <= DELIVERED_LIMIT:
        return []
    return [f"{rounded(delivered, 3)} img/s were delivered, and the median promises {rounded(speed[0], 3)}"]


def _gpu_problems(row: Row) -> list[str]:
    """A power limit is how a busy GPU runs all the time; heat and a drifting clock are not (TensorRT#2042)."""
    held = sorted({reason for seen in row.sensors for reason in seen.throttled} - {"power limit"})
    problems = [f"the GPU's clock was held down: {', '.join(held)}"] if held else []
    clocks = [seen.clock_mhz for seen in row.sensors if seen.clock_mhz is not None]
    if clocks and min(clocks) < (1 - CLOCK_LIMIT) * max(clocks):
        problems.append(f"the GPU's clock drifted between {min(clocks)} and {max(clocks)} MHz")
    return problems


def gpu_readings(row: Row) -> GpuReadings | None:
    """Returns least and most of what the GPU's sensors said over the rounds, or None where no GPU computed."""
    if not row.sensors:
        return None

    def ends(name: str) -> Ends | None:
        values = [value for seen in row.sensors if (value := getattr(seen, name)) is not None]
        return Ends(min=min(values), max=max(values)) if values else None

    return GpuReadings(
        throttled=sorted({reason for seen in row.sensors for reason in seen.throttled}),
        clock_mhz=ends("clock_mhz"),
        memory_clock_mhz=ends("memory_clock_mhz"),
        power_w=ends("power_w"),
        temperature_c=ends("temperature_c"),
    )


def breakdown(row: Row) -> Breakdown | None:
    """Returns where the time of a run on a GPU goes, and what to do where the host holds it up."""
    seen = row.breakdown
    if seen is None or not seen.enqueue_bound:
        return seen
    larger = f"a larger batch (--batch {8 * row.batch})"
    # A captured graph is handed over in one call; what is left then is too little work in a run.
    return replace(seen, remedy=larger if row.target.options.cuda_graph else f"CUDA graphs (--cuda-graph) or {larger}")


def images_per_second(row: Row) -> tuple[float, tuple[float, float] | None] | None:
    """Returns images per second and its 95 % interval, or None where nothing was measured.

    With one stream it is batch / median time of a run.
    """
    found = row.capacity
    if found is not None:
        return found.rate, (found.low, found.high) if found.low > 0 else None
    interval = row.seconds_per_run()
    return None if interval is None else interval.rate(row.batch)


def delivered_per_second(row: Row) -> float | None:
    """Returns images of all completed runs over the time that they took, or None where nothing was measured.

    Where it is far below ``images_per_second``, single runs took very long: a container was throttled, or others held
    the cores.
    """
    total_s = float(row.times_ns.sum()) / 1e9
    if not total_s or row.capacity is not None:  # waiting is no work
        return None
    beside = 1 if row.scenario == "offline" else row.streams
    return row.batch * row.at_once * beside * row.times_ns.size / total_s


def latency_ms(row: Row) -> Latency:
    """Returns percentiles, mean, minimum and maximum of the time of a run; None where the samples don't support it."""
    times = row.times_ns / 1e6
    known = times.size > 0
    p50, p90, p95, p99, p99_9 = (percentile(times, percent) for percent in PERCENTILES)
    return Latency(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9,
        mean=float(times.mean()) if known else None,
        min=float(times.min()) if known else None,
        max=float(times.max()) if known else None,
    )


def disturbance(seen: Disturbance) -> DisturbanceRecord:
    """Returns what the machine did beside."""
    return DisturbanceRecord(
        other_programs_cores=seen.others_share * seen.cores,
        stolen_cores=seen.stolen_share * seen.cores,
        involuntary_switches_per_s=seen.switches_per_s,
        throttled=seen.throttled,
        clock_mhz=Ends(min=min(seen.clocks_mhz), max=max(seen.clocks_mhz)) if seen.clocks_mhz else None,
        pace_us=1e6 * median(seen.paces_s) if seen.paces_s else None,
        cores=seen.cores,
    )


def result(
    row: Row,
    *,
    model: str,
    precision: str,
    utilization: Utilization,
    raw: bool,
    layers: Sequence[LayerRecord] | None = None,
    limit_s: float | None = None,
) -> BenchRow:
    """Returns one row as the document has it, with every sample where `raw`, else with up to ``RAW_IN_DOCUMENT``."""
    speed = images_per_second(row)
    interval = row.seconds_per_run()
    times = row.times_ns
    reason = unstable_reason(row)
    opened = row.opened
    return BenchRow(
        model=model,
        runtime=row.target.runtime,
        version=opened.version if opened is not None else None,
        device=opened.device if opened is not None else row.target.device,
        precision=precision,
        batch=row.batch,
        streams=row.streams,
        threads=row.target.options.threads,
        scenario=row.scenario,
        samples_at_once=round(row.batch * row.at_once) if row.scenario == "offline" else None,
        harness=row.harness,
        capacity=capacity(row, limit_s),
        scope=row.scope,
        includes=row.includes,
        includes_transfers=row.scope == "end-to-end",
        images_per_second=speed[0] if speed else None,
        images_per_second_ci95=speed[1] if speed else None,
        delivered_images_per_second=delivered_per_second(row),
        latency_ms=latency_ms(row),
        samples=int(times.size),
        effective_samples=interval.effective_samples if interval else 0.0,
        rounds=len(row.slices),
        measured_s=row.spent_s,
        coefficient_of_variation=coefficient_of_variation(times.astype(float)),
        stable=reason is None,
        unstable_reason=reason,
        disturbance=disturbance(row.disturbance),
        warm_up=row.warm_up,
        roofline=utilization,
        layers=layers,
        unprofiled=row.unprofiled or None,
        split=breakdown(row),
        gpu=gpu_readings(row),
        energy=energy(row),
        recorded=dict(opened.recorded) if opened is not None else {},
        placement=dict(opened.placement) if opened is not None else {},
        error=None if row.error is None else error_record(row.error),
        raw_ns=[part.times_ns.tolist() for part in row.slices] if raw or times.size <= RAW_IN_DOCUMENT else None,
    )


def energy(row: Row) -> EnergyRecord | None:
    """Returns the energy that a row took by the machine's own counters, or why it is not known."""
    opened = row.opened
    if opened is None or not opened.energy or not row.slices or row.harness is not None or row.capacity is not None:
        return None
    counted = [(part.energy_j, part.spent_s) for part in row.slices if part.energy_j is not None]
    if opened.energy_unreadable or not counted:
        reason = opened.energy_unreadable or "the counters could not be read while it was measured"
        return EnergyRecord(source=opened.energy, power_w=None, joules_per_image=None, reason=reason)
    power = sum(joules for joules, _ in counted) / sum(seconds for _, seconds in counted)
    rate = delivered_per_second(row)
    return EnergyRecord(
        source=opened.energy, power_w=power, joules_per_image=power / rate if rate else None, reason=None
    )


def cost_per_million(row: BenchRow, price: float | None) -> float | None:
    """Returns what a million pictures cost at a price per hour, or None where one of the two is unknown.

    By the delivered rate where it is known, which is what arrives.
    """
    rate = row.delivered_images_per_second or row.images_per_second
    return None if price is None or not rate else price / 3600 / rate * 1e6


def mark(results: Sequence[BenchRow]) -> list[BenchRow]:
    """Says of each row whether it is the ``best`` of all, and whether it is on the ``pareto`` front.

    The best has the most images per second of those measured to their end. A row is on the front where no other one has
    at least its images per second in at most its median latency. The offline scenario knows no latency of a request, so
    that its rows are not.
    """
    speeds = [None if row.error else row.images_per_second for row in results]
    most = max((speed for speed in speeds if speed is not None), default=None)
    points = {
        index: (speed, -(results[index].latency_ms.p50 or 0.0))
        for index, speed in enumerate(speeds)
        if speed is not None and not results[index].offline
    }
    beaten = {
        index
        for index, (speed, quickness) in points.items()
        if any(other[0] >= speed and other[1] >= quickness and other != (speed, quickness) for other in points.values())
    }
    return [
        replace(row, best=most is not None and speeds[index] == most, pareto=index in points.keys() - beaten)
        for index, row in enumerate(results)
    ]


def error_record(error: ToolkitError) -> ErrorRecord:
    """Returns an error of the program's own tree as documents have it."""
    return ErrorRecord(kind=error.kind, message=error.message, fix=error.fix)


def settings(plan: BenchPlan) -> BenchSettings:
    """Returns what was requested."""
    return BenchSettings(
        batches=plan.batches,
        streams=plan.streams,
        threads=plan.threads,
        scope=plan.scope,
        includes=plan.feed_factory.includes if plan.feed_factory is not None else (),
        pictures=plan.feed_factory.label if plan.feed_factory is not None else None,
        scenario=plan.scenario,
        limit_ms=None if plan.limit_s is None else 1e3 * plan.limit_s,
        cut_off=plan.cut_off,
        duration_s=plan.duration_s,
        precision_target=plan.precision_target,
        order_seed=plan.seed,
    )
