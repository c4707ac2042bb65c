"""Two saved benchmarks side by side: which rows became faster or slower, and which can't be told apart.

Each row's speed is that of its median with a 95 % interval that knows autocorrelation (``statistics.median_interval``;
Conover 1999, section 3.2, on Geyer's effective sample size). The interval of the ratio is recovered from the two on the
logarithmic scale (MOVER: Zou and Donner, Statistics in Medicine 27, 2008, equation 2; for ratios: Donner and Zou,
Statistical Methods in Medical Research 21, 2012): with x = ln BASE and y = ln NEW, the lower end is
y − x − √((y − y_low)² + (x_high − x)²). It assumes no distribution, keeps the asymmetry of the two intervals, needs no
random numbers, and gives the inverse when BASE and NEW change places.

The verdict is one of equivalence (``equivalence``). Measuring both in turns needs no such allowances (``paired``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from msgspec import UNSET

from resnet_onnx.bench.equivalence import TOLERANCE, check_tolerance, verdict
from resnet_onnx.bench.statistics import median_interval
from resnet_onnx.results.bench import Bench, BenchRow
from resnet_onnx.results.compare import FAIL_ON, Compare, ComparedRow, FailOn
from resnet_onnx.results.document import Environment
from runtimes.errors import BadData, UserError

PACE_WITHIN = 0.02
"""How far the pace of the processor may differ and mean nothing, on the logarithmic scale."""

BUSY_CORES = 0.5
"""Load of others beyond which a row that is not stable is never called same, faster or slower: with some 1.4 cores of
two busy elsewhere, 13 of 40 comparisons of the same came out as faster or slower although the difference in load was
allowed for."""

_SETTINGS = ("threads", "dtype", "tf32", "autocast", "memory_format")
"""Recorded options whose change explains a change of speed."""


def compare(
    base: Bench,
    new: Bench,
    *,
    tolerance: float = TOLERANCE,
    force: bool = False,
    fail_on: Sequence[FailOn] = FAIL_ON,
) -> Compare:
    """Compares two documents of ``bench``.

    Forced, different work is compared all the same, and rows match by runtime, batch, streams and device.

    Raises:
        UserError: The two timed different work and it is not forced, or have no row in common.
        UsageError: The tolerance, a relative change that does not matter, is not in (0, 1).
    """
    check_tolerance(tolerance)
    different = different_work(base, new)
    if different and not force:
        raise UserError(
            f"the two did not time the same work: {'; '.join(different)}",
            fix="measure the same model, input and scope; --force compares them all the same",
        )
    pairs, missing, extra = _match(base.results, new.results, forced=force)
    if not pairs:
        raise UserError(
            f"the two have no row in common: BASE has {_listed(missing)}; NEW has {_listed(extra)}",
            fix="measure the same runtimes, batch sizes, streams and device",
        )
    rows = [_compared(old, now, tolerance) for old, now in pairs]
    return judged(
        rows=rows,
        tolerance=tolerance,
        fail_on=fail_on,
        missing=[_named(row) for row in missing],
        extra=[_named(row) for row in extra],
        different_work=different,
        environment_differs=environment_differences(base, new, pairs),
    )


def judged(*, rows: Sequence[ComparedRow], fail_on: Sequence[FailOn], **others: Any) -> Compare:
    """Returns the document of compared rows, with what was found of what was asked to fail; `others` are its fields."""
    made = Compare(
        rows=rows,
        fail_on=fail_on,
        regressed=any(row.verdict == "slower" or row.failed for row in rows),
        **others,
    )
    holds = {name for row in rows for name in row_failures(row)} | ({"missing"} if made.missing else set())
    failures = [name for name in fail_on if name in holds]
    return replace(made, failures=failures, passed=not failures)


def row_failures(row: ComparedRow) -> list[FailOn]:
    """Returns everything of a row that may be asked to fail."""
    found: dict[FailOn, bool] = {
        "slower": row.verdict == "slower",
        "missing": row.failed,
        "inconclusive": row.verdict == "inconclusive" and not row.failed,
        "different": row.outputs is not None and row.outputs.different,
    }
    return [name for name, holds in found.items() if holds]


def different_work(base: Bench, new: Bench) -> list[str]:
    """Returns why two results did not time the same work; empty where they did, as far as the files can tell."""
    old, now = base.model, new.model
    found = []
    if old.name != now.name:
        found.append(f"BASE is of {old.name}, NEW of {now.name}")
    for was, digest, what in (
        (old.sha256, now.sha256, "model file"), (old.weights_sha256, now.weights_sha256, "weights"),
    ):  # fmt: skip
        if was and digest and was != digest:
            found.append(f"another {what} (SHA-256 {was[:12]}… and {digest[:12]}…)")
    if old.precision != now.precision:
        found.append(f"another precision ({_text(old.precision)} and {_text(now.precision)})")
    if list(old.inputs) != list(now.inputs):
        found.append(f"another input ({_text(old.inputs)} and {_text(now.inputs)})")
    if base.settings.scope != new.settings.scope:
        found.append(f"another scope ({base.settings.scope} and {new.settings.scope})")
    sides = [{row.loadgen for row in document.results if not row.error} for document in (base, new)]
    if all(sides) and not sides[0] & sides[1]:
        names = [" and ".join(f"LoadGen {one}" if one else "our own rounds" for one in sorted(side)) for side in sides]
        found.append(f"another harness ({', '.join(names)})")
    # Results of earlier versions include nothing.
    for a, b, what in (
        (list(base.settings.includes) or None, list(new.settings.includes) or None, "work beside the model"),
        (base.settings.pictures, new.settings.pictures, "set of pictures"),
    ):
        if a != b:
            found.append(f"another {what} ({_text(a)} and {_text(b)})")
    return found


def environment_differences(base: Bench, new: Bench, pairs: Sequence[tuple[BenchRow, BenchRow]] = ()) -> list[str]:
    """Returns what differs in machine, system, library versions and the settings of the runtimes."""
    found = machine_differences(base.environment, new.environment)
    if base.tool != new.tool:
        found.append(f"resnet-onnx: {base.tool} → {new.tool}")
    for before, after in pairs:
        if not before.error and not after.error:
            found += setting_differences(after.runtime, before.recorded, after.recorded)
    return list(dict.fromkeys(found))


def machine_differences(old: Environment, now: Environment) -> list[str]:
    """Returns what differs in machine, system and library versions."""
    found = [
        f"{what}: {_text(a)} → {_text(b)}"
        for what, a, b in (
            ("CPU", old.cpu.model, now.cpu.model),
            ("usable cores", old.cpu.usable_cores, now.cpu.usable_cores),
            ("quota of cores", old.cpu.quota_cores, now.cpu.quota_cores),
            ("instruction sets", list(old.cpu.instruction_sets), list(now.cpu.instruction_sets)),
            ("GPUs", old.gpu_names(), now.gpu_names()),
            ("system", old.system, now.system),
            ("Python", old.python, now.python),
        )
        if a != b
    ]
    for name in sorted(old.libraries.keys() | now.libraries.keys()):
        a, b = old.libraries.get(name), now.libraries.get(name)
        if a != b:
            found.append(f"{name}: {a or 'none'} → {b or 'none'}")
    return found


def setting_differences(runtime: str, old: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns which recorded options of a runtime differ that explain a change of speed."""
    return [
        f"{name} of {runtime}: {_text(old.get(name))} → {_text(now.get(name))}"
        for name in _SETTINGS
        if old.get(name) != now.get(name)
    ]


