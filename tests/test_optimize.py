"""The search for the fastest engine: who is admitted, what is decided, what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import planted_runtimes
from support.planted_runtimes import FAULTY, PlantedRuntime, SkipsBlock, SkipsWhenPrepared, Sound

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.optimization import answer as words
from resnet_onnx.optimization.admission import Admission, batches_of
from resnet_onnx.optimization.candidate import PICTURE_SHARES, Candidate, CandidateFailed, Form
from resnet_onnx.optimization.candidates import Costs, NotRaced, candidates, entries_of
from resnet_onnx.optimization.confirmation import Attempt, Confirmation
from resnet_onnx.optimization.figures import compared_with, reserve
from resnet_onnx.optimization.limits import Judgement
from resnet_onnx.optimization.optimizing import optimize_model
from resnet_onnx.optimization.original import Original
from resnet_onnx.optimization.pictures import open_pictures, portioned, shuffled
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.optimization.race import RaceOutcome, Standing
from resnet_onnx.optimization.track import RealTrack
from resnet_onnx.report import search
from resnet_onnx.results.bundle import Latency
from resnet_onnx.results.optimize import Answer, Gain, Optimize
from resnet_onnx.results.writing import encode
from resnet_onnx.workflow import Model, Request
from runtimes.errors import UsageError

BATCHES = (1, 4)


@pytest.fixture(autouse=True, scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(planted_runtimes.install(tmp_path_factory.mktemp("site-packages"))))
        yield


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    workflow.export(workflow.resolve(Request(model="cifar-resnet20", seed=3)), path)
    return workflow.resolve(Request(model=str(path)))


@pytest.fixture(scope="module")
def admission(net: Model) -> Iterator[Admission]:
    with Original(model=net) as original:
        plan = OptimizePlan(timed="device", time_budget_s=30)
        yield Admission(original=original, plan=plan, pictures=None, batches=batches_of((*BATCHES, 8)))


# ---- admission ----------------------------------------------------------------------------------------------------


REASONS = {
    "previous": "from gold",
    "drops-row": "rows of output",
    "only-batch-1": "from gold",
    "only-small-batches": "from gold",
    "one-nan": "NaN or Inf",
    "skips-block": "from gold",
    "scales-channel": "from gold",
    "drops-relu": "from gold",
    "crashes": "ValueError: nobody expects this",
}


@pytest.mark.parametrize("runtime", FAULTY, ids=lambda cls: cls.name)
def test_a_wrong_engine_is_refused_with_its_reason(runtime: type[PlantedRuntime], admission: Admission) -> None:
    verdict = admission.admit(Form(runtime.name, "fp32"))
    assert not verdict.form.admitted
    assert REASONS[runtime.name] in verdict.form.reason


def test_a_sound_engine_of_another_package_is_admitted(admission: Admission) -> None:
    verdict = admission.admit(Form(Sound.name, "fp32"))
    assert verdict.form.admitted, verdict.form.reason
    assert set(verdict.form.batches) == {1, 3, 4, 8}
    assert verdict.parity is not None
    assert verdict.parity.passed


@pytest.mark.parametrize("name", ["previous", "drops-row", "only-small-batches", "one-nan", "skips-block", "crashes"])
def test_a_wrong_engine_is_refused_in_another_precision_too(name: str, admission: Admission) -> None:
    assert not admission.admit(Form(name, "int8")).form.admitted


def test_int8_of_a_sound_engine_is_admitted_by_the_gate(admission: Admission) -> None:
    verdict = admission.admit(Form(Sound.name, "int8"))
    assert verdict.form.admitted, verdict.form.reason
    assert verdict.form.proof == "sqnr"


def test_an_engine_that_is_wrong_only_where_it_is_timed_never_takes_a_turn(admission: Admission) -> None:
    form = Form(SkipsWhenPrepared.name, "fp32")
    assert admission.admit(form).form.admitted  # asked once, it computes the network
    with RealTrack(admission=admission, sqnr_db={}) as track:
        for name, fits in ((SkipsWhenPrepared.name, False), (Sound.name, True)):
            candidate = Candidate(runtime=name, precision="fp32", batch=4, threads=1)
            if fits:
                assert track.open(candidate).turn().run_s > 0
            else:
                with pytest.raises(CandidateFailed, match="computes something else while it is measured"):
                    track.open(candidate)


# ---- pictures -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=400), st.integers(0, 5))
def test_portions_share_no_picture_and_hold_classes_alike(labels: list[int], seed: int) -> None:
    labelled = np.array(labels, np.int64)
    parts = portioned(shuffled(labelled, seed), PICTURE_SHARES)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, share in zip(parts, PICTURE_SHARES, strict=True):
        assert abs(len(part) - share * len(labels)) <= 1
        for label in set(labels):
            assert abs((labelled[part] == label).sum() - share * labels.count(label)) <= 2


def test_pictures_that_judge_are_in_no_other_part(net: Model) -> None:
    found = open_pictures(net, "digits")
    assert found.outputs is None  # random weights
    assert "random weights" in found.unjudged
    names = [{part.item_name(i) for i in range(len(part))} for part in (found.calibration, found.gate, *found.portions)]
    assert sum(map(len, names)) == len(set().union(*names))


# ---- candidates ---------------------------------------------------------------------------------------------------


def test_the_model_of_cost_orders_and_leaves_nobody_out() -> None:
    forms = [Form("ort-cpu", "fp32"), Form("openvino", "fp32"), Form("openvino", "int8")]
    cheap = Costs(multiply_adds=40_000_000, layers=60, cores=2)
    dear = Costs(multiply_adds=4_000_000_000, layers=200, decode_s=0.01, cores=2)
    found = [candidates(forms, OptimizePlan(), (1, 8), costs) for costs in (cheap, dear)]
    assert set(found[0]) == set(found[1])
    assert len(set(found[0])) == len(found[0])
    assert found[0][0].form == Form("openvino", "int8")
    assert {(each.streams, each.threads) for each in found[0]} == {(1, 2), (2, 2), (1, 1)}


def test_what_was_requested_is_what_races() -> None:
    plan = OptimizePlan(streams=(1, 3), threads=(2, 4))
    found = candidates([Form("ort-cpu", "fp32")], plan, (5,), Costs(multiply_adds=1, layers=1, cores=8))
    assert {(each.batch, each.streams, each.threads) for each in found} == {(5, 1, 2), (5, 1, 4), (5, 3, 4)}


def test_a_runtime_that_is_not_here_is_a_row() -> None:
    found = entries_of(OptimizePlan(), precision="fp32")
    assert Form("ort-cpu", "int8") in found.forms
    assert "reference" not in {form.runtime for form in found.forms}
    gone = {each.runtime: each.reason for each in found.not_raced if not each.precision}
    assert set(gone) >= {"ort-cuda", "tensorrt"} or not gone


# ---- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_drop": 1.0}, "--data D"),
        ({"goal": "cost"}, "--price"),
        ({"arrivals": "poisson"}, "--p99"),
        ({"arrivals": "poisson", "p99_ms": 5.0, "timed": "pictures"}, "decod"),
        ({"precisions": ("fp32", "fp8")}, "fp8"),
        ({"precisions": ()}, "precisions are"),
        ({"p99_ms": 0.0}, "--p99"),
        ({"time_budget_s": 0.0}, "time budget"),
        ({"time_budget_s": float("nan")}, "time budget"),
        ({"batches": (0,)}, "batch"),
        ({"goal": "fame"}, "goal"),
        ({"data": "digits", "max_drop": 101.0}, "--max-drop"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        OptimizePlan(**settings)
    assert said in f"{refused.value.message} {refused.value.fix}"


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        (["--max-drop", "1"], 2, "usage"),
        (["--runtimes", "tensorrt"], 3, "runtime-unavailable"),
        (["--runtimes", "nobody"], 2, "usage"),
        (["--runtimes", ","], 2, "usage"),
        (["--runtimes", "all,ort-cpu"], 2, "usage"),
        (["--precisions", "fp8"], 2, "usage"),
        (["--batch", "0"], 2, None),
        (["--time-budget", "nan"], 2, None),
        (["--data", "digits", "--max-drop", "1"], 2, "usage"),  # random weights
        (["--data", "nowhere.zip"], 2, "bad-data"),
        (["--scope", "pictures"], 2, None),
    ],
)
def test_usage_errors(line: list[str], code: int, kind: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    if line[-1] == "tensorrt":
        from runtimes import registry

        if registry.probe("tensorrt").available:
            pytest.skip("TensorRT is available here")
    assert main(["optimize", "cifar-resnet20", "--time-budget", "0.1", *line, "--json"]) == code
    error = json.loads(capfd.readouterr().out)["error"]
    assert kind in (None, error["kind"])
    assert error["message"]


# ---- the budget ----


def test_what_follows_the_confirmation_is_planned_for_by_what_admission_took() -> None:
    plan = OptimizePlan()
    form, torch, compiled = Form("ort-cpu", "fp32"), Form("torch", "fp32"), Form("torch-compile", "fp32")
    quick, slow = (reserve(plan, {form: seconds}) for seconds in (4.0, 40.0))
    assert slow.total_s > quick.total_s > 0
    assert reserve(replace(plan, out=Path("fast")), {form: 40.0}).bundle_s == 40.0  # its proof is parity again
    assert reserve(plan, {form: 40.0, compiled: 90.0}).gains_s > slow.gains_s
    candidate = Candidate(runtime="ort-cpu", precision="fp32", batch=4, threads=1)
    beside = compared_with(candidate, {form: True, torch: True, compiled: True}, left_s=-5.0)
    assert [each.runtime for each in beside if isinstance(each, Candidate)] == ["torch"]


# ---- the whole way ------------------------------------------------------------------------------------------------


def test_an_engine_that_is_faster_because_it_skips_a_block_does_not_win(net: Model) -> None:
    plan = OptimizePlan(
        runtimes=(SkipsBlock.name, Sound.name), precisions=("fp32",), timed="device", batches=(4,), streams=(1,),
        threads=(1,), time_budget_s=12,
    )  # fmt: skip
    found = optimize_model(net, plan)
    assert found.answer is not None
    assert (found.answer.runtime, found.answer.top1_drop) == (Sound.name, None)
    assert "accuracy not judged" in found.answer.sentence
    states = {row.runtime: row.state for row in found.candidates}
    assert states == {Sound.name: "confirmed", SkipsBlock.name: "refused"}
    assert [(limit.name, limit.verdict) for limit in found.limits] == [("agreement", "met")]
    assert found.answer.images_per_second > 0
    torch_gain = next(gain for gain in found.answer.gains if gain.runtime == "torch")
    assert torch_gain.ratio is not None, torch_gain.reason
    assert [row.state for row in _read_again(found).candidates] == list(states.values())
    page = _page_of(found)
    assert "Which engine?" in page
    assert "refused" in page


def test_no_engine_that_keeps_the_limits_names_the_nearest(net: Model, capfd: pytest.CaptureFixture[str]) -> None:
    line = ("--runtimes", "ort-cpu", "--precisions", "fp32", "--batch", "1", "--streams", "1", "--threads", "1",
            "--scope", "device", "--time-budget", "0.1", "--p99", "0.0001")  # fmt: skip
    assert main(["optimize", str(net.onnx), *line, "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["answer"] is None
    assert "ort-cpu fp32" in found["nearest"]
    assert found["bundle"] is None
    assert {limit["verdict"] for limit in found["limits"]} <= {"broken", "undecided"}
    assert main(["optimize", str(net.onnx), *line]) == 1
    assert "The nearest: ort-cpu fp32" in capfd.readouterr().out


def test_a_dry_run_measures_nothing(net: Model, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", str(net.onnx), "--dry-run", "--runtimes", "ort-cpu", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["expected_s"] > 0
    assert {row["runtime"] for row in found["candidates"]} == {"ort-cpu"}
    speeds = [row["expected_images_per_second"] for row in found["candidates"]]
    assert speeds[0] == max(speeds)


MOMENTS = (1, 3, 6)
"""Finished steps after which a search is killed, again and again: as it admits, confirms, and writes its bundle."""


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_where_it_was(net: Model, tmp_path: Path) -> None:
    journals = Path(os.environ["RESNET_ONNX_CACHE"]) / "searches"
    line = [
        sys.executable, "-m", "resnet_onnx", "optimize", str(net.onnx), "--runtimes", "ort-cpu", "--precisions", "fp32",
        "--batch", "4", "--streams", "1", "--threads", "1", "--scope", "device", "--time-budget", "0.2", "--json",
    ]  # fmt: skip
    line += ["--out", str(tmp_path / "fast"), "--resume"]
    before = set(journals.glob("*.jsonl"))
    sound: list[str] = []
    for moment in MOMENTS:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = _journal_of(process, journals, before, steps=moment)
        below = psutil.Process(process.pid).children(recursive=True)
        assert below, "the work is done in a process of its own"
        process.kill()
        process.wait()
        assert not psutil.wait_procs(below, timeout=10)[1], "what it had started ends with it"
        sound = _sound(journal, sound)
        assert len(sound) > moment
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert any(f"{len(sound) - 1} finished steps were taken over" in note for note in found["notes"])
    steps = [json.loads(text) for text in _sound(journal, sound)[1:]]
    assert len({step["step"] for step in steps}) == len(steps)
    assert Path(found["bundle"]).is_dir()
    recorded = next(step["result"] for step in steps if step["step"] == "reference")
    assert found["answer"]["over_reference_ci95"] == recorded["over_reference_ci95"]


def _sound(journal: Path, before: list[str]) -> list[str]:
    """Returns the whole lines of a journal, after making sure that what was finished before was not done again."""
    found = [text for text in journal.read_text().splitlines() if _is_json(text)]
    assert found[: len(before)] == before
    return found


def _journal_of(process: subprocess.Popen[bytes], journals: Path, before: set[Path], *, steps: int) -> Path:
    """Waits until the journal of a search has so many finished steps."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        for path in set(journals.glob("*.jsonl")) - before:
            if len(path.read_text().splitlines()) > steps:
                return path
        time.sleep(0.05)
    raise AssertionError(f"no journal with {steps} steps; the command ended with {process.poll()}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read_again(found: Optimize) -> Optimize:
    read = msgspec.json.decode(encode(found), type=Optimize)
    assert read == msgspec.json.decode(encode(read), type=Optimize)
    return read


def _page_of(found: Optimize) -> str:
    saved = workflow.saved_result(workflow.resolve(Request(model="cifar-resnet20")), found)
    return " ".join(str(section) for section in search.sections(saved))


# ---- in words -----------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = (
    Candidate(runtime="openvino", precision=precision, batch=16, streams=streams, threads=2)
    for precision, streams in (("int8", 1), ("int8", 2), ("fp32", 1))
)


