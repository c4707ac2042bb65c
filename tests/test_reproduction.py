"""The paper's experiments: the degradation experiment from training to verdict, and table 1."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from support.waiting import HANG_S, wait_for_path

from resnet_onnx.cli.main import main
from resnet_onnx.report.words import counted
from resnet_onnx.reproduction import degradation, table1
from resnet_onnx.reproduction.degradation import conclude, variants
from resnet_onnx.reproduction.forecast import Forecast, duration
from resnet_onnx.reproduction.predictions import PredictionCache, Predictions
from resnet_onnx.reproduction.significance import error_interval, paired_difference
from resnet_onnx.results.reproduce import Degradation, DepthComparison
from resnet_onnx.results.writing import encode
from resnet_onnx.training.recipes import lookup_recipe
from runtimes.errors import BadData, UsageError

SMALL = ("reproduce", "degradation", "--data", "digits", "--depths", "8,14", "--epochs", "1", "--threads", "1")


def run_json(capfd: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return code, document


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment on digits, done."""
    out = tmp_path_factory.mktemp("experiment")
    assert main([*SMALL, "--out", str(out), "--no-bench", "--quiet"]) == 0
    return out


# ---- judging ---------------------------------------------------------------------------------------------------------


def predictions(*runs: tuple[int, bool]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.concatenate([np.full(count, right) for count, right in runs])


compared = functools.partial(paired_difference, kind="plain", pictures_of="test", depths=(20, 56))


def test_a_deeper_net_that_loses_pictures_is_worse_by_that_many() -> None:
    shallow = predictions((1000, True))
    deep = predictions((900, True), (100, False))
    found = compared(shallow, deep)
    assert found.outcome == "worse"
    assert found.difference == pytest.approx(0.1)
    assert found.ci95 == pytest.approx((0.1 - 0.0187, 0.1 + 0.0187), abs=5e-4)  # 1.96 √(0.1 · 0.9 / 1000)
    assert compared(deep, shallow).outcome == "better"


def test_few_pictures_that_differ_decide_nothing() -> None:
    # Of the pictures on which one alone is right, 5 are lost and 2 won.
    shallow, deep = predictions((5, True), (2, False), (993, True)), predictions((5, False), (2, True), (993, True))
    found = compared(shallow, deep)
    assert found.outcome == "undecided"
    assert found.p_value == pytest.approx(stats.binomtest(5, 7).pvalue)
    assert found.ci95[0] < 0 < found.ci95[1]


def test_the_same_predictions_are_undecided() -> None:
    same = predictions((30, True), (40, False))
    found = compared(same, same)
    assert (found.outcome, found.difference, found.p_value) == ("undecided", 0.0, 1.0)
    assert found.ci95[0] == -found.ci95[1] != 0


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    dice = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        difficulty = dice.random(300)
        shallow, deep = difficulty < 0.7 + 0.2 * dice.random(300), difficulty < 0.66 + 0.2 * dice.random(300)
        found = compared(shallow, deep)
        covered += found.ci95[0] <= 0.04 <= found.ci95[1]
    assert 0.93 * 400 <= covered < 0.99 * 400


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_a_decision_needs_test_and_interval_and_is_mirrored(pairs: list[tuple[bool, bool]]) -> None:
    shallow, deep = (np.array(column, dtype=np.bool_) for column in zip(*pairs, strict=True))
    found, mirrored = compared(shallow, deep), compared(deep, shallow)
    assert (found.outcome != "undecided") == (found.p_value <= 0.05 and not found.ci95[0] <= 0 <= found.ci95[1])
    assert found.difference == pytest.approx(-mirrored.difference)
    opposite = {"worse": "better", "better": "worse", "undecided": "undecided"}
    assert mirrored.outcome == opposite[found.outcome]
    assert found.ci95[0] - 1e-9 <= found.difference <= found.ci95[1] + 1e-9


def test_predictions_about_different_pictures_are_not_compared() -> None:
    with pytest.raises(ValueError, match="can't be compared"):
        compared(predictions((3, True)), predictions((4, True)))


def test_the_interval_of_an_error_holds_it() -> None:
    low, high = error_interval(predictions((90, True), (10, False)))
    assert 0.05 < low < 0.1 < high < 0.18


def comparison(kind: str, outcome: str, difference: float) -> DepthComparison:
    return DepthComparison(
        kind=kind,
        pictures_of="training",
        shallow=20,
        deep=56,
        shallow_error=0.1,
        deep_error=0.1 + difference,
        difference=difference,
        ci95=(difference - 0.01, difference + 0.01),
        p_value=0.001,
        outcome=outcome,
        pictures=1000,
    )


@pytest.mark.parametrize(
    ("plain", "residual", "expected"),
    [
        ("worse", "better", True),
        ("worse", "undecided", None),
        ("undecided", "better", None),
        ("undecided", "undecided", None),
        ("better", "better", False),
        ("better", "undecided", False),
        ("worse", "worse", False),
        ("undecided", "worse", False),
    ],
)
def test_the_claim_needs_both_halves(plain: str, residual: str, expected: bool | None) -> None:
    reproduced, verdict = conclude([comparison("plain", plain, 0.03), comparison("residual", residual, -0.02)])
    assert reproduced is expected
    assert "plain 56 has 13.00 % training error, plain 20 has 10.00 %" in verdict
    assert "-2.00 points, 95 % interval -3.00 to -1.00" in verdict


# ---- what is compared ------------------------------------------------------------------------------------------------


def test_depths_name_a_plain_and_a_residual_net_each() -> None:
    assert [c.entry.name for c in variants([56, 20, 20])] == [
        "cifar-plain20", "cifar-resnet20", "cifar-plain56", "cifar-resnet56",
    ]  # fmt: skip
    assert [c.entry.name for c in variants([18, 34])] == ["plain18", "resnet18", "plain34", "resnet34"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--depths", "20"), "has nothing to be compared with"),
        (("--depths", "18,20"), "two families"),
        (("--depths", "20,57"), "6n+2"),
        (("--recipe", "nosuch"), "no recipe 'nosuch'"),
        (("--runtime", "nosuch"), "nosuch"),
    ],
)
def test_a_mistake_is_told_before_any_work(line: tuple[str, ...], message: str, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    code, document = run_json(capfd, "reproduce", "degradation", "--out", str(out), *line)
    assert code == 2
    assert message in document["error"]["message"]
    assert not out.exists()


def test_an_experiment_that_holds_pictures_out_is_refused(tmp_path: Path) -> None:
    data, test = degradation.experiment_data("digits", 0)
    assert (len(data.train), data.validation, len(test)) == (1433, None, 364)
    recipe = lookup_recipe("digits")
    with pytest.raises(UsageError, match=r"recipe: validation is 0\.1"):
        degradation.DegradationPlan(
            variants=variants([8, 14]), spec="digits", data=data, test=test, recipe=recipe, out=tmp_path
        )


# ---- the experiment --------------------------------------------------------------------------------------------------


def test_the_experiment_leaves_figure_numbers_and_verdict(finished: Path, capfd: Any) -> None:
    code, document = run_json(capfd, *SMALL, "--out", str(finished), "--no-bench")
    assert code == 0
    assert (document["schema"], document["kind"], document["experiment"]) == (1, "reproduce", "degradation")
    assert json.loads(encode(msgspec.json.decode(json.dumps(document), type=Degradation))) == document
    assert [row["model"] for row in document["rows"]] == [
        "cifar-plain8", "cifar-resnet8", "cifar-plain14", "cifar-resnet14",
    ]  # fmt: skip
    assert document["recipe"]["validation"] == 0  # nothing is chosen, so nothing is held out
    with (finished / "degradation.csv").open() as file:
        lines = list(csv.DictReader(file))
    for row, line in zip(document["rows"], lines, strict=True):
        assert row["model"] == line["model"]
        assert row["epochs"] == int(line["epoch"]) == 1
        assert row["steps"] == int(line["step"]) == 1433 // 32
        assert row["test_error"] == pytest.approx(float(line["test_error"]))
        assert row["training_error_ci95"][0] < row["training_error"] < row["training_error_ci95"][1]
    with Image.open(document["plot"]) as figure:
        assert figure.format == "PNG"
        assert figure.width > 1000
    found = {(c["kind"], c["pictures_of"]): c for c in document["comparisons"]}
    plain = found["plain", "training"]
    assert plain["pictures"] == 1433
    assert plain["shallow_error"] == document["rows"][0]["training_error"]
    assert plain["deep_error"] == document["rows"][2]["training_error"]
    assert found["residual", "test"]["pictures"] == 364
    assert "plain 14 has" in document["verdict"]
    saved = json.loads((finished / "degradation.json").read_text())
    assert saved["verdict"] == document["verdict"]


def test_its_training_error_is_that_of_the_last_checkpoint(finished: Path, capfd: Any) -> None:
    document = json.loads((finished / "degradation.json").read_text())
    row = document["rows"][1]
    code, found = run_json(capfd, "evaluate", row["checkpoint"], "--data", "digits", "--runtime", "torch")
    assert code == 0
    assert found["top1"] == pytest.approx(1 - row["test_error"], abs=1.5 / 364)


def test_another_schedule_does_not_mix_with_what_is_there(finished: Path, capfd: Any) -> None:
    line = [part if part != "1" else "2" for part in SMALL[:-2]]
    code, document = run_json(capfd, *line, "--out", str(finished), "--no-bench")
    assert code == 2
    assert "epochs was 1, now 2" in document["error"]["message"]


def test_a_net_trained_outside_the_experiment_is_refused(tmp_path: Path, capfd: Any) -> None:
    line = ("--data", "digits", "--epochs", "1", "--threads", "1")
    trained = tmp_path / "cifar-plain8"
    from resnet_onnx.training.loop import train
    from resnet_onnx.training.plan import TrainingPlan

    data, _ = degradation.experiment_data("digits", 0)
    recipe = lookup_recipe("digits").override(epochs=1, validation=0.0)
    train(TrainingPlan(entry=variants([8, 14])[0].entry, data=data, recipe=recipe, out=trained, threads=1))
    code, document = run_json(
        capfd, "reproduce", "degradation", *line, "--depths", "8,14", "--out", str(tmp_path), "--no-bench"
    )
    assert code == 2
    assert "outside this experiment" in document["error"]["message"]


@pytest.mark.slow
def test_an_interrupted_experiment_goes_on_to_the_same_numbers(finished: Path, tmp_path: Path, capfd: Any) -> None:
    line = [sys.executable, "-m", "resnet_onnx", *SMALL, "--out", str(tmp_path), "--no-bench", "--quiet"]
    # Ctrl-C in the second network, then a kill in the third.
    for ending, finished_nets in ((signal.SIGINT, 1), (signal.SIGKILL, 2)):
        program = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        names = ["cifar-plain8", "cifar-resnet8", "cifar-plain14", "cifar-resnet14"]
        try:
            wait_for_path(tmp_path / names[finished_nets], program)
            os.kill(program.pid, ending)
            assert program.wait(timeout=HANG_S) == (130 if ending == signal.SIGINT else -signal.SIGKILL)
        finally:
            program.kill()
            program.communicate()
    written = (tmp_path / "cifar-plain8" / "last" / "checkpoint.json").stat().st_mtime_ns
    code, document = run_json(capfd, *SMALL, "--out", str(tmp_path), "--no-bench")
    assert code == 0
    assert (tmp_path / "cifar-plain8" / "last" / "checkpoint.json").stat().st_mtime_ns == written
    whole = json.loads((finished / "degradation.json").read_text())
    for ours, theirs in zip(document["rows"], whole["rows"], strict=True):
        for name in ("model", "training_error", "training_loss", "test_error", "test_loss"):
            assert ours[name] == theirs[name], name
    assert document["verdict"] == whole["verdict"]


@pytest.mark.slow
def test_the_shortcut_has_a_price_on_each_runtime(finished: Path, capfd: Any) -> None:
    code, document = run_json(capfd, *SMALL, "--out", str(finished), "--runtime", "ort-cpu,openvino")
    assert code == 0
    costs = document["shortcut_cost"]
    assert {(c["depth"], c["runtime"], c["batch"]) for c in costs} == {
        (depth, runtime, batch) for depth in (8, 14) for runtime in ("ort-cpu", "openvino") for batch in (1, 64)
    }
    for cost in costs:
        assert cost["ratio"] == pytest.approx(cost["residual_images_per_second"] / cost["plain_images_per_second"])
        if cost["ci95"] is not None:
            assert cost["ci95"][0] <= cost["ratio"] <= cost["ci95"][1]
    assert (finished / "cifar-resnet14.onnx").is_file()


# ---- forecast and predictions ----------------------------------------------------------------------------------------


def test_the_papers_recipe_starts_slowly_where_one_net_is_110_layers_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []

    def instead(plan: Any, **options: Any) -> Any:
        plans.append(plan)
        raise BadData("far enough")

    monkeypatch.setattr(degradation, "run", instead)
    for depths in ("20,56", "20,110"):
        line = ("reproduce", "degradation", "--recipe", "cifar-paper", "--depths", depths, "--no-bench")
        assert main([*line, "--out", str(tmp_path / depths)]) == 2
    assert [plan.recipe.start_steps for plan in plans] == [0, 400]


def test_the_time_left_scales_with_what_each_net_computes() -> None:
    entries = [variant.entry for variant in variants([20, 56])]
    forecast = Forecast(entries=entries, epochs=10)
    assert forecast.seconds_left() is None
    forecast.record_epoch("cifar-plain20", {"epoch": 1, "seconds": 9.0, "test_seconds": 1.0})
    first = forecast.seconds_left()
    assert first is not None
    # 9 epochs of plain20, 10 of resnet20, and 20 of nets with three times the work.
    assert first == pytest.approx(10 * (9 + 10 + 20 * 125.49 / 40.55), rel=0.02)
    for name in ("cifar-plain20", "cifar-resnet20", "cifar-plain56", "cifar-resnet56"):
        forecast.record_epoch(name, {"epoch": 10, "seconds": 9.0, "test_seconds": 1.0})
    assert forecast.seconds_left() == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3600, "60 min"), (7380, "2 h 03 min")]
)
def test_a_duration_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_predictions_are_kept_for_the_same_weights_only(finished: Path, tmp_path: Path) -> None:
    given = Predictions(correct=np.array([True, False, True, True, False, True, True, True, True]), loss=0.5)
    path = tmp_path / "answers.json"
    last = finished / "cifar-plain8" / "last"
    PredictionCache(last, path).put("some pictures", given)
    back = PredictionCache(last, path).get("some pictures")
    assert back is not None
    assert back.correct.tolist() == given.correct.tolist()
    assert back.loss == 0.5
    assert PredictionCache(last, path).get("others") is None
    assert PredictionCache(finished / "cifar-resnet8" / "last", path).get("some pictures") is None
    path.write_text(path.read_text()[:40])
    assert PredictionCache(last, path).get("some pictures") is None


