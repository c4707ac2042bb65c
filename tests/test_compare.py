"""``compare``: same against same, slowdowns, other work, other environments, damaged files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.saved_results import Times, document, noisy, row

from resnet_onnx.bench import compare as comparing
from resnet_onnx.bench.compare import TOLERANCE
from resnet_onnx.cli.main import main
from resnet_onnx.results.bench import Bench
from resnet_onnx.results.compare import Compare, ComparedRow
from resnet_onnx.results.reading import read_bench
from resnet_onnx.results.writing import typed
from runtimes.errors import BadData, UsageError, UserError


def compare(base: Any, new: Any, **options: Any) -> Compare:
    return comparing.compare(typed(Bench, base), typed(Bench, new), **options)


def verdict(base: Times, new: Times, **options: Any) -> ComparedRow:
    (found,) = compare(document(row(base)), document(row(new)), **options).rows
    return found


# ---- row 15: what is the same and what is slower ----

NOISES = {
    "quiet": {"noise": 0.005, "count": 60},
    "white": {"noise": 0.05, "count": 400},
    "a neighbour for seconds": {"noise": 0.04, "memory": 0.98, "count": 300},
    "a drift over the whole run": {"noise": 0.03, "memory": 0.998, "count": 500},
    "few samples": {"noise": 0.02, "memory": 0.7, "count": 30},
}


@pytest.mark.parametrize("kind", NOISES)
def test_same_against_same_is_not_faster_or_slower(kind: str) -> None:
    found = [verdict(noisy(2 * i, **NOISES[kind]), noisy(2 * i + 1, **NOISES[kind])) for i in range(40)]
    assert sum(one.verdict in ("faster", "slower") for one in found) <= 4


def test_independent_samples_would_be_promised_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noises above are hard enough: an interval that takes neighbours in time for independent fails on them."""
    monkeypatch.setattr("resnet_onnx.bench.statistics.autocorrelation_time", lambda values: 1.0)
    noise = NOISES["a neighbour for seconds"]
    found = [verdict(noisy(2 * i, **noise), noisy(2 * i + 1, **noise)) for i in range(40)]
    assert sum(one.verdict in ("faster", "slower") for one in found) > 4


@pytest.mark.parametrize(
    ("memory", "noise", "count"), [(0.0, 0.01, 60), (0.0, 0.06, 400), (0.5, 0.02, 200), (0.9, 0.01, 400)]
)
def test_a_slowdown_of_5_percent_is_found(memory: float, noise: float, count: int) -> None:
    def pair(seed: int) -> ComparedRow:
        base = noisy(2 * seed, memory=memory, noise=noise, count=count)
        return verdict(base, [1.05 * part for part in noisy(2 * seed + 1, memory=memory, noise=noise, count=count)])

    found = [pair(seed) for seed in range(40)]
    assert sum(one.verdict == "slower" for one in found) >= 36
    assert np.median([one.ratio for one in found if one.ratio is not None]) == pytest.approx(1 / 1.05, rel=0.005)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    held = 0
    for seed in range(300):
        found = verdict(noisy(2 * seed, noise=0.05, memory=0.5, count=200), noisy(2 * seed + 1, noise=0.02, count=90))
        assert found.ci95 is not None
        held += found.ci95[0] <= 1 <= found.ci95[1]
    assert held >= 0.93 * 300


def test_same_needs_the_whole_interval_within_the_tolerance() -> None:
    quiet = noisy(1, noise=0.005)
    assert verdict(quiet, noisy(2, noise=0.005)).verdict == "same"
    assert verdict(quiet, noisy(2, noise=0.005), tolerance=0.0001).verdict == "inconclusive"
    wide = verdict(noisy(1, noise=0.2, count=60), noisy(2, noise=0.2, count=60))
    assert wide.verdict == "inconclusive"
    slower = [1.03 * part for part in quiet]
    assert verdict(quiet, slower).verdict == "slower"
    assert verdict(quiet, slower, tolerance=0.05).verdict == "same"
    assert verdict(slower, quiet).verdict == "faster"


times = st.lists(st.integers(10**3, 10**9), min_size=6, max_size=60).map(lambda found: [np.array(found, float)])


