"""Medians, intervals and percentiles: what a list of times supports and what not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_onnx.bench.statistics import (
    autocorrelation_time,
    coefficient_of_variation,
    median_interval,
    percentile,
    rounded,
    samples_needed,
    significant,
)

times = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300).map(np.array)


@given(times)
def test_the_interval_holds_the_median_and_lies_within_the_samples(values: np.ndarray) -> None:
    found = median_interval(values)
    assert found.median == np.median(values)
    if found.low is None or found.high is None:
        assert found.effective_samples < 6
        assert found.relative_half_width == math.inf
    else:
        assert values.min() <= found.low <= found.median <= found.high <= values.max()


@given(times, st.floats(1e-3, 1e3))
def test_the_interval_scales_with_the_unit(values: np.ndarray, factor: float) -> None:
    one, other = median_interval(values), median_interval(values * factor)
    assert other.median == pytest.approx(one.median * factor)
    if one.low is not None and other.low is not None:
        assert (other.low, other.high) == pytest.approx((one.low * factor, one.high * factor))


@pytest.mark.parametrize(
    ("count", "expected"),
    # Ranks of the 95 % interval of a median, from 0: Conover's table A3 (binomial, p = 0.5).
    [(5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (12, (2, 9)), (15, (3, 11)), (19, (4, 14))],
)
def test_the_interval_takes_the_order_statistics_of_the_binomial(count: int, expected: tuple[int, int] | None) -> None:
    shuffled = np.random.default_rng(count).permutation(count).astype(float)
    found = median_interval(shuffled)
    assert ((found.low, found.high) if found.low is not None else None) == expected


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval(np.empty(0))


@pytest.mark.parametrize("count", [10, 40, 200])
def test_95_percent_of_the_intervals_hold_the_true_median(count: int) -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        found = median_interval(random.exponential(size=count))
        hits += found.low is None or found.low <= math.log(2) <= (found.high or 0)
    # Three standard errors of a proportion of 0.95 in 600 are 0.027.
    assert hits / 600 >= 0.95 - 0.027


def _correlated(random: np.random.Generator, count: int, factor: float) -> np.ndarray:
    noise = random.standard_normal(count)
    values = np.empty(count)
    values[0] = noise[0]
    for index in range(1, count):
        values[index] = factor * values[index - 1] + math.sqrt(1 - factor**2) * noise[index]
    return values


def test_the_interval_is_wide_enough_for_times_that_depend_on_each_other() -> None:
    random = np.random.default_rng(0)
    hits = narrow = 0
    for _ in range(300):
        values = _correlated(random, 300, 0.8)
        found = median_interval(values)
        hits += found.low is None or found.low <= 0 <= (found.high or 0)
        ordered = np.sort(values)
        narrow += ordered[132] <= 0 <= ordered[167]  # as if they were independent
    assert hits / 300 >= 0.90
    assert narrow / 300 < 0.7, "the series must be one on which the naive interval fails"


def test_autocorrelation_is_one_without_and_large_with_dependence() -> None:
    random = np.random.default_rng(1)
    assert autocorrelation_time(random.standard_normal(4000)) == pytest.approx(1, abs=0.3)
    # The indicator of an AR(1) process with factor 0.8: correlation 2/π·asin(0.8ᵏ), which sums to τ = 5.9.
    expected = 1 + 2 * sum(2 / math.pi * math.asin(0.8**k) for k in range(1, 60))
    assert autocorrelation_time(_correlated(random, 20_000, 0.8)) == pytest.approx(expected, rel=0.15)
    assert autocorrelation_time(np.array([1.0, 2.0] * 500)) == 1.0
    assert autocorrelation_time(np.ones(100)) == 1.0


def test_a_drift_leaves_few_independent_samples() -> None:
    found = median_interval(np.linspace(1, 2, 1000))
    assert found.effective_samples < 6
    assert found.low is None


def test_percentiles_need_as_many_samples_as_wilks_says() -> None:
    assert [samples_needed(p) for p in (90, 95, 99, 99.9)] == [29, 59, 299, 2995]


@given(st.sampled_from([90.0, 95.0, 99.0, 99.9]), st.integers(0, 4000))
def test_a_percentile_is_not_invented(percent: float, count: int) -> None:
    values = np.arange(count, dtype=float)
    found = percentile(values, percent)
    if 1 - (percent / 100) ** count < 0.95:
        assert found is None
    else:
        assert found == pytest.approx((count - 1) * percent / 100)


def test_the_median_is_always_given() -> None:
    assert percentile(np.array([3.0]), 50) == 3.0
    assert percentile(np.empty(0), 50) is None


def test_coefficient_of_variation() -> None:
    assert coefficient_of_variation(np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2) / 2)
    assert coefficient_of_variation(np.array([1.0])) is None


@pytest.mark.parametrize(
    ("value", "uncertainty", "expected"),
    [
        (50.1234, 0.3, ("50.1", "0.3")),
        (50.1234, 0.12, ("50.12", "0.12")),
        (1234.5, 30.0, ("1,234", "30")),
        (1234.5, 3.0, ("1,234", "3")),
        (0.012345, 0.0004, ("0.0123", "0.0004")),
        (50.1234, None, ("50.1", "–")),
        (50.1234, 0.0, ("50.12", "0")),
        (math.nan, 1.0, ("–", "–")),
    ],
)
def test_no_more_digits_than_are_known(value: float, uncertainty: float | None, expected: tuple[str, str]) -> None:
    assert significant(value, uncertainty) == expected


@pytest.mark.parametrize(
    ("value", "digits", "expected"), [(0.0, 3, "0"), (1234.0, 3, "1,230"), (0.012345, 3, "0.0123"), (5.0, 2, "5.0")]
)
def test_rounded_keeps_significant_digits(value: float, digits: int, expected: str) -> None:
    assert rounded(value, digits) == expected
