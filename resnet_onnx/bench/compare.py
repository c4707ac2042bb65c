"""Two saved benchmarks side by side: which rows became faster or slower, and which can't be told apart.

Each row's speed is that of its median with a 95 % interval that knows autocorrelation (``statistics.median_interval``;
Conover 1999, section 3.2, on Geyer's effective sample size). The interval of the ratio is recovered from the two on the
logarithmic scale (MOVER: Zou and Donner, Statistics in Medicine 27, 2008, equation 2; for ratios: Donner and Zou,
Statistical Methods in Medical Research 21, 2012): with x = ln BASE and y = ln NEW, the lower end is
y − x − √((y − y_low)² + (x_high − x)²). It assumes no distribution, keeps the asymmetry of the two intervals, needs no
random numbers, and gives the inverse when BASE and NEW change places.

The verdict is one of equivalence (Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987): "same" only where the
whole interval lies within the tolerance, "slower" and "faster" only where all of it lies beyond. What straddles an edge
is inconclusive: not being able to show a difference does not show that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from resnet_onnx.bench.statistics import median_interval
from runtimes.errors import BadData, UsageError, UserError

Verdict = Literal["same", "faster", "slower", "inconclusive"]

TOLERANCE = 0.02
"""``bench`` measures until a median is known to ±1 %, so that the ratio of two is known to ±√2 %: 2 % is the least
round number that two runs of the same work can be shown to lie within. A slowdown of 5 % (ratio 0.952) still ends
1.4 % beyond the tolerance, so that it is found, and chance alone must be wrong by 3.4 % to look like a change."""

PACE_WITHIN = 0.02
"""How far the pace of the processor may differ and mean nothing, on the logarithmic scale."""

BUSY_CORES = 0.5
"""Load of others beyond which a row that is not stable is never called same, faster or slower: with some 1.4 cores of
two busy elsewhere, 13 of 40 comparisons of the same came out as faster or slower although the difference in load was
allowed for."""

_WORK = ("model", "precision", "scope")
"""What decides which work a row timed; with ``force`` it may differ."""

_PLACE = ("runtime", "batch", "streams")

_ASKED = ("threads", "scenario")
"""What tells rows of one place apart; absent from results of earlier versions, which had one such row."""

_SETTINGS = ("threads", "dtype", "tf32", "autocast", "memory_format")
"""Recorded options whose change explains a change of speed."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row of both results.

    Attributes:
        row: ``model``, ``runtime``, ``precision``, ``batch``, ``streams``, ``scope``, ``device`` of the new one, and
            ``threads`` and ``scenario`` where it has them.
        verdict: ``inconclusive`` also where one of the two was not measured.
        ratio: Images per second of NEW over BASE: below 1 is slower. None where one was not measured.
        ci95: Interval of the ratio; None where one of the two has none.
        base: Images per second.
        new: Images per second.
        failed: NEW could not be measured, and BASE could.
        notes: Why it is inconclusive, and what to think of it otherwise.
    """

    row: Mapping[str, Any]
    verdict: Verdict
    ratio: float | None
    ci95: tuple[float, float] | None
    base: float | None
    new: float | None
    failed: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two results compared.

    Attributes:
        rows: What both have, in the order of BASE.
        missing: Rows that only BASE has, in words.
        extra: Rows that only NEW has, in words.
        different_work: Why the two did not time the same; empty unless it was forced.
        environment: What differs between the machines, libraries and settings.
        tolerance: As a fraction.
    """

    rows: Sequence[Compared]
    missing: Sequence[str]
    extra: Sequence[str]
    different_work: Sequence[str]
    environment: Sequence[str]
    tolerance: float

    @property
    def regressed(self) -> bool:
        """Whether a row is slower beyond the tolerance, or can't be measured any more."""
        return any(row.verdict == "slower" or row.failed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        return {
            "regressed": self.regressed,
            "tolerance": self.tolerance,
            "rows": [
                {
                    **row.row,
                    "verdict": row.verdict,
                    "ratio": row.ratio,
                    "ci95": None if row.ci95 is None else list(row.ci95),
                    "base_images_per_second": row.base,
                    "new_images_per_second": row.new,
                    "failed": row.failed,
                    "notes": list(row.notes),
                }
                for row in self.rows
            ],
            "missing": list(self.missing),
            "extra": list(self.extra),
            "different_work": list(self.different_work),
            "environment_differs": list(self.environment),
        }


def compare(
    base: Mapping[str, Any], new: Mapping[str, Any], *, tolerance: float = TOLERANCE, force: bool = False
) -> Comparison:
    """Compares two documents of ``bench``.

    Args:
        base: What was.
        new: What is.
        tolerance: Relative change that does not matter, in (0, 1).
        force: Compare different work all the same; rows then match by runtime, batch, streams and device.

    Raises:
        UserError: The two timed different work and it is not forced, or have no row in common.
        UsageError: The tolerance is out of range.
    """
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance must lie between 0 and 100 %, not {100 * tolerance:g} %")
    different = different_work(base, new)
    if different and not force:
        raise UserError(
            f"the two did not time the same work: {'; '.join(different)}",
            fix="measure the same model, input and scope; --force compares them all the same",
        )
    pairs, missing, extra = _match(base["results"], new["results"], forced=force)
    if not pairs:
        raise UserError(
            f"the two have no row in common: BASE has {_listed(missing)}; NEW has {_listed(extra)}",
            fix="measure the same runtimes, batch sizes, streams and device",
        )
    return Comparison(
        rows=[_compared(old, now, tolerance) for old, now in pairs],
        missing=[_named(row) for row in missing],
        extra=[_named(row) for row in extra],
        different_work=different,
        environment=environment_differences(base, new, pairs),
        tolerance=tolerance,
    )


def different_work(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns why two results did not time the same work; empty where they did, as far as the files can tell."""
    old, now = base["model"], new["model"]
    found = []
    if old["name"] != now["name"]:
        found.append(f"BASE is of {old['name']}, NEW of {now['name']}")
    for key, what in (("sha256", "model file"), ("weights_sha256", "weights")):
        if old.get(key) and now.get(key) and old[key] != now[key]:
            found.append(f"another {what} (SHA-256 {old[key][:12]}… and {now[key][:12]}…)")
    for key, what in (("precision", "precision"), ("inputs", "input")):
        if old.get(key) != now.get(key):
            found.append(f"another {what} ({_text(old.get(key))} and {_text(now.get(key))})")
    if base["settings"]["scope"] != new["settings"]["scope"]:
        found.append(f"another scope ({base['settings']['scope']} and {new['settings']['scope']})")
    sides = [{_harness(row) for row in document["results"] if not row["error"]} for document in (base, new)]
    if all(sides) and not sides[0] & sides[1]:
        names = [" and ".join(f"LoadGen {one}" if one else "our own rounds" for one in sorted(side)) for side in sides]
        found.append(f"another harness ({', '.join(names)})")
    # Results of earlier versions include nothing.
    for key, what in (("includes", "work beside the model"), ("pictures", "set of pictures")):
        a, b = base["settings"].get(key) or None, new["settings"].get(key) or None
        if a != b:
            found.append(f"another {what} ({_text(a)} and {_text(b)})")
    return found


def _harness(row: Mapping[str, Any]) -> str:
    """Returns the scenario of LoadGen's that took a row's times, or "" where our own rounds did."""
    said = row.get("harness")  # absent from results of earlier versions
    return str(said["scenario"]) if said else ""


def environment_differences(
    base: Mapping[str, Any], new: Mapping[str, Any], pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
) -> list[str]:
    """Returns what differs in machine, system, library versions and the settings of the runtimes."""
    old, now = base["environment"], new["environment"]
    found = [
        f"{what}: {_text(a)} → {_text(b)}"
        for what, a, b in (
            ("CPU", old["cpu"]["model"], now["cpu"]["model"]),
            ("usable cores", old["cpu"]["usable_cores"], now["cpu"]["usable_cores"]),
            ("instruction sets", old["cpu"].get("instruction_sets"), now["cpu"].get("instruction_sets")),
            ("GPUs", gpus_of(old), gpus_of(now)),
            ("system", old.get("system"), now.get("system")),
            ("Python", old.get("python"), now.get("python")),
            ("resnet-onnx", base["tool"], new["tool"]),
        )
        if a != b
    ]
    for name in sorted(old["libraries"].keys() | now["libraries"].keys()):
        a, b = old["libraries"].get(name), now["libraries"].get(name)
        if a != b:
            found.append(f"{name}: {a or 'none'} → {b or 'none'}")
    for before, after in pairs:
        for name in _SETTINGS:
            a, b = before["recorded"].get(name), after["recorded"].get(name)
            if a != b and not before["error"] and not after["error"]:
                found.append(f"{name} of {after['runtime']}: {_text(a)} → {_text(b)}")
    return list(dict.fromkeys(found))


Rows = Sequence[Mapping[str, Any]]


def _match(
    base: Rows, new: Rows, *, forced: bool
) -> tuple[list[tuple[Mapping[str, Any], Mapping[str, Any]]], list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Pairs rows; a row that never opened has no device and matches any. Forced, work and harness may differ."""
    fields = _PLACE if forced else (*_WORK, *_PLACE)
    for which, rows in (("BASE", base), ("NEW", new)):
        keys = [(*(row[name] for name in fields), *map(row.get, _ASKED), _harness(row), row["device"]) for row in rows]
        if len(set(keys)) < len(keys):
            twice = next(row for row, key in zip(rows, keys, strict=True) if keys.count(key) > 1)
            raise BadData(f"{which} has two rows of {_named(twice)}: which one is meant can't be told")
    left = list(new)
    pairs, missing = [], []
    for row in base:
        fit = [
            other
            for other in left
            if all(row[name] == other[name] for name in fields)
            and all(row[name] == other[name] for name in _ASKED if name in row and name in other)
            and (forced or _harness(row) == _harness(other) or row["error"] or other["error"])
            and (row["device"] == other["device"] or None in (row["device"], other["device"]))
        ]
        if fit:
            pairs.append((row, fit[0]))
            left = [other for other in left if other is not fit[0]]
        else:
            missing.append(row)
    return pairs, missing, left


def _compared(base: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> Compared:
    row = {name: new[name] for name in (*_WORK, *_PLACE, "device")} | {name: new.get(name) for name in _ASKED}
    old, now = _speed(base), _speed(new)
    notes = _doubts(base, new)
    failed = new["error"] is not None and base["error"] is None
    if old is None or now is None or base["error"] is not None or new["error"] is not None:
        return Compared(
            row=row,
            verdict="inconclusive",
            ratio=None,
            ci95=None,
            base=old[0] if old else None,
            new=now[0] if now else None,
            failed=failed,
            notes=tuple(notes),
        )
    interval = ratio_interval(old, now)
    if interval is None and "Offline" in (_harness(base), _harness(new)):
        notes.append("LoadGen's Offline gives one figure and no interval: our own --scenario offline has both")
    elif interval is None:
        notes.append("too few independent samples for a 95 % interval: measure longer (--duration)")
    else:
        if not (base["stable"] and new["stable"]):
            interval = _widened(interval, _explained_by_load(base, new), notes)
        interval = _at_its_pace(interval, base, new, notes)
    return Compared(
        row=row,
        verdict=_verdict(interval, tolerance),
        ratio=now[0] / old[0],
        ci95=interval,
        base=old[0],
        new=now[0],
        failed=False,
        notes=tuple(notes),
    )


def _doubts(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    said: dict[str, list[str]] = {}
    for which, found in (("BASE", base), ("NEW", new)):
        if found["error"] is not None:
            said.setdefault(f"not measured to its end: {found['error']['message']}", []).append(which)
        elif not found["stable"]:
            said.setdefault(f"not stable: {found['unstable_reason']}", []).append(which)
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
    interval: tuple[float, float] | None, base: Mapping[str, Any], new: Mapping[str, Any], notes: list[str]
) -> tuple[float, float] | None:
    """Widens an interval to what it would be had the processor computed both at the same pace."""
    paces = [row["disturbance"].get("pace_us") for row in (base, new)]  # absent from results of earlier versions
    if interval is None or None in paces or new["device"] != "cpu" or base["device"] != "cpu":
        return interval
    slower = float(paces[1]) / float(paces[0])
    if abs(math.log(slower)) <= PACE_WITHIN:
        return interval
    notes.append(
        f"beside them the processor took {paces[0]:.0f} and {paces[1]:.0f} µs for the same work: interval widened"
    )
    return interval[0] * min(1.0, slower), interval[1] * max(1.0, slower)


Speed = tuple[float, tuple[float, float] | None]


def _speed(row: Mapping[str, Any]) -> Speed | None:
    """Returns images per second with interval.

    One stream: from the raw samples. Several share the machine, so that the time of one run says nothing of it: their
    figure comes from the runs completed in each round, as ``bench`` wrote it.
    """
    raw = row["raw_ns"]
    if row["streams"] == 1 and row.get("scenario") != "offline" and raw and any(raw):
        found = median_interval(np.concatenate([np.asarray(part, np.float64) for part in raw]))
        if found.low is None or found.high is None:
            return row["batch"] / found.median * 1e9, None
        return row["batch"] / found.median * 1e9, (row["batch"] / found.high * 1e9, row["batch"] / found.low * 1e9)
    if not row["images_per_second"]:
        return None
    interval = row["images_per_second_ci95"]
    return float(row["images_per_second"]), (float(interval[0]), float(interval[1])) if interval else None


def ratio_interval(base: Speed, new: Speed) -> tuple[float, float] | None:
    """Returns the interval of new over base, recovered from the two (MOVER on the logarithmic scale)."""
    (x, x_range), (y, y_range) = base, new
    if x_range is None or y_range is None:
        return None
    below_x, above_x = math.log(x / x_range[0]), math.log(x_range[1] / x)
    below_y, above_y = math.log(y / y_range[0]), math.log(y_range[1] / y)
    middle = math.log(y / x)
    return math.exp(middle - math.hypot(below_y, above_x)), math.exp(middle + math.hypot(above_y, below_x))


def _explained_by_load(base: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns by which factors a disturbed row's interval has to be widened, or None where nothing can be said.

    Who is left with c cores fewer than before can be slower by a factor of up to 1 − c: layers wait for their last
    thread, so that one busy core holds up all. Only the difference counts; what weighed on both alike is in both. Where
    others were busy with more than half a core, it depends on chance alone whether they sat on the same one.
    """
    on_base, on_new = (
        row["disturbance"]["other_programs_cores"] + row["disturbance"]["stolen_cores"] for row in (base, new)
    )
    if max(on_base, on_new) > BUSY_CORES:
        return None
    left = 1 - abs(on_new - on_base)
    return (1.0, 1 / left) if on_new >= on_base else (left, 1.0)


def _verdict(interval: tuple[float, float] | None, tolerance: float) -> Verdict:
    if interval is None:
        return "inconclusive"
    least, most = 1 - tolerance, 1 / (1 - tolerance)
    if interval[1] < least:
        return "slower"
    if interval[0] > most:
        return "faster"
    return "same" if least <= interval[0] and interval[1] <= most else "inconclusive"


def _named(row: Mapping[str, Any]) -> str:
    streams = f" streams {row['streams']}" if row["streams"] > 1 else ""
    streams += f" threads {row['threads']}" if row.get("threads") else ""
    streams += f" {row['scenario']}" if row.get("scenario") == "offline" else ""
    streams += f" LoadGen {_harness(row)}" if _harness(row) else ""
    device = f" {row['device']}" if row["device"] else ""
    return f"{row['model']} {row['precision']} {row['runtime']} batch {row['batch']}{streams} {row['scope']}{device}"


def _listed(rows: Rows) -> str:
    return ", ".join(_named(row) for row in rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")


def gpus_of(environment: Mapping[str, Any]) -> str:
    """Returns names and driver of the GPUs in a result's environment, or "none"; not what changes by the minute."""
    found = environment.get("gpu")
    gpus = found.get("gpus") if isinstance(found, Mapping) else None
    names = [str(gpu.get("name")) for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
    driver = found.get("driver") if isinstance(found, Mapping) and names else ""
    return ", ".join([*names, *([f"driver {driver}"] if driver else [])]) or "none"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