@given(times, times, st.floats(0.001, 0.5))
def test_changing_places_gives_the_inverse(base: Times, new: Times, tolerance: float) -> None:
    there, back = verdict(base, new, tolerance=tolerance), verdict(new, base, tolerance=tolerance)
    assert there.ratio is not None
    assert back.ratio == pytest.approx(1 / there.ratio)
    if there.ci95 is None:
        assert back.ci95 is None
        return
    assert back.ci95 == pytest.approx((1 / there.ci95[1], 1 / there.ci95[0]))
    assert there.ci95[0] <= there.ratio <= there.ci95[1]
    opposite = {"slower": "faster", "faster": "slower"}
    assert back.verdict == opposite.get(there.verdict, there.verdict)


def test_several_streams_are_compared_by_completed_runs_not_by_the_time_of_one() -> None:
    base = row(noisy(1), streams=4, images_per_second=100.0, images_per_second_ci95=[99.5, 100.5])
    new = row(noisy(1), streams=4, images_per_second=90.0, images_per_second_ci95=[89.5, 90.5])
    (found,) = compare(document(base), document(new)).rows
    assert (found.verdict, found.ratio) == ("slower", 0.9)
    assert found.ci95 is not None
    # Hand-calculated: ln 0.9 ∓ √(ln(90/89.5)² + ln(100.5/100)²), and the other way round.
    assert found.ci95 == pytest.approx((0.893295, 0.906749), abs=1e-6)


def test_five_samples_are_inconclusive() -> None:
    found = verdict([np.array([1e6] * 5)], [np.array([2e6] * 5)])
    assert (found.verdict, found.ratio, found.ci95) == ("inconclusive", 0.5, None)
    assert "too few independent samples" in found.notes[0]


def test_what_a_neighbour_explains_is_not_called_a_slowdown() -> None:
    def disturbed(slices: Times, cores: float) -> dict[str, Any]:
        seen = {"other_programs_cores": cores, "stolen_cores": 0.0, "cores": 2}
        return document(row(slices, stable=False, unstable_reason="other programs", disturbance=seen))

    quiet, slow = noisy(1), [1.2 * part for part in noisy(2)]
    for cores, expected in ((0.3, "inconclusive"), (0.05, "slower"), (0.9, "inconclusive")):
        (found,) = compare(document(row(quiet)), disturbed(slow, cores)).rows
        assert found.verdict == expected, cores
        assert "NEW not stable: other programs" in found.notes
    (alike,) = compare(disturbed(quiet, 0.4), disturbed(slow, 0.4)).rows
    assert alike.verdict == "slower"
    assert alike.notes == ["BASE and NEW not stable: other programs"]
    (busy,) = compare(disturbed(quiet, 0.9), disturbed(slow, 0.9)).rows
    assert (busy.verdict, busy.ci95) == ("inconclusive", None)
    assert "too busy a machine" in busy.notes[1]


# ---- which rows, which work ----


def test_rows_meet_by_what_they_are_and_the_others_are_named() -> None:
    quiet = noisy(1)
    base = document(row(quiet), row(quiet, batch=1), row(quiet, runtime="torch"))
    new = document(row(quiet, runtime="openvino"), row(quiet, batch=1), row(quiet))
    found = compare(base, new)
    assert [(one.runtime, one.batch) for one in found.rows] == [("ort-cpu", 8), ("ort-cpu", 1)]
    assert found.missing == ["net fp32 torch batch 8 device cpu"]
    assert found.extra == ["net fp32 openvino batch 8 device cpu"]
    assert not found.regressed


def test_nothing_in_common_or_twice_the_same_is_an_error() -> None:
    quiet = noisy(1)
    with pytest.raises(UserError, match="no row in common: BASE has net fp32 ort-cpu batch 8"):
        compare(document(row(quiet)), document(row(quiet, batch=4)))
    with pytest.raises(BadData, match="NEW has two rows of net fp32 ort-cpu batch 8"):
        compare(document(row(quiet)), document(row(quiet), row(quiet)))
    with pytest.raises(UsageError, match="between 0 and 100 %"):
        compare(document(row(quiet)), document(row(quiet)), tolerance=1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "c" * 64}, "another model file"),
        ({"weights_sha256": "c" * 64}, "another weights"),
        ({"name": "other"}, "BASE is of net, NEW of other"),
        ({"inputs": ["input: float32[batch, 3, 64, 64]"]}, "another input"),
        ({"precision": "int8"}, "another precision"),
    ],
)
def test_different_work_is_refused_unless_forced(changes: dict[str, Any], said: str) -> None:
    own = {"precision": changes.get("precision", "fp32"), "model": changes.get("name", "net")}
    base, new = document(row(noisy(1))), document(row(noisy(2), **own), **changes)
    with pytest.raises(UserError, match=said) as caught:
        compare(base, new)
    assert caught.value.exit_code == 2
    assert "--force" in str(caught.value.fix)
    forced = compare(base, new, force=True)
    assert said in forced.different_work[0]
    assert forced.rows[0].ratio is not None