# ---- table 1 ---------------------------------------------------------------------------------------------------------


def test_table_1_comes_out_as_printed(capfd: Any) -> None:
    code, document = run_json(capfd, "reproduce", "table1")
    assert code == 0
    assert document["agrees"] is True
    rows = {row["model"]: row for row in document["rows"]}
    assert set(rows) == set(table1.NETWORKS)
    assert rows["resnet152-v1"]["layers"] == 152
    assert rows["resnet152-v1"]["parameters"] == 60_192_808
    assert [(s["output"][0], s["convolutions"]) for s in rows["resnet101-v1"]["stages"]] == [
        (112, 1), (56, 9), (28, 12), (14, 69), (7, 9),
    ]  # fmt: skip
    assert sum(s["multiply_adds"] for s in rows["resnet50-v1"]["stages"]) == rows["resnet50-v1"]["multiply_adds"] - (
        2048 * 1000
    )
    assert rows["resnet50-v1"]["difference"] == pytest.approx(3.858 / 3.8 - 1, abs=2e-4)
    assert rows["vgg19"]["printed_multiply_adds_g"] == 19.6
    assert rows["plain18"]["printed_multiply_adds_g"] is None


def test_a_network_unlike_the_printed_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table1._PRINTED_CONVOLUTIONS, "resnet34", (1, 6, 8, 11, 6))
    assert table1.conclude(table1.table1()) == "Counted otherwise than printed: resnet34 in stages."


