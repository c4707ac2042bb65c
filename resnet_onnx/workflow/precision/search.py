"""Mixed precision by itself: which layers stay in float32 so that int8 passes the gate at the least cost of speed."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_onnx.workflow.precision import gate as gates
from resnet_onnx.workflow.precision.candidates import Calibrated, Candidate, int8_candidate
from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.conversion import Conversion
from resnet_onnx.workflow.precision.gate import Verdict

_STRICTER = 0.8
"""By how much less noise is aimed at where the held-out pictures refuse what the validation pictures let pass."""


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """A converted model, its comparison with float32 on the held-out pictures, and the gate's figures."""

    candidate: Candidate
    comparison: Comparison
    gate: dict[str, Any]


def judged(conversion: Conversion, candidate: Candidate) -> tuple[ConversionResult, Verdict]:
    """Compares a candidate with float32 on the held-out pictures; the result is one where the gate lets it pass."""
    conversion.progress("comparing with fp32 on held-out pictures")
    comparison = conversion.compare_one(candidate.model, "held-out")
    verdict = gates.check(conversion, comparison)
    return ConversionResult(candidate=candidate, comparison=comparison, gate=verdict.gate), verdict


def search(
    conversion: Conversion, found: Calibrated, refused: float, verdict: Verdict, layers: Sequence[Mapping[str, Any]]
) -> ConversionResult:
    """Keeps layers in float32 until the gate lets the model pass.

    The model of it: noise of different layers adds up as energy, and a layer costs speed by its multiply-adds. Layers
    return to float32 by noise removed per multiply-add, as many as the model says are needed; then the noise is
    measured on validation pictures. Where it is still too much, more return; what made it worse does not. The gate sees
    only what has come so far.

    Args:
        conversion: The conversion under way.
        found: Its calibration.
        refused: Signal-to-noise ratio, decibels, of all layers in int8 on the validation pictures.
        verdict: The gate's, on that.
        layers: What ``sensitivity`` measured.

    Returns:
        The first model that passes; its record names the search.

    Raises:
        CheckFailed: The minutes are over, or no layer is left, before the gate lets it pass.
    """
    minutes = conversion.config.budget_minutes or 0.0
    end = time.monotonic() + 60 * minutes
    noise = _energy(refused)
    target = noise * verdict.excess if math.isfinite(noise) else 0.0
    rest, kept = by_worth(layers), dict[str, str]()
    tried: list[dict[str, Any]] = []
    problem = verdict.problem
    while True:
        several = rest[: max(1, min(needed(rest, noise, target), len(rest) // 2))]
        rest = rest[len(several) :]
        if not several or len(kept) + len(several) >= len(layers):
            raise gates.refusal(conversion, f"{problem}; no choice of layers in fp32 was enough", layers)
        if time.monotonic() > end:
            raise gates.refusal(
                conversion,
                f"{problem}; {minutes:g} minutes were not enough to find the layers to keep "
                f"({len(tried)} {'choice' if len(tried) == 1 else 'choices'} tried)",
                layers,
            )
        wanted = kept | {row["layer"]: f"costs {row['sqnr_db']:.0f} dB alone" for row in several}
        conversion.progress(f"keeping {len(wanted)} layers in fp32")
        candidate = int8_candidate(conversion, found, wanted)
        sqnr_db = candidate.validation_sqnr_db
        step = {"kept_fp32": list(wanted), "sqnr_db": sqnr_db, "passed": None}
        tried.append(step)
        if _energy(sqnr_db) >= noise:
            continue  # errors of layers can cancel each other: what makes it worse stays int8
        kept, noise = wanted, _energy(sqnr_db)
        if noise > target:
            continue
        result, verdict = judged(conversion, candidate)
        step["passed"] = verdict.problem is None
        if verdict.problem is None:
            found_by = {"minutes": minutes, "tried": tried, "cost_share": _cost_share(layers, kept)}
            candidate.record["search"] = candidate.shown["search"] = found_by
            return result
        problem = verdict.problem
        target = noise * _STRICTER


def _energy(sqnr_db: float) -> float:
    """Returns the noise as a share of the signal's energy."""
    return float(10 ** (-sqnr_db / 10))


def by_worth(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns layers by noise per multiply-add; one whose work is unknown counts as the mean of the others."""
    known = [row["multiply_adds"] for row in layers if row["multiply_adds"]]
    mean = sum(known) / len(known) if known else 1.0
    return sorted(layers, key=lambda row: _energy(row["sqnr_db"]) / (row["multiply_adds"] or mean), reverse=True)


def needed(order: Sequence[Mapping[str, Any]], before: float, goal: float) -> int:
    """Returns how many layers must return to float32 for the noise to fall from `before` to `goal`, by the model."""
    energies = [_energy(row["sqnr_db"]) for row in order]
    alone = sum(energies)
    # The pairs on additions, which no layer has by itself, are shared out; the next measurement corrects it.
    scale = before / alone if alone > 0 and math.isfinite(before) else 1.0
    left = before if math.isfinite(before) else alone
    for count, energy in enumerate(energies, 1):
        left -= scale * energy
        if left <= goal:
            return count
    return len(energies)


def _cost_share(layers: Sequence[Mapping[str, Any]], kept: Collection[str]) -> float | None:
    """Returns the share of the multiply-adds that stays in float32."""
    if any(not row["multiply_adds"] for row in layers):
        return None
    given = sum(row["multiply_adds"] for row in layers if row["layer"] in kept)
    return float(given / sum(row["multiply_adds"] for row in layers))