def test_another_scope_is_different_work() -> None:
    base, new = document(row(noisy(1))), document(row(noisy(2), scope="end-to-end"))
    with pytest.raises(UserError, match=r"another scope \(device and end-to-end\)"):
        compare(base, new)
    assert len(compare(base, new, force=True).rows) == 1


def test_another_environment_is_told_and_compared() -> None:
    base, new = document(row(noisy(1))), document(row(noisy(2), recorded={"threads": 1}))
    new["environment"] = copy.deepcopy(new["environment"])
    new["environment"]["cpu"] = {"model": "Other", "usable_cores": 4}
    new["environment"]["libraries"] = {"onnxruntime": "1.32.0", "openvino": "2026.4"}
    assert compare(base, new).environment_differs == [
        "CPU: CPU → Other", "usable cores: 2 → 4",
        "onnxruntime: 1.31.1 → 1.32.0", "openvino: none → 2026.4", "torch: 2.15.0 → none",
        "threads of ort-cpu: 2 → 1",
    ]  # fmt: skip
    assert compare(base, base).environment_differs == []


def test_a_row_that_fails_now_is_a_regression_and_one_that_failed_before_is_none() -> None:
    error = {"kind": "out-of-memory", "message": "8 GiB are not there", "fix": None}
    nothing = {"images_per_second": None, "images_per_second_ci95": None, "raw_ns": [], "samples": 0, "device": None}
    good = document(row(noisy(1)))
    bad = document(row(noisy(1), error=error, stable=False, unstable_reason="it was not measured", **nothing))
    now = compare(good, bad)
    assert (now.regressed, now.rows[0].failed, now.rows[0].verdict) == (True, True, "inconclusive")
    assert now.rows[0].notes == ["NEW not measured to its end: 8 GiB are not there"]
    before = compare(bad, good)
    assert (before.regressed, before.rows[0].ratio) == (False, None)


# ---- the command ----


def saved(path: Path, found: Any) -> str:
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return str(path)


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["compare", *arguments])
    output = capfd.readouterr()
    return code, output.out, output.err


def test_the_command_says_slower_and_exits_with_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = saved(tmp_path / "base.json", document(row(noisy(1))))
    new = saved(tmp_path / "new.json", document(row([1.1 * part for part in noisy(2)])))
    code, out, err = run(capfd, base, new)
    assert (code, err) == (1, "")
    assert out.startswith("Slower: 1 slower\n")
    assert "SLOWER" in out
    assert "tolerance 2 %" in out
    code, out, _ = run(capfd, base, new, "--json")
    (found,) = json.loads(out)["rows"]
    assert code == 1
    assert found["verdict"] == "slower"
    assert found["ratio"] == pytest.approx(1 / 1.1, rel=0.01)
    assert found["ci95"][0] < found["ratio"] < found["ci95"][1] < 1 - TOLERANCE
    assert (found["model"], found["runtime"], found["batch"], found["scope"]) == ("net", "ort-cpu", 8, "device")
    assert run(capfd, base, new, "--tolerance", "20%")[0] == 0
    code, out, _ = run(capfd, base, base)
    assert (code, out.startswith("Not slower: 1 same\n")) == (0, True)


