"""Distances, decisions and budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resnet_onnx.parity.budget import NOISE_MULTIPLE, UNIT_ROUNDOFF, Sum, allowance, derived_bound
from resnet_onnx.parity.metrics import DecisionSum, distance

SCORES = hnp.arrays(np.float64, (4, 5), elements=st.floats(-100, 100, allow_subnormal=False))


def test_distance_of_a_known_error() -> None:
    gold = np.array([[3.0, 4.0], [1.0, 0.0]])
    found = gold + np.array([[0.03, 0.04], [0.0, 0.0]])
    measured = distance(gold, found)
    assert measured.per_picture == pytest.approx([0.01, 0.0])
    assert measured.relative_rmse == pytest.approx(0.01 / math.sqrt(2))
    assert measured.worst_index == 0
    assert measured.max_abs == pytest.approx(0.04)
    assert measured.cosine == pytest.approx(1.0)


@given(SCORES)
def test_an_output_is_no_distance_from_itself(scores: np.ndarray) -> None:
    measured = distance(scores, scores.copy())
    assert measured.relative_rmse == 0
    assert measured.max_abs == 0
    assert measured.finite


@given(SCORES, st.integers(0, 3), st.integers(0, 4), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_nan_and_inf_never_compare_equal(scores: np.ndarray, row: int, column: int, bad: float) -> None:
    broken = scores.copy()
    broken[row, column] = bad
    for gold, found in ((scores, broken), (broken, scores), (broken, broken.copy())):
        measured = distance(gold, found)
        assert not measured.finite
        assert measured.relative_rmse == np.inf


def test_a_picture_of_all_zero_gold_is_measured_on_the_others_scale() -> None:
    gold = np.array([[0.0, 0.0], [2.0, 2.0]])
    measured = distance(gold, gold + np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert measured.per_picture == pytest.approx([0.5, 0.0])


def test_a_flip_is_excused_only_within_twice_the_observed_error() -> None:
    gold = np.array([[1.0, 0.9], [1.0, 0.5]])
    found = np.array([[0.94, 0.95], [0.7, 0.8]])
    observed = np.array([0.06, 0.2])
    compared = DecisionSum()
    compared.add(gold, found)
    judged = compared.total(observed, multiple=2.0)
    assert judged.excused == (0,)
    assert judged.unexcused == (1,)
    assert judged.equal == 0


def test_the_budget_follows_the_baseline() -> None:
    budget = allowance(5e-7, [Sum(terms=n) for n in (147, 576, 1152, 512)], baseline="torch fp32")
    assert budget.relative_rmse == pytest.approx(NOISE_MULTIPLE * 5e-7)
    assert "torch fp32" in budget.reason


def test_a_broken_baseline_widens_nothing() -> None:
    lengths = [Sum(terms=n) for n in (147, 576, 1152, 512)]
    bound = derived_bound(lengths)
    for noise in (10 * bound, 1.0, np.inf, np.nan):
        assert allowance(noise, lengths, baseline="torch").relative_rmse == bound


def test_a_silent_baseline_leaves_room_for_rounding() -> None:
    budget = allowance(0.0, [Sum(terms=10)] * 9, baseline="torch")
    assert budget.relative_rmse == pytest.approx(NOISE_MULTIPLE * UNIT_ROUNDOFF["fp32"] * 3)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=50), st.integers(1, 1000))
def test_the_bound_grows_with_summation_length(lengths: list[int], more: int) -> None:
    sums = [Sum(terms=n) for n in lengths]
    assert derived_bound([*sums, Sum(terms=more)]) > derived_bound(sums)
    assert derived_bound(sums, "bf16") / derived_bound(sums) == pytest.approx(2.0**16)
