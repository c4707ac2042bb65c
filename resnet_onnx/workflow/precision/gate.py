"""The gate: what loses too much, or is too slow, is not written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resnet_onnx.parity.budget import LABELLED_NEEDED, LEAST_SQNR_DB
from resnet_onnx.parity.proportions import share_interval
from resnet_onnx.workflow.feeds import sample_feeds
from resnet_onnx.workflow.precision.candidates import Candidate
from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.conversion import Conversion
from runtimes.errors import CheckFailed, UnsupportedModel
from runtimes.spec import Target

_MOST_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict of the gate on a candidate.

    Attributes:
        gate: The figures, as the record has them.
        problem: Why it is refused; None where it passed.
        excess: By which factor the noise of the outputs, as energy, should fall for it to pass; at most 1.
    """

    gate: dict[str, Any]
    problem: str | None = None
    excess: float = 1.0


def check(conversion: Conversion, found: Comparison) -> Verdict:
    """Decides whether a candidate loses too much on the held-out pictures."""
    config = conversion.config
    return judge(found, to=config.to, max_drop=config.max_drop, chance=conversion.data.chance)


def judge(found: Comparison, *, to: str, max_drop: float, chance: float) -> Verdict:
    """Decides whether a model in another precision loses too much, by its comparison with float32.

    Top-1 decides where float32 itself is shown to be better than a guess on the labels. Where it is not it has nothing
    to lose, and any damage would pass.

    Args:
        found: On pictures that were not used to make it.
        to: The precision.
        max_drop: Points of top-1 that it may lose.
        chance: Top-1 of a guess.
    """
    right = found.both + found.only_fp32
    if found.labelled >= LABELLED_NEEDED and share_interval(right, found.labelled)[0] > chance:
        low, high = found.drop_interval()
        gate: dict[str, Any] = {
            "kind": "top1",
            "images": found.labelled,
            "fp32_top1": right / found.labelled,
            "top1": (found.both + found.only_candidate) / found.labelled,
            "drop_points": found.drop,
            "drop_ci95": [low, high],
            "max_drop_points": max_drop,
            "sqnr_db": found.sqnr_db,
        }
        if not found.finite:
            return Verdict(gate=gate, problem=_not_finite(to))
        if high <= max_drop:
            return Verdict(gate=gate)
        problem = (
            f"{to} loses {found.drop:.2f} points of top-1 (95 % interval {low:.2f} to {high:.2f}) on "
            f"{found.labelled} held-out pictures, allowed are {max_drop:g}"
        )
        # Changed decisions are about as many as the noise is large, and its energy goes with the square.
        return Verdict(gate=gate, problem=problem, excess=min(1.0, (max_drop / max(high, 1e-9)) ** 2))
    gate = {
        "kind": "sqnr",
        "images": found.images,
        "sqnr_db": found.sqnr_db,
        "least_sqnr_db": LEAST_SQNR_DB,
        "agreement": found.agreement,
    }
    if found.sqnr_db >= LEAST_SQNR_DB:
        return Verdict(gate=gate)
    if not found.finite:
        return Verdict(gate=gate, problem=_not_finite(to), excess=0.0)
    problem = (
        f"{to} has a signal-to-noise ratio of {found.sqnr_db:.1f} dB at its outputs on {found.images} "
        f"held-out pictures, needed are {LEAST_SQNR_DB:g}"
    )
    return Verdict(gate=gate, problem=problem, excess=10 ** ((found.sqnr_db - LEAST_SQNR_DB) / 10))


def _not_finite(to: str) -> str:
    return f"an output of {to} is not finite, or has another shape than that of fp32, on held-out pictures"


def refusal(conversion: Conversion, problem: str, layers: Sequence[Mapping[str, Any]]) -> CheckFailed:
    """Returns the error that says why nothing was written; `layers` are ``sensitivity``'s, none for half precision."""
    config = conversion.config
    if not layers:
        return CheckFailed(f"{problem}; nothing was written", fix="keep the layers that need it: --keep-fp32 PATTERN")
    named = ", ".join(f"{row['layer']} ({row['sqnr_db']:.0f} dB)" for row in layers[:3])
    advice = [f"--keep-fp32 '{layers[0]['layer']}'"]
    if config.budget_minutes is None:
        advice.append("--budget-minutes 5 to look for the layers to keep")
    if not config.per_channel:
        advice.append("scales per channel (leave --per-tensor out)")
    if config.method != "auto":
        advice.append("--method auto")
    advice.append("more or other calibration pictures")
    return CheckFailed(
        f"{problem}; nothing was written. Layers that cost most by themselves: {named}", fix=", ".join(advice)
    )


def speed(conversion: Conversion, candidate: Candidate) -> dict[str, Any]:
    """Measures fp32 and the candidate, interleaved, on each runtime; raises ``CheckFailed`` where it is too slow."""
    from resnet_onnx.bench.measure import measure
    from resnet_onnx.bench.plan import BenchPlan

    config = conversion.config
    least = config.min_speedup or 0.0
    batch = conversion.model.form.batch or 8
    targets = []
    for runtime in config.runtimes:
        plain = replace(conversion.original, label=f"{conversion.model.name} fp32")
        changed = plain.rewritten(
            conversion.draft(candidate.model, runtime), label=f"{conversion.model.name} {config.to}"
        )
        targets += [Target(runtime=runtime, source=plain), Target(runtime=runtime, source=changed)]
    feeds = sample_feeds(conversion.model, batch, seed=config.seed)
    rows = measure(targets, feeds, BenchPlan(batches=(batch,)), progress=conversion.progress)
    found = {}
    for runtime, slow, fast in zip(config.runtimes, rows[::2], rows[1::2], strict=True):
        for row in (slow, fast):
            if row.error is not None:
                raise row.error
        before, after = slow.seconds_per_run(), fast.seconds_per_run()
        if before is None or after is None:
            raise UnsupportedModel(f"{runtime}: too few runs to measure a speed")
        found[runtime] = {
            "speedup": before.median / after.median,
            "fp32_images_per_second": batch / before.median,
            "images_per_second": batch / after.median,
        }
    slow_ones = [f"{name} {row['speedup']:.2f}×" for name, row in found.items() if row["speedup"] < least]
    if slow_ones:
        kept = candidate.kept_fp32
        more = f" and {len(kept) - _MOST_NAMED} more" if len(kept) > _MOST_NAMED else ""
        named = f". Layers in fp32: {', '.join(kept[:_MOST_NAMED])}{more}" if kept else ""
        raise CheckFailed(
            f"{config.to} is not {least:g}× as fast as fp32 at batch {batch}: {', '.join(slow_ones)}; nothing was "
            f"written{named}",
            fix="another precision, fewer layers in --keep-fp32, or a lower --min-speedup",
        )
    return {"batch": batch, "min_speedup": least, "runtimes": found}
