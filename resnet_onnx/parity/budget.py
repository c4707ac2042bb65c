"""How much error is allowed, derived from arithmetic; the only place where tolerances are decided.

The float32 baseline is a plain float32 evaluation of the same network on the same inputs; its noise is its distance
from the float64 gold. Correct runtimes sum in other orders and were measured at 0.8 to 3.0 times that noise (ResNet-18
to -152, VGG-16, CIFAR nets); the smallest faults worth catching (one channel of one weight off by 1 %) are at 30 times
and more. So the budget is four times the noise. The baseline itself must lie inside a bound derived from the summation
lengths, so that a broken baseline widens nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

UNIT_ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "tf32": 2.0**-11}
"""u of each format, round to nearest: IEEE 754-2019 binary64/32/16; bfloat16 has 8 significant bits, TF32 11."""

SAME_FUNCTION = 2.0**-12
"""Relative RMSE up to which an exported file counts as the same network, 2.4e-4: a thousand times the noise of float32
on the networks of the catalog and far below what a wrong stride, bias or epsilon does. It decides only whether an
export is kept; ``parity`` decides what is good enough for a runtime."""

NOISE_MULTIPLE = 4.0
"""Budget over the baseline's noise; see the module's docstring for what was measured."""

EQUAL_TERMS = 0.25
"""Unit round-offs of float32 per term that a pooling may be off by. Its terms are equal where a picture is flat, and
where they are added one after the other, each addition between two powers of two then rounds alike: errors add up
instead of cancelling, to 0.15·n·u by theory (root mean square over the values; 0.5·n·u at worst). Measured on flat
pictures: OpenVINO's global mean of 1,024 and 4,096 values 140 and 490 u (0.12 to 0.14·n·u), ONNX Runtime's of 784 in
its blocked layout 70 u (0.09·n·u), its plain one 20 u; on photos none was more than 20 u off. All of these add up
correctly, and a baseline that adds in blocks must not convict the others. Pooling in half precision adds in float32."""

DECORRELATED = math.sqrt(2.0)
"""Two evaluations of a quantised graph whose roundings fall independently of each other are √2 times as far apart as
each is from the graph without rounding: variances add. Correct runtimes round mostly alike and are nearer."""

MARGIN_MULTIPLE = 2.0
"""A top-1 decision may differ from gold's only where gold's margin between its two best classes is below this many
times the picture's largest observed error: each of the two scores can move by one error."""


MAX_DROP = 1.0
"""Points of top-1 that a change of precision may cost where the user sets nothing else. Published int8 drops of ResNets
are 0.12 to 0.29 (arXiv:2004.09602, table 5)."""

LABELLED_NEEDED = 2_000
"""Fewer labelled pictures leave the interval of a drop wider than the drop that is looked for."""

LEAST_SQNR_DB = 20.0
"""Signal to quantisation noise of the outputs, where accuracy can't be measured: noise of a tenth of the signal."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """What an operator adds up for each element of its output, and the format that it rounds to.

    Attributes:
        pooling: Whether the terms are neighbours in a picture, which may all be equal.
    """

    terms: int
    precision: str = "fp32"
    pooling: bool = False

    def rounds_to(self, at_most: str = "fp32") -> str:
        """Returns its format, or `at_most` where that is coarser; none is finer than float32."""
        return max("fp32", self.precision, at_most, key=lambda name: UNIT_ROUNDOFF[name])

    def unit(self, at_most: str = "fp32") -> float:
        """Returns the unit round-off u of ``rounds_to``."""
        return UNIT_ROUNDOFF[self.rounds_to(at_most)]

    def least(self, at_most: str = "fp32") -> float:
        """Returns the relative error that is allowed it whatever a baseline shows."""
        equal = EQUAL_TERMS * self.terms * UNIT_ROUNDOFF["fp32"] if self.pooling else 0.0
        return max(NOISE_MULTIPLE * self.unit(at_most), equal)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Allowed error of one output.

    Attributes:
        bound: What the baseline may show at most, by its summation lengths.
    """

    relative_rmse: float
    noise: float
    bound: float
    baseline: str
    reason: str
    by_hand: bool = False