Rows = Sequence[BenchRow]


def _match(
    base: Rows, new: Rows, *, forced: bool
) -> tuple[list[tuple[BenchRow, BenchRow]], list[BenchRow], list[BenchRow]]:
    """Pairs rows; a row that never opened has no device and matches any. Forced, work and harness may differ."""

    def place(row: BenchRow) -> tuple[Any, ...]:
        work = () if forced else (row.model, row.precision, row.scope)
        return (*work, row.runtime, row.batch, row.streams)

    for which, rows in (("BASE", base), ("NEW", new)):
        keys = [(*place(row), row.cpu_threads, row.scenario, row.loadgen, row.device) for row in rows]
        if len(set(keys)) < len(keys):
            twice = next(row for row, key in zip(rows, keys, strict=True) if keys.count(key) > 1)
            raise BadData(f"{which} has two rows of {_named(twice)}: which one is meant can't be told")
    left = list(new)
    pairs, missing = [], []
    for row in base:
        fit = [
            other
            for other in left
            if place(row) == place(other)
            # Results of earlier versions do not say these two, and have one such row.
            and (row.threads == other.threads or UNSET in (row.threads, other.threads))
            and (row.scenario == other.scenario or None in (row.scenario, other.scenario))
            and (forced or row.loadgen == other.loadgen or row.error or other.error)
            and (row.device == other.device or None in (row.device, other.device))
        ]
        if fit:
            pairs.append((row, fit[0]))
            left = [other for other in left if other is not fit[0]]
        else:
            missing.append(row)
    return pairs, missing, left


def _compared(base: BenchRow, new: BenchRow, tolerance: float) -> ComparedRow:
    old, now = _speed(base), _speed(new)
    notes = _doubts(base, new)
    measured = old is not None and now is not None and base.error is None and new.error is None
    interval = ratio = None
    if measured and old is not None and now is not None:
        ratio = now[0] / old[0]
        interval = _interval(base, new, ratio_interval(old, now), notes)
    return ComparedRow(
        model=new.model,
        precision=new.precision,
        scope=new.scope,
        runtime=new.runtime,
        batch=new.batch,
        streams=new.streams,
        device=new.device,
        threads=new.cpu_threads,
        scenario=new.scenario,
        verdict=verdict(interval, tolerance),
        ratio=ratio,
        ci95=interval,
        base_images_per_second=old[0] if old else None,
        new_images_per_second=now[0] if now else None,
        failed=new.error is not None and base.error is None,
        notes=notes,
    )