def test_table_1_takes_no_options_of_a_training(capfd: Any) -> None:
    code, document = run_json(capfd, "reproduce", "table1", "--epochs", "3", "--seed", "0")
    assert code == 2
    assert "--epochs, --seed was given" in document["error"]["message"]


def test_one_family_of_depths_only() -> None:
    with pytest.raises(UsageError, match="two families"):
        variants([34, 56])


def test_table1_refuses_every_option_that_it_would_ignore(capfd: Any) -> None:
    code, document = run_json(capfd, "reproduce", "table1", "--runtimes", "ort-cpu", "--no-bench")
    assert code == 2
    assert "--no-bench" in document["error"]["message"]
    assert "--runtime" in document["error"]["message"]
    assert "--json" not in document["error"]["message"]


def test_one_epoch_is_told_in_the_singular(finished: Path, capfd: Any) -> None:
    assert main([*SMALL, "--out", str(finished), "--no-bench"]) == 0
    told = capfd.readouterr().err
    assert "recipe digits: 1 epoch, batch 32, seed 0" in told
    assert "1 epochs" not in told
    assert (counted(1, "step"), counted(0, "step"), counted(1200, "step")) == ("1 step", "0 steps", "1,200 steps")


# ---- the shortcut options --------------------------------------------------------------------------------------------