def derived_bound(sums: Sequence[Sum], precision: str = "fp32") -> float:
    """Returns the probabilistic forward error bound of a chain of dot products, relative to the result.

    A dot product of n terms has a relative error of about √n·u with independent roundings (Higham & Mary, SIAM J. Sci.
    Comput. 41(5), 2019, theorem 2.4); layers add in quadrature, so the chain has √Σnu², u·√Σn in one format, with a
    layer's fan-in as its n. Blocked summation, as every fast library does it, stays well below.
    """
    return math.sqrt(sum(each.terms * each.unit(precision) ** 2 for each in sums)) or UNIT_ROUNDOFF[precision]


def noise_scale(sums: Sequence[Sum], precision: str = "fp32") -> float:
    """Returns how many times float32's noise a network has in the formats of its sums: the ratio of their bounds."""
    return derived_bound(sums, precision) / derived_bound([Sum(terms=each.terms) for each in sums])


def allowance(noise: float, sums: Sequence[Sum], *, baseline: str, precision: str = "fp32") -> Budget:
    """Derives the budget from the baseline's noise, its relative RMSE against gold in float32.

    Sums in formats narrower than that scale the noise, each by its own share in the bound: of a graph that multiplies
    in float32 and gives half precision, only the last rounding counts as half. No format is finer than `precision`,
    that of a runtime which narrows what it computes in.
    """
    scale = noise_scale(sums, precision)
    layers = max(1, len(sums))
    least = math.hypot(*(each.least(precision) for each in sums or [Sum(terms=1)]))
    bound = max(derived_bound(sums, precision), least)
    measured = NOISE_MULTIPLE * noise * scale
    scaled = _scaled(sums, precision, scale)
    if not noise <= bound / scale:  # NaN too
        relative_rmse = bound
        reason = f"{baseline} is itself {noise:.1e} off, beyond the derived bound {bound:.1e}, which serves instead"
    elif measured > bound:  # a baseline that is just inside the bound must not widen it
        relative_rmse = bound
        reason = (
            f"the derived bound, less than {NOISE_MULTIPLE:g} × the noise of {baseline} ({noise * scale:.1e}{scaled})"
        )
    elif measured >= least:
        relative_rmse = measured
        reason = f"{NOISE_MULTIPLE:g} × the noise of {baseline} ({noise * scale:.1e}{scaled})"
    else:
        relative_rmse = least
        longest = max((each.terms for each in sums if each.pooling), default=0)
        pooled = f" and a pooling of {longest} values" if EQUAL_TERMS * longest > NOISE_MULTIPLE * max(1, scale) else ""
        reason = f"{NOISE_MULTIPLE:g} roundings in each of {layers} layers{pooled}, more than {baseline} showed{scaled}"
    return Budget(relative_rmse=relative_rmse, noise=noise, bound=bound, baseline=baseline, reason=reason)


def _scaled(sums: Sequence[Sum], precision: str, scale: float) -> str:
    """Returns what the noise was scaled by and why, in words, or "" where all is float32."""
    formats = Counter(each.rounds_to(precision) for each in sums)
    narrow = [f"{count} in {name}" for name, count in sorted(formats.items()) if name != "fp32"]
    if not narrow:
        return ""
    factor = f"{scale:,.0f}" if scale >= 10 else f"{scale:.1f}"
    return f", scaled by {factor}: of {len(sums)} sums {' and '.join(narrow)}"


def quantised_allowance(noise: float, steps: float) -> Budget:
    """Derives the budget of a quantised model from what its own rounding does.

    A rounding decision flips where two runtimes fuse differently, and a flip is a whole step. The most that correct
    runtimes can be apart is when every rounding falls independently: ``DECORRELATED`` times the rounding's own effect.

    Args:
        noise: Relative RMSE between the quantised graph and the same graph without its rounding, both in float64.
        steps: What the step sizes add up to, see ``quantised.step_error``. Networks amplify it (trained CIFAR nets by
            up to 1.7); beyond ``NOISE_MULTIPLE`` times it is not rounding any more, and widens nothing.
    """
    own = "the model's own rounding"
    bound = NOISE_MULTIPLE * steps
    effect, reason = noise, f"√2 × what {own} does ({noise:.1e})"
    if not noise <= bound:  # NaN too
        effect = bound
        reason = f"√2 × {NOISE_MULTIPLE:g} × the {steps:.1e} of its step sizes, less than {own} shows ({noise:.1e})"
    return Budget(relative_rmse=DECORRELATED * effect, noise=noise, bound=bound, baseline=own, reason=reason)