def test_the_first_line_says_that_the_machine_may_be_the_cause(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, new = document(row(noisy(1))), document(row([1.1 * part for part in noisy(2)]))
    new["environment"]["libraries"]["onnxruntime"] = "1.32.0"
    _, out, _ = run(capfd, saved(tmp_path / "base.json", base), saved(tmp_path / "new.json", new))
    assert out.startswith("Slower: 1 slower; the environments differ, which may be the cause (below)\n")
    assert out.endswith("The environments differ:\n  onnxruntime: 1.31.1 → 1.32.0\n")


def test_rows_of_other_threads_are_told_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = document(row(noisy(1), threads=1), row(noisy(2, level_ns=2e6), threads=2))
    path = saved(tmp_path / "b.json", both)
    _, out, _ = run(capfd, path, path)
    assert [line.split()[:4] for line in out.splitlines() if line.startswith(" ort-cpu")] == [
        ["ort-cpu", "8", "1", "2,000"], ["ort-cpu", "8", "2", "4,000"],
    ]  # fmt: skip
    _, out, _ = run(capfd, path, path, "--json")
    assert [found["threads"] for found in json.loads(out)["rows"]] == [1, 2]


def test_a_byte_order_mark_is_read_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path(saved(tmp_path / "base.json", document(row(noisy(1)))))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert run(capfd, str(path), str(path))[0] == 0


def with_row(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**document, "results": [{**document["results"][0], **changes}]}


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "cut off": (lambda d: json.dumps(d)[:-50], "not complete JSON"),
    "empty": (lambda d: "", "not complete JSON"),
    "NaN": (lambda d: json.dumps(d).replace('"samples": 320', '"samples": NaN'), "NaN is not a number in JSON"),
    "no object": (lambda d: [1, 2], "not a result of resnet-onnx"),
    "foreign": (lambda d: {"hello": "world"}, "not a result of resnet-onnx"),
    "another kind": (lambda d: {**d, "kind": "doctor"}, "not a result of resnet-onnx"),
    "newer schema": (lambda d: {**d, "schema": 2}, "a result of schema 2, and this version reads schema 1"),
    "schema true": (lambda d: {**d, "schema": True}, "schema true"),
    "no rows": (lambda d: {**d, "results": []}, "Expected `array` of length >= 1 - at `$.results`"),
    "rows of text": (lambda d: {**d, "results": ["x"]}, "Expected `object`, got `str` - at `$.results[0]`"),
    "no model": (lambda d: {k: v for k, v in d.items() if k != "model"}, "missing required field `model`"),
    "a speed in words": (
        lambda d: with_row(d, images_per_second="fast"),
        "Expected `float | null`, got `str` - at `$.results[0].images_per_second`",
    ),
    "a negative time": (lambda d: with_row(d, raw_ns=[[-1]]), "`float` > 0.0 - at `$.results[0].raw_ns[0][0]`"),
    "an interval upside down": (
        lambda d: with_row(d, images_per_second_ci95=[2, 1]),
        "the lower first",
    ),
    "batch 0": (lambda d: with_row(d, batch=0), "Expected `int` >= 1 - at `$.results[0].batch`"),
    "nested": (lambda d: "[" * 200_000, "not a result of resnet-onnx"),
    "a huge number": (lambda d: with_row(d, samples=10**400), "Expected `int` <= 9223372036854775807"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_foreign_file_is_one_error(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, said = DAMAGE[kind]
    good = document(row(noisy(1)))
    base = saved(tmp_path / "good.json", good)
    code, out, err = run(capfd, base, saved(tmp_path / "bad.json", damage(good)))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'bad.json'}: ")
    assert said in err
    assert "Traceback" not in err


def test_a_missing_file_a_folder_bytes_and_a_pipe_are_one_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = saved(tmp_path / "good.json", document(row(noisy(1))))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("none.json", "no such file"),
        (".", "expected two of a kind"),
        ("bytes.json", "not text in UTF-8"),
        ("pipe", "a pipe"),
    ):
        code, out, err = run(capfd, base, str(tmp_path / name))
        assert (code, out) == (2, "")
        assert said in err


@pytest.mark.parametrize("tolerance", ["0", "100", "-1", "much", "nan"])
def test_a_tolerance_is_a_percentage(tolerance: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = saved(tmp_path / "good.json", document(row(noisy(1))))
    code, _, err = run(capfd, base, base, f"--tolerance={tolerance}")
    assert code == 2
    assert "--tolerance" in err


def test_what_bench_saves_is_read_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    bench = [sys.executable, "-m", "resnet_onnx", "bench", "cifar-resnet20", "--runtime", "ort-cpu", "--batch", "1"]
    subprocess.run([*bench, "--streams", "1,2", "--duration", "0.3", "--save", str(path)], check=True, timeout=300,
                   capture_output=True)  # fmt: skip
    found = read_bench(path)
    compared = compare(found, found)
    assert [one.ratio for one in compared.rows] == [1.0, 1.0]
    assert not compared.regressed
    assert compared.missing == compared.extra == compared.environment_differs == []


@pytest.mark.parametrize(("paces", "expected"), [
    ((200.0, 201.0), "slower"), ((200.0, 240.0), "inconclusive"), ((200.0, None), "slower"), ((240.0, 200.0), "slower"),
])  # fmt: skip
def test_a_pace_of_the_processor_that_explains_the_difference_is_no_verdict(paces: Any, expected: str) -> None:
    """As where another virtual machine computes on the second thread of the same core."""

    def at(pace: float | None, slices: Any) -> dict[str, Any]:
        found = document(row(slices))
        found["results"][0]["disturbance"] = {**found["results"][0]["disturbance"], "pace_us": pace}
        return found

    (one,) = compare(at(paces[0], noisy(1)), at(paces[1], [1.2 * part for part in noisy(2)])).rows
    assert one.verdict == expected
    assert any("for the same work" in note for note in one.notes) is (abs(paces[0] - (paces[1] or paces[0])) > 5)


# ---- row 15 for real ----


def chain(path: Path, layers: int) -> Path:
    """A model of so many equal layers, so that its work is known to the percent."""
    from onnx import helper
    from support.onnx_models import weights, write_model

    nodes = []
    for index in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{index}", "w"], [f"y{index}"]))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}" if index + 1 < layers else "out"]))
    return write_model(path, nodes, {"x0": ["n", 256]}, {"w": weights(256, 256)})


