"""The server scenario: its loop in simulated time, the search, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paired import chain

from resnet_onnx.bench.capacity import Trial, best_policy, find_capacity, saturation, share_bounds, simulated
from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.serving import BatchPolicy, Seconds, SimulatedEngine, batch_sizes, poisson_arrivals, serve
from resnet_onnx.cli.main import main
from runtimes.errors import UsageError

ALONE = BatchPolicy(max_batch=1)


def times(**sizes: float) -> dict[int, Seconds]:
    return {int(name[1:]): np.array([seconds]) for name, seconds in sizes.items()}


def sojourn_share(load: float, services: float) -> float:
    """P(sojourn ≤ t) of M/D/1, t in services: Erlang's waiting time (1909; Tijms, A First Course, section 9.4)."""
    waited = services - 1
    if waited < 0:
        return 0.0
    terms = (
        (load * (k - waited)) ** k / math.factorial(k) * math.exp(-load * (k - waited)) for k in range(int(waited) + 1)
    )
    return (1 - load) * sum(terms)


def analytic_rate(services: float) -> float:
    """The load of M/D/1 at which the 99th percentile is so many services."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sojourn_share(middle, services) >= 0.99 else (low, middle)
    return low


def test_the_rate_of_one_server_with_equal_services_is_that_of_theory_within_1_percent() -> None:
    """A million arrivals just below and just above the rate at which theory puts the 99th percentile at 8 services."""
    rate = analytic_rate(8.0)
    assert 0.7 < rate < 0.8
    below, above = (simulated(times(_1=0.01), 100 * rate * off, ALONE, 10**6, seed=3) for off in (0.99, 1.01))
    assert np.quantile(below, 0.99) < 0.08 < np.quantile(above, 0.99)


@given(
    st.lists(st.floats(0, 0.05), min_size=1, max_size=40),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.01, 0.05]),
)
@settings(max_examples=100)
def test_batches_keep_their_order_their_size_and_their_patience(gaps: list[float], largest: int, wait: float) -> None:
    arrivals = np.cumsum(gaps).tolist()
    ran: list[tuple[float, int]] = []

    class Engine(SimulatedEngine):
        def execute(self, count: int) -> None:
            ran.append((self.now(), count))
            super().execute(count)

    engine = Engine({size: np.array([0.02]) for size in batch_sizes(largest)}, np.random.default_rng(0))
    latencies = serve(arrivals, engine.execute, engine, BatchPolicy(max_batch=largest, max_wait_s=wait))
    assert sum(count for _, count in ran) == len(arrivals)
    assert max(count for _, count in ran) <= largest
    first, free = 0, 0.0
    for start, count in ran:
        waiting = [moment for moment in arrivals if moment <= start][first:]
        assert count == min(len(waiting), largest), "it takes all that wait"
        patient = arrivals[first] + wait
        full = arrivals[first + largest - 1] if first + largest <= len(arrivals) else math.inf
        assert start <= max(min(patient, full), free) + 1e-9, "an idle engine keeps nobody longer than the policy says"
        assert latencies[first : first + count] == pytest.approx(
            start + 0.02 - np.array(arrivals[first : first + count])
        )
        first, free = first + count, start + 0.02


def test_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff([0.0, *poisson_arrivals(50.0, 20_000, np.random.default_rng(0))])
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)
    assert (gaps > 0.1).mean() == pytest.approx(math.exp(-5), rel=0.2)


def test_sizes_are_powers_of_two_and_the_largest() -> None:
    assert [batch_sizes(largest) for largest in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_batching_is_chosen_where_it_pays() -> None:
    alike = times(_1=0.02, _2=0.021, _4=0.022, _8=0.023)  # eight pictures take hardly longer than one
    policy, rate = best_policy(alike, 0.1)
    assert policy.max_batch == 8
    assert rate > 3 / 0.02
    assert rate < saturation(alike)
    policy, _ = best_policy(times(_1=0.02, _2=0.04, _4=0.08, _8=0.16), 0.1)
    assert policy.max_batch == 1
    assert best_policy(times(_1=0.2), 0.1)[1] == 0.0


class Simulated:
    """An engine of the search in simulated time."""

    def __init__(self, own: dict[int, Seconds]) -> None:
        self.own = own
        self.arrivals: list[Sequence[float]] = []

    def serve(self, arrivals_s: Sequence[float], policy: BatchPolicy) -> Seconds:
        self.arrivals.append(arrivals_s)
        engine = SimulatedEngine(self.own, np.random.default_rng(len(self.arrivals)))
        return serve(arrivals_s, engine.execute, engine, policy)


def test_the_search_finds_the_rate_of_theory_and_confirms_it_on_fresh_arrivals() -> None:
    engine = Simulated(times(_1=0.01))
    found = find_capacity(engine, engine.own, limit_s=0.08, duration_s=4000, seed=1)
    assert found.rate == pytest.approx(100 * analytic_rate(8.0), rel=0.06)
    assert found.verdict == "met"
    assert found.low == found.rate
    assert found.rate < found.high <= 100
    assert found.confirmation is not None
    assert found.confirmation.percentile(0.99) <= 0.08
    assert len({tuple(each) for each in engine.arrivals}) == len(engine.arrivals)


def test_an_engine_that_became_slower_than_its_times_is_not_called_met() -> None:
    """What was measured of its batches promises too much; the real arrivals say so."""
    engine = Simulated(times(_1=0.02))
    found = find_capacity(engine, times(_1=0.01), limit_s=0.08, duration_s=4000, seed=1)
    assert found.rate <= 1.06 * 50 * analytic_rate(4.0) or found.verdict != "met"


def test_too_late_alone_is_a_rate_of_0() -> None:
    engine = Simulated(times(_1=0.2))
    found = find_capacity(engine, engine.own, limit_s=0.1, duration_s=60)
    assert (found.rate, found.verdict, found.trials) == (0.0, "broken", [])


def test_verdicts_are_three_valued_and_need_enough_pictures() -> None:
    on_time, late = np.full(1000, 0.01), np.array([0.2])
    assert Trial(rate=1.0, latencies_s=on_time).verdict(0.1) == "met"
    assert Trial(rate=1.0, latencies_s=on_time[:200]).verdict(0.1) == "undecided"
    random = np.random.default_rng(0)
    some = random.permutation(np.concatenate([on_time, np.repeat(late, 30)]))
    assert Trial(rate=1.0, latencies_s=some).verdict(0.1) == "broken"
    few = random.permutation(np.concatenate([on_time, np.repeat(late, 10)]))
    assert Trial(rate=1.0, latencies_s=few).verdict(0.1) == "undecided"
    together = np.concatenate([on_time, np.repeat(late, 22)])
    assert Trial(rate=1.0, latencies_s=together).verdict(0.1) == "undecided", "those late together are one event"
    assert share_bounds(0, 299, error=0.05)[1] == pytest.approx(0.00997, abs=1e-4)


@pytest.mark.parametrize("given", [
    {"scenario": "server"}, {"limit_s": 0.1}, {"scenario": "server", "limit_s": 0.0},
    {"scenario": "latency", "limit_s": 1.0},
])  # fmt: skip
def test_a_server_and_its_limit_come_together(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a limit of its 99th percentile"):
        BenchPlan(**given)


# ---- the command ----


def test_a_server_is_measured_saved_compared_and_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, saved = chain(tmp_path / "m.onnx", 2), tmp_path / "s.json"
    code = main([
        "bench", str(path), "--runtime=ort-cpu", "--threads=1", "--batch=4", "--scenario=server", "--p99=1000",
        "--duration=2", "--price=3.6", "--save", str(saved), "--json",
    ])  # fmt: skip
    assert code == 0
    found = json.loads(capfd.readouterr().out)
    (row,) = found["results"]
    capacity = row["capacity"]
    assert capacity["queries_per_second"] == row["images_per_second"] > 0
    assert capacity["ci95"][0] <= capacity["queries_per_second"] <= capacity["ci95"][1]
    assert 1 <= capacity["max_batch"] <= 4
    assert capacity["limit_ms"] == 1000
    assert row["includes_transfers"]
    assert row["cost_per_million"] == pytest.approx(1000 / row["images_per_second"])
    assert found["settings"]["price_per_hour"] == 3.6
    whole = json.loads(saved.read_text())
    whole["results"][0]["images_per_second"] *= 2
    (tmp_path / "twice.json").write_text(json.dumps(whole))
    assert main(["compare", str(saved), str(tmp_path / "twice.json"), "--json"]) in (0, 1)
    assert json.loads(capfd.readouterr().out)["rows"][0]["ratio"] == pytest.approx(2), "by its rate, not by its waits"
    assert main(["report", str(saved), "--out", str(tmp_path / "r.html")]) == 0
    assert "Latency from arrival to answer against load" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(("words", "said"), [
    (["--scenario=server"], "--scenario server was given alone"),
    (["--p99=10"], "--p99 was given alone"),
    (["--scenario=server", "--p99=10", "--streams=2"], "--streams was given"),
    (["--scenario=server", "--p99=10", "--profile"], "--profile was given"),
])  # fmt: skip
def test_options_that_contradict_a_server_are_one_message(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "resnet18", *words]) == 2
    assert said in capfd.readouterr().err