def test_the_shortcut_options_are_compared_at_one_depth(tmp_path: Path, capfd: Any) -> None:
    line = ("reproduce", "shortcuts", "--data", "digits", "--depths", "8", "--epochs", "1", "--threads", "1")
    code, found = run_json(capfd, *line, "--out", str(tmp_path))
    assert code == 0
    assert [row["kind"] for row in found["rows"]] == ["A", "B", "C"]
    parameters = [row["parameters"] for row in found["rows"]]
    assert parameters == sorted(set(parameters))  # each option has more than the one before
    pairs = [(each["pictures_of"], each["base"], each["other"]) for each in found["comparisons"]]
    assert pairs == [(which, *pair) for which in ("training", "test") for pair in ("AB", "AC", "BC")]
    errors = {row["kind"]: row["test_error"] for row in found["rows"]}
    for each in found["comparisons"][3:]:
        assert each["difference"] == pytest.approx(errors[each["other"]] - errors[each["base"]])
    assert "table 3" in found["verdict"]
    code, again = run_json(capfd, *line, "--out", str(tmp_path))
    assert (code, again["rows"], again["verdict"]) == (0, found["rows"], found["verdict"])


def test_shortcut_options_of_two_depths_are_refused(capfd: Any) -> None:
    code, found = run_json(capfd, "reproduce", "shortcuts", "--depths", "8,14")
    assert code == 2
    assert "at one depth, not at 8, 14" in found["error"]["message"]
    assert found["error"]["fix"] == "--depths 8"