def standing(candidate: Candidate, state: Any, ratio: float | None, reason: str = "") -> Standing:
    return Standing(
        candidate=candidate, state=state, reason=reason, ratio=ratio, ends=None, blocks=9, seconds=3.0, limits=()
    )


def test_rows_have_the_state_that_became_of_them_and_about_what_speed() -> None:
    missed = Judgement(name="top1_drop", limit=0.005, value=0.004, ends=(-0.001, 0.009), measured=100, more=50)
    attempts = (
        Attempt(candidate=FIRST, error=0.01, limits=(missed,), images_per_second=1000.0, p50_s=0.016),
        Attempt(candidate=THIRD, error=0.005, images_per_second=400.0, p50_s=0.04),
    )
    outcome = RaceOutcome(
        order=(FIRST, SECOND, THIRD), ties=(FIRST, SECOND), path=(), decided=True,
        standings=(
            standing(FIRST, "best", 1.0), standing(SECOND, "tied", 0.99, "within 2 %"),
            standing(THIRD, "eliminated", 0.5, "0.5 of the speed"),
        ),
    )  # fmt: skip
    skipped = {SECOND: "openvino int8: drop"}
    confirmation = Confirmation(confirmed=attempts[1], attempts=attempts, skipped=skipped)
    away = [NotRaced(runtime="tensorrt", precision="", reason="no driver")]
    rows = words.candidate_rows(outcome, confirmation, [], away, [Form("torch", "bf16")])
    assert [(row.name, row.state) for row in rows] == [
        ("openvino fp32 · 16 · 1 · 2", "confirmed"), ("openvino int8 · 16 · 1 · 2", "eliminated"),
        ("openvino int8 · 16 · 2 · 2", "eliminated"), ("torch bf16", "eliminated"), ("tensorrt", "unavailable"),
    ]  # fmt: skip
    assert rows[1].reason == "not confirmed: drop 0.400 points (-0.100 – 0.900), the limit is 0.5 points"
    answer = Answer(
        sentence="", runtime="openvino", precision="fp32", batch=16, streams=1, threads=2, images_per_second=400.0,
        images_per_second_ci95=(396.0, 404.0), latency_ms=Latency(p50=40.0, p99=44.0), top1_drop=0.0,
        top1_drop_ci95=(0.0, 0.0), over_reference=8.0, gains=[Gain(runtime="torch", ratio=2.04)], ceiling_fraction=0.71,
    )  # fmt: skip
    speeds = [row.images_per_second for row in words.with_speeds(rows, answer)]
    assert speeds == [400.0, pytest.approx(800.0), pytest.approx(792.0), None, None]
    assert words.with_speeds(rows, answer)[1].over_reference == pytest.approx(16.0)
    said = words.sentence(answer, THIRD, OptimizePlan(data="digits"), "pictures")
    assert said == (
        "openvino fp32, batch 16, 1 stream, 2 threads: 400 img/s (396–404) from picture files, p99 44.0 ms a run "
        "(queueing not included), no drop of top-1: it passes parity. 2.0× torch, 71 % of this machine's fp32 peak."
    )


def test_a_judgement_becomes_a_limit_in_the_units_of_the_options() -> None:
    found = [
        words.limit_record(Judgement(name=name, limit=limit, value=value, ends=ends))
        for name, limit, value, ends in (
            ("p99", 0.05, 0.04, (0.03, 0.045)),
            ("top1_drop", 0.005, 0.006, (0.0055, 0.01)),
            ("images_per_second", 100.0, 120.0, (90.0, 150.0)),
            ("p99", 0.05, None, (None, None)),
        )
    ]
    assert [(each.name, each.limit, each.verdict) for each in found] == [
        ("p99", 50.0, "met"), ("top1_drop", 0.5, "broken"), ("throughput", 100.0, "undecided"),
        ("p99", 50.0, "undecided"),
    ]  # fmt: skip
    assert found[1].ci95 == pytest.approx((0.55, 1.0))
    assert found[3].ci95 is None
