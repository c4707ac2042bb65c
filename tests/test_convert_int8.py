"""int8: where the pairs stand, ranges, the portable form on every runtime, and weights that must not be ruined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import foreign_forms, precision_models
from support.precision_models import NET
from support.quantised_models import observed, outputs, planned, quantised, sqnr_db

from converters import calibration, graph, int8
from converters.calibration import METHODS, Histogram
from converters.graph import Graph
from runtimes import onnx_gate
from runtimes.errors import UnsupportedModel, UsageError


class TestPlacement:
    def test_pairs_stand_after_relu_and_on_both_inputs_of_the_addition(self, tmp_path: Path) -> None:
        plan = planned(precision_models.residual(tmp_path / "net.onnx"))
        # f is what flattening made of g, so that both have one scale; c1 and c2 feed only their ReLU.
        assert plan.tensors == ("x", "r1", "p1", "r2", "c3", "r3", "g", "f")
        assert plan.observed == ("x", "r1", "r2", "c3", "r3", "g")
        assert plan.layers == ("conv1", "block.conv1", "block.conv2", "fc")

    def test_one_pair_per_tensor_signed_bytes_and_float_bias(self, tmp_path: Path) -> None:
        found = Graph(onnx.load(quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)))
        pairs = [node for node in found.proto.node if node.op_type == "QuantizeLinear"]
        assert len(pairs) == len({node.input[0] for node in pairs}) == 8
        for node in pairs:
            zero = found.array(node.input[2])
            assert zero is not None
            assert (zero.dtype, zero.shape, int(zero)) == (np.int8, (), 0)
        for node in found.proto.node:
            if node.op_type in int8.PRODUCTS:
                bias = found.array(node.input[2])
                assert bias is not None
                assert bias.dtype == np.float32
                weight = found.producer[node.input[1]]
                scale = found.array(weight.input[1])
                assert scale is not None
                assert scale.shape == (precision_models.CLASSES if node.name == "fc" else precision_models.CHANNELS,)

    def test_what_moves_values_has_the_scale_of_what_it_moves(self, tmp_path: Path) -> None:
        found = Graph(onnx.load(quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)))
        scale = {n.input[0]: n.input[1] for n in found.proto.node if n.op_type == "QuantizeLinear"}
        assert scale["r1"] == scale["p1"]
        assert scale["g"] == scale["f"]
        assert scale["r2"] != scale["c3"]

    def test_batch_norm_of_foreign_models_is_folded(self, tmp_path: Path) -> None:
        path = precision_models.residual(tmp_path / "net.onnx", opset=11, batch_norm=True)
        want = outputs(path)
        model = int8.prepared(graph.load(onnx_gate.check_onnx(path)), what="net")
        assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
        graph.write(tmp_path / "folded.onnx", model, {})
        np.testing.assert_allclose(outputs(tmp_path / "folded.onnx"), want, rtol=1e-4, atol=1e-5)
        assert sqnr_db(want, outputs(quantised(path, tmp_path))) > 25

    @pytest.mark.parametrize("form", foreign_forms.FORMS)
    def test_a_network_is_quantised_in_whatever_form_it_is_written(self, tmp_path: Path, form: str) -> None:
        want = outputs(precision_models.residual(tmp_path / "plain.onnx"))
        foreign = foreign_forms.write(tmp_path / "net.onnx", form)
        kept = int8.kept_anyway(int8.prepared(graph.load(onnx_gate.check_onnx(foreign)), what="net"))
        reason = "its input comes out of branch (If), whose other branch calibration may not see"
        assert kept == ({"fc": reason} if form == "If" else {})
        plan = planned(foreign, keep_fp32=kept)
        assert len(plan.layers) == 4 - len(kept)
        path = quantised(foreign, tmp_path, keep_fp32=kept)
        assert sqnr_db(want, outputs(path)) > 25
        whole = [
            t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
        ]
        assert len(whole) == len(plan.layers)

    def test_kept_layers_stay_in_float32_and_the_rest_does_not(self, tmp_path: Path) -> None:
        path = precision_models.residual(tmp_path / "net.onnx")
        found = Graph(onnx.load(quantised(path, tmp_path, keep_fp32={"conv1", "fc"})))
        by_name = {node.name: node for node in found.proto.node}
        assert found.array(by_name["conv1"].input[1]) is not None
        assert found.array(by_name["fc"].input[1]) is not None
        assert found.array(by_name["block.conv1"].input[1]) is None
        assert by_name["conv1"].input[0] == "x"
        with pytest.raises(UsageError, match="every layer was kept"):
            planned(path, keep_fp32={"conv1", "block.conv1", "block.conv2", "fc"})

    def test_a_quantised_model_is_refused(self, tmp_path: Path) -> None:
        path = quantised(precision_models.residual(tmp_path / "net.onnx"), tmp_path)
        with pytest.raises(UnsupportedModel, match="quantised already"):
            planned(path)


class TestNumbers:
    @pytest.mark.parametrize("runtime", ["ort-cpu", "openvino"])
    def test_the_portable_file_is_near_float32_on_every_runtime(self, tmp_path: Path, runtime: str) -> None:
        path = precision_models.residual(tmp_path / "net.onnx")
        ratio = sqnr_db(outputs(path), outputs(quantised(path, tmp_path), runtime))
        assert 27 < ratio < 50

    def test_one_huge_channel_ruins_the_others_with_a_scale_per_tensor_only(self, tmp_path: Path) -> None:
        path = precision_models.residual(tmp_path / "net.onnx", huge_channel=1e4)
        plan = planned(path)
        node = next(n for n in plan.model.graph.node if n.name == "block.conv1")
        weight = Graph(plan.model).array("w2")
        assert weight is not None
        assert int8.weight_sqnr_db(node, weight) > 35
        assert int8.weight_sqnr_db(node, weight, per_channel=False) < 1

    def test_correcting_biases_takes_back_a_shift(self, tmp_path: Path) -> None:
        plan = planned(precision_models.residual(tmp_path / "net.onnx"))
        ranges = {name: 0.7 * value for name, value in observed(plan, tmp_path).ranges("minmax").items()}

        def shift(of: int8.Plan) -> dict[str, np.ndarray]:
            model, names = int8.with_shifts(of, ranges)
            # Measured against the uncorrected float model, whose products have the same biases on both sides.
            means = calibration.mean_values(
                model, list(names.values()), precision_models.feeds(), folder=tmp_path, source=NET
            )
            return {layer: means[name] for layer, name in names.items()}

        shifts = shift(plan)
        assert set(shifts) == set(plan.layers)
        want = outputs(tmp_path / "net.onnx")
        noise = []
        for one in (plan, int8.corrected(plan, shifts)):
            graph.write(tmp_path / "one.onnx", int8.quantise(one, ranges), {})
            noise.append(outputs(tmp_path / "one.onnx") - want)
        before, after = (np.abs(error.mean(axis=0)).max() for error in noise)
        assert after < 0.6 * before


class TestRanges:
    def test_every_method_gives_a_threshold_within_what_was_seen(self) -> None:
        histogram = Histogram()
        random = np.random.default_rng(0)
        for _ in range(5):
            histogram.add(random.standard_normal((4, 3, 50, 50)).astype(np.float32))
        found = {method: histogram.threshold(method) for method in METHODS}
        assert found["minmax"] == histogram.largest
        # 99.99 % of a normal distribution's magnitudes are below 3.89; the best clip for 127 steps is near 4.
        assert found["percentile"] == pytest.approx(3.89, abs=0.15)
        assert 3.5 < found["mse"] < 4.6
        assert 2.5 < found["entropy"] <= histogram.largest

    def test_one_outlier_moves_minmax_alone(self) -> None:
        histogram = Histogram()
        values = np.random.default_rng(0).standard_normal((8, 3, 100, 100)).astype(np.float32)
        histogram.add(values)
        values[0, 0, 0, 0] = 200
        histogram.add(values)
        assert histogram.threshold("minmax") == 200
        assert histogram.threshold("mse") < 60
        assert histogram.threshold("percentile") < 5

    def test_a_range_that_grows_keeps_every_count(self) -> None:
        histogram = Histogram()
        for scale in (1e-3, 1.0, 1e3):
            histogram.add(np.full((2, 10), scale, np.float32))
        assert histogram.counts.sum() == 60
        assert histogram.largest == pytest.approx(1e3)
        assert histogram.width * len(histogram.counts) > 1e3

    def test_a_tensor_of_zeros_has_a_usable_range(self) -> None:
        histogram = Histogram()
        histogram.add(np.zeros((2, 10), np.float32))
        assert {histogram.threshold(method) for method in METHODS} == {1.0}

    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.sampled_from(METHODS))
    def test_thresholds_are_positive_and_never_above_the_largest(self, values: list[float], method: Any) -> None:
        histogram = Histogram()
        histogram.add(np.asarray([values], np.float32))
        threshold = histogram.threshold(method)
        assert threshold > 0
        assert threshold <= max(histogram.largest, 1.0 if histogram.largest == 0 else 0) * (1 + 1e-6)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_weights_round_to_the_nearest_step(seed: int, per_channel: bool) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((4, 3, 2, 2)) * 10.0 ** random.integers(-6, 6, (4, 1, 1, 1))).astype(np.float32)
    whole, scale = int8.quantised_weight(weight, 0, per_channel=per_channel)
    steps = scale.reshape(-1, 1, 1, 1) if per_channel else scale
    assert whole.dtype == np.int8
    assert np.abs(whole.astype(int)).max() == 127
    assert (np.abs(whole * steps.astype(np.float64) - weight) <= 0.5001 * steps).all()