def measured(path: Path) -> Bench:
    saved = path.with_suffix(".json")
    command = [sys.executable, "-m", "resnet_onnx", "bench", str(path), "--runtime", "ort-cpu", "--batch", "16"]
    subprocess.run([*command, "--threads", "1", "--duration", "2", "--save", str(saved)], check=True, timeout=300,
                   capture_output=True)  # fmt: skip
    return read_bench(saved)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_runs_of_the_same_are_not_faster_or_slower(tmp_path: Path) -> None:
    path = chain(tmp_path / "chain.onnx", 40)
    found = [compare(measured(path), measured(path)).rows[0] for _ in range(40)]
    print({name: sum(one.verdict == name for one in found) for name in ("same", "inconclusive", "faster", "slower")})
    assert sum(one.verdict in ("faster", "slower") for one in found) <= 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_runs_of_5_percent_more_work_are_slower(tmp_path: Path) -> None:
    base, more = chain(tmp_path / "base.onnx", 40), chain(tmp_path / "more.onnx", 42)
    found = [compare(measured(base), measured(more), force=True).rows[0] for _ in range(10)]
    print({name: sum(one.verdict == name for one in found) for name in ("slower", "inconclusive", "same", "faster")})
    print([(one.ratio, one.ci95) for one in found])
    assert sum(one.verdict == "slower" for one in found) >= 9


def test_loadgen_and_our_own_rounds_are_different_work() -> None:
    said = {"scenario": "SingleStream", "valid": True, "reason": None}
    ours, theirs = document(row(noisy(1))), document(row(noisy(2), harness=said))
    assert comparing.different_work(typed(Bench, ours), typed(Bench, theirs)) == [
        "another harness (our own rounds, LoadGen SingleStream)"
    ]
    assert not comparing.different_work(typed(Bench, theirs), typed(Bench, theirs))
    with pytest.raises(UserError, match="another harness"):
        compare(ours, theirs)
    forced = compare(ours, theirs, force=True)
    assert len(forced.rows) == 1
    assert "another harness" in forced.different_work[0]
    assert compare(theirs, theirs).rows[0].verdict == "same"
    offline = row(noisy(3), scenario="offline", harness={**said, "scenario": "Offline"}, images_per_second_ci95=None)
    (found,) = compare(document(offline), document(offline)).rows
    assert (found.verdict, "gives one figure and no interval" in found.notes[0]) == ("inconclusive", True)


def test_rows_that_differ_in_threads_alone_are_named_apart() -> None:
    with pytest.raises(UserError, match=r"BASE has net .* threads 1 .*; NEW has net .* threads 2 "):
        compare(document(row(noisy(1), threads=1)), document(row(noisy(1), threads=2)))
