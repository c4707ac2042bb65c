"""Graphs as other exporters write them: run as ONNX Runtime runs them, or refused in one true sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.foreign_graphs import (
    LONG,
    SIDE,
    Change,
    dropout,
    flattened_by_computed_shape,
    flattened_by_if,
    input_dims,
    joined_by_computed_shape,
    noise,
    norm_in_training,
    reshaped,
    sparse_head,
    statistics_of_positions,
    without_graph_name,
    without_output_shape,
    written,
    written_out_domain,
)

from resnet_onnx import workflow
from resnet_onnx.cli.main import main
from resnet_onnx.evaluation import PictureModel
from resnet_onnx.workflow import ParityPlan, Request
from resnet_onnx.workflow.opening import profile
from runtimes import ModelSource, onnx_gate, open_runtime
from runtimes.errors import BadFeeds, BadModel, UnsupportedModel, UsageError
from runtimes.spec import check_rows

RUNTIMES = ("ort-cpu", "openvino", "reference")
PICTURES = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)


def resolved(path: Path, side: int | None = None) -> workflow.Model:
    return workflow.resolve(Request(model=str(path), image_size=side))


def scores(model: workflow.Model, runtime: str, pictures: np.ndarray = PICTURES) -> np.ndarray:
    assert model.preprocessing is not None
    with open_runtime(runtime, ModelSource(path=model.onnx, label=model.name)) as opened:
        return PictureModel(opened, model.preprocessing).scores(pictures)


def parity(model: workflow.Model, *runtimes: str) -> Any:
    return workflow.check_parity(model, ParityPlan(runtimes=runtimes or ("ort-cpu", "openvino")))


# ---- spellings


SPELLINGS: dict[str, tuple[Change, dict[str, int]]] = {
    "c01 c39 a batch of -1": (input_dims(-1, 3, SIDE, SIDE), {}),
    "c02 one sign for batch, height and width": (input_dims("?", 3, "?", "?"), {}),
    "c02 one name for batch, height and width": (input_dims("size", 3, "size", "size"), {}),
    "c03b nothing named": (input_dims(None, 3, None, None), {}),
    "c07b spatial=0 with statistics of channels": (statistics_of_positions, {"opset": 8, "ir_version": 8}),
    "c20 If": (flattened_by_if, {}),
    "c21 a sparse initialiser": (sparse_head, {}),
    "c46 an output without a shape": (without_output_shape, {}),
    "c48 a graph without a name": (without_graph_name, {}),
    "c49b a domain written out": (written_out_domain, {}),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_spelling_runs_as_onnx_runtime_runs_it(kind: str, tmp_path: Path) -> None:
    change, how = SPELLINGS[kind]
    model = resolved(written(tmp_path / "spelt.onnx", change, **how), SIDE)
    runtimes = ("ort-cpu", "openvino")
    want = scores(resolved(written(tmp_path / "plain.onnx")), "reference")
    for runtime in (*runtimes, "reference"):
        found = scores(model, runtime)
        assert found.shape == want.shape
        if "sparse" not in kind:
            np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    report = parity(model, *runtimes)
    assert report.passed, [outcome.reason for outcome in report.outcomes]
    assert workflow.batch_sizes(model) == (1, 8)


@pytest.mark.parametrize("extents", [("?", 3, "?", "?"), ("n", 3, "n", "n"), (-1, 3, -1, -1), (None, 3, None, None)])
def test_each_open_dimension_is_open_by_itself(extents: tuple[Any, ...], tmp_path: Path) -> None:
    path = written(tmp_path / "open.onnx", input_dims(*extents))
    for runtime in RUNTIMES:
        with open_runtime(runtime, ModelSource(path=path)) as opened:
            names = {extent for extent in opened.inputs[0].shape if isinstance(extent, str)}
            assert len(names) == 3
            assert opened.run({"x": np.zeros((2, 3, 8, 12), np.float32)})["y"].shape == (2, 4)
    for size in (None, 24):
        model = resolved(path, size)
        assert model.preprocessing is not None
        assert model.preprocessing.image_size == (size or 224)


# ---- the batch


def test_a_batch_that_the_graph_does_not_have_is_not_counted(tmp_path: Path) -> None:
    model = resolved(written(tmp_path / "baked.onnx", reshaped(1, -1)))  # c04
    assert "bound to 1" in model.notes[0]
    for runtime in RUNTIMES:
        together = scores(model, runtime)
        assert together.shape == (5, 4)
        np.testing.assert_array_equal(together, np.concatenate([scores(model, runtime, p[None]) for p in PICTURES]))
        with open_runtime(runtime, ModelSource(path=model.onnx)) as opened, pytest.raises(BadFeeds):
            opened.run({"x": np.zeros((2, 3, SIDE, SIDE), np.float32)})
    report = parity(model)
    assert report.passed
    assert report.pictures == 22
    assert workflow.batch_sizes(model) == (1,)
    with pytest.raises(UsageError, match="fixed batch of 1, and --batch 1,8 was given"):
        workflow.batch_sizes(model, (1, 8))
    assert str(profile(onnx_gate.check_onnx(model.onnx).inputs, (1, 8))["x"]) == ",".join(["1x3x16x16"] * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        (reshaped(1, -1), 1),
        (reshaped(1, 6), 1),
        (reshaped(2, -1), 2),
        (reshaped(4, 6), 4),
        (reshaped(-1, 6), "n"),
        (reshaped(0, -1), "n"),
        (input_dims("n", 3, SIDE, SIDE), "n"),
        (input_dims(4, 3, SIDE, SIDE), 4),
        (flattened_by_computed_shape, "n"),
        (without_output_shape, "n"),
    ],
)
def test_the_batch_that_a_graph_has(change: Change, batch: int | str, tmp_path: Path) -> None:
    checked = onnx_gate.check_onnx(written(tmp_path / "model.onnx", change))
    assert checked.inputs[0].shape[0] == batch
    assert bool(checked.notes) == (
        batch in (1, 2) or (change.__closure__ is not None and (4, 6) in [c.cell_contents for c in change.__closure__])
    )


def test_an_output_that_says_one_row_binds_a_graph_that_has_a_batch_to_nothing(tmp_path: Path) -> None:
    def says_one(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1

    model = resolved(written(tmp_path / "model.onnx", says_one))  # c05b
    assert model.inputs[0].shape[0] == "n"
    assert scores(model, "ort-cpu").shape == (5, 4)


def test_fewer_rows_than_pictures_are_found_by_running(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "joined.onnx", joined_by_computed_shape)
    with pytest.raises(BadModel, match="16 pictures came back as 1 row of output"):
        parity(resolved(path))
    assert main(["bench", str(path), "--batch", "4", "--duration", "0.1", "--runtime", "ort-cpu"]) == 2
    assert "4 pictures came back as 1 row" in capfd.readouterr().err
    for rows in (4, 8, 0):  # with several rows to a picture, or none where a detector finds nothing
        check_rows({"y": np.zeros((rows, 2)), "scale": np.array(1.0)}, 4, who="model")


# ---- training mode


@pytest.mark.parametrize("opset", [13, 18])
def test_batch_norm_in_training_mode_is_told_and_judged_alike(
    opset: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "training.onnx", norm_in_training, opset=opset)  # c08 c08b
    (note, _) = resolved(path).notes
    assert note.startswith("in training mode: BatchNormalization 'norm' normalises by the statistics of each batch")
    if opset < 14:
        return  # ONNX Runtime does not run it
    report = parity(resolved(path))
    assert report.passed, [outcome.reason for outcome in report.outcomes]
    for command in (["parity", "--runtimes", "ort-cpu"], ["bench", "--runtime", "ort-cpu", "--duration", "0.1"]):
        assert main([command[0], str(path), *command[1:], "--json"]) == 0
        out, err = capfd.readouterr()
        assert f"training: {note}" in json.loads(out)["notes"]
        assert note in err


@pytest.mark.parametrize(("change", "what"), [(dropout(training=True), "Dropout 'drop'"), (noise, "'noise'")])
def test_a_graph_that_draws_random_numbers_is_told_and_has_no_parity(change: Change, what: str, tmp_path: Path) -> None:
    model = resolved(written(tmp_path / "random.onnx", change))  # c08c
    assert what in model.notes[0]
    for runtime in ("ort-cpu", "openvino"):
        with pytest.raises(BadModel, match="draws random numbers, so that no two runs agree"):
            parity(model, runtime)


@pytest.mark.parametrize("change", [dropout(training=False), dropout(training=True, ratio=0.0)])
def test_dropout_that_drops_nothing_is_not_training(change: Change, tmp_path: Path) -> None:
    checked = onnx_gate.check_onnx(written(tmp_path / "model.onnx", change))
    assert checked.notes == ()


# ---- versions and types


def test_a_newer_file_is_refused_by_its_number(tmp_path: Path) -> None:
    newest = onnx.IR_VERSION
    path = written(tmp_path / "ir.onnx", ir_version=newest + 1)
    with pytest.raises(BadModel, match=f"has IR version {newest + 1}, at most {newest} here"):
        onnx_gate.check_onnx(path)
    path = written(tmp_path / "ir.onnx", ir_version=newest)  # c26b
    with pytest.raises(UnsupportedModel) as caught, open_runtime("ort-cpu", ModelSource(path=path)):
        pytest.skip("the installed ONNX Runtime is as new as onnx")
    assert re.search(rf"ir.onnx has IR version {newest}, at most \d+ here \(ort-cpu [\d.]+\)$", caught.value.message)


def test_float64_is_named_where_a_runtime_lacks_it(tmp_path: Path) -> None:
    path = written(tmp_path / "double.onnx", dtype=np.float64)  # c35
    with pytest.raises(UnsupportedModel, match=r"double\.onnx is in float64, for which ort-cpu has no Conv") as caught:
        open_runtime("ort-cpu", ModelSource(path=path))
    assert "float32" in (caught.value.fix or "")
    assert parity(resolved(path), "openvino").passed


# ---- cost


def test_the_gate_costs_no_more_than_a_file_deserves(tmp_path: Path) -> None:
    """A vector of 20 million elements, however it is made (c61): its elements are not written out one by one."""
    code = """
        import resource, sys
        from pathlib import Path
        from support.foreign_graphs import LONG, written
        from runtimes import onnx_arithmetic, onnx_gate, onnx_graph
        from runtimes.errors import BadModel

        folder = Path(sys.argv[1])

        def peak_mib():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        checked = onnx_gate.check_onnx(written(folder / "a.onnx"))
        onnx_graph.propagated(onnx_graph.without_weights(onnx_gate.load_model(checked)))
        for kind, make in LONG.items():
            before, model = peak_mib(), make()
            path = folder / f"{kind}.onnx"
            path.write_bytes(model.SerializeToString())
            assert path.stat().st_size < 2000
            try:
                onnx_gate.check_onnx(path)
                onnx_arithmetic.graph_precision(path)
            except BadModel:
                pass
            onnx_graph.propagated(onnx_graph.without_weights(model))
            print(kind, peak_mib() - before)
    """
    root = Path(__file__).resolve().parent
    lines = [line[8:] for line in code.splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PYTHONPATH": f"{root}:{root.parent}", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    grown = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()}
    assert list(grown) == list(LONG)
    assert all(mib < 64 for mib in grown.values()), grown