def _interval(
    base: BenchRow, new: BenchRow, interval: tuple[float, float] | None, notes: list[str]
) -> tuple[float, float] | None:
    """Returns the interval of the ratio, widened by what else explains a difference; says in `notes` what it did."""
    if interval is None and "Offline" in (base.loadgen, new.loadgen):
        notes.append("LoadGen's Offline gives one figure and no interval: our own --scenario offline has both")
    elif interval is None:
        notes.append("too few independent samples for a 95 % interval: measure longer (--duration)")
    else:
        if not (base.stable and new.stable):
            interval = _widened(interval, _explained_by_load(base, new), notes)
        interval = _at_its_pace(interval, base, new, notes)
    return interval


def _doubts(base: BenchRow, new: BenchRow) -> list[str]:
    said: dict[str, list[str]] = {}
    for which, found in (("BASE", base), ("NEW", new)):
        if found.error is not None:
            said.setdefault(f"not measured to its end: {found.error.message}", []).append(which)
        elif not found.stable:
            said.setdefault(f"not stable: {found.unstable_reason}", []).append(which)
    return [f"{' and '.join(names)} {reason}" for reason, names in said.items()]


def _widened(
    interval: tuple[float, float], factors: tuple[float, float] | None, notes: list[str]
) -> tuple[float, float] | None:
    if factors is None:
        notes.append(f"other programs used more than {BUSY_CORES:g} cores: too busy a machine to compare on")
        return None
    if factors != (1.0, 1.0):
        notes.append("interval widened by what the difference in the other programs' load can explain")
    return interval[0] * factors[0], interval[1] * factors[1]


def _at_its_pace(
    interval: tuple[float, float] | None, base: BenchRow, new: BenchRow, notes: list[str]
) -> tuple[float, float] | None:
    """Widens an interval to what it would be had the processor computed both at the same pace."""
    before, after = base.disturbance.pace_us, new.disturbance.pace_us  # unknown in results of earlier versions
    if interval is None or before is None or after is None or new.device != "cpu" or base.device != "cpu":
        return interval
    slower = after / before
    if abs(math.log(slower)) <= PACE_WITHIN:
        return interval
    notes.append(f"beside them the processor took {before:.0f} and {after:.0f} µs for the same work: interval widened")
    return interval[0] * min(1.0, slower), interval[1] * max(1.0, slower)


Speed = tuple[float, tuple[float, float] | None]


def _speed(row: BenchRow) -> Speed | None:
    """Returns images per second with interval.

    One stream: from the raw samples. Several share the machine, so that the time of one run says nothing of it: their
    figure comes from the runs completed in each round, as ``bench`` wrote it.
    """
    if row.streams == 1 and not row.offline and row.capacity is None and row.raw_ns and any(row.raw_ns):
        times_ns = np.concatenate([np.asarray(part, np.float64) for part in row.raw_ns])
        return median_interval(times_ns).rate(row.batch * 1e9)
    if not row.images_per_second:
        return None
    return row.images_per_second, row.images_per_second_ci95


def ratio_interval(base: Speed, new: Speed) -> tuple[float, float] | None:
    """Returns the interval of new over base, recovered from the two (MOVER on the logarithmic scale)."""
    (x, x_range), (y, y_range) = base, new
    if x_range is None or y_range is None:
        return None
    below_x, above_x = math.log(x / x_range[0]), math.log(x_range[1] / x)
    below_y, above_y = math.log(y / y_range[0]), math.log(y_range[1] / y)
    middle = math.log(y / x)
    return math.exp(middle - math.hypot(below_y, above_x)), math.exp(middle + math.hypot(above_y, below_x))


def _explained_by_load(base: BenchRow, new: BenchRow) -> tuple[float, float] | None:
    """Returns by which factors a disturbed row's interval has to be widened, or None where nothing can be said.

    Who is left with c cores fewer than before can be slower by a factor of up to 1 − c: layers wait for their last
    thread, so that one busy core holds up all. Only the difference counts; what weighed on both alike is in both. Where
    others were busy with more than half a core, it depends on chance alone whether they sat on the same one.
    """
    on_base, on_new = (row.disturbance.other_programs_cores + row.disturbance.stolen_cores for row in (base, new))
    if max(on_base, on_new) > BUSY_CORES:
        return None
    left = 1 - abs(on_new - on_base)
    return (1.0, 1 / left) if on_new >= on_base else (left, 1.0)


def _named(row: BenchRow) -> str:
    streams = f" streams {row.streams}" if row.streams > 1 else ""
    streams += f" threads {row.cpu_threads}" if row.cpu_threads else ""
    streams += " offline" if row.offline else ""
    streams += f" LoadGen {row.loadgen}" if row.loadgen else ""
    device = f" {row.device}" if row.device else ""
    return f"{row.model} {row.precision} {row.runtime} batch {row.batch}{streams} {row.scope}{device}"


def _listed(rows: Rows) -> str:
    return ", ".join(_named(row) for row in rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
