"""Parity fails when it must and passes when it must: every mutant on every ONNX runtime, the whole catalog on all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from resnet_onnx import workflow
from resnet_onnx.models import catalog
from resnet_onnx.models.weights_file import read_safetensors
from resnet_onnx.workflow import Model, ParityPlan, Request
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource

ONNX_RUNTIMES = ("ort-cpu", "openvino", "reference")
ALL_RUNTIMES = ("torch", *ONNX_RUNTIMES)

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Original:
    model: Model
    path: Path
    folder: Path


def exported(folder: Path, name: str, seed: int = 3) -> Original:
    model = workflow.resolve(Request(model=name, seed=seed))
    path = folder / f"{name}.onnx"
    workflow.export(model, path)
    return Original(model, path, folder)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return exported(tmp_path_factory.mktemp("mutants"), "cifar-resnet20")


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return exported(tmp_path_factory.mktemp("mutants"), "resnet18")


# ---- mutants of the network, exported as it would be --------------------------------------------------------------


def in_the_network(change: Callable[[State], None]) -> Callable[[Original], Model]:
    def build(original: Original) -> Model:
        assert original.model.network is not None
        state = read_safetensors(original.model.network.weights)
        change(state)
        weights = original.folder / "mutant.safetensors"
        save_file(state, str(weights))
        path = original.folder / "mutant.onnx"
        workflow.export(workflow.resolve(Request(model=original.model.name, weights=str(weights))), path)
        return workflow.resolve(Request(model=str(path)))

    return build


def larger_epsilon(by: float, where: str) -> Callable[[State], None]:
    """A batch norm's epsilon is added to its variance, so that a larger one is a larger variance."""

    def change(state: State) -> None:
        names = [name for name in state if name.endswith("running_var") and where in name]
        assert names
        for name in names:
            state[name] += by

    return change


def zero_norm(state: State) -> None:
    state["layer2.1.bn1.weight"].zero_()
    state["layer2.1.bn1.bias"].zero_()


# ---- mutants of the file ---------------------------------------------------------------------------------


def in_the_file(change: Callable[[onnx.ModelProto], None]) -> Callable[[Original], Model]:
    def build(original: Original) -> Model:
        proto = onnx.load(original.path)
        change(proto)
        path = original.folder / "mutant.onnx"
        path.with_name(path.name + ".manifest.json").unlink(missing_ok=True)
        onnx.save(proto, path)
        return workflow.resolve(Request(model=str(path)))

    return build


def node_of(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if n.name == name)


def edit(proto: onnx.ModelProto, name: str, slot: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name == node_of(proto, name).input[slot])
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))


def scaled_channel(values: np.ndarray, channel: int = 3, factor: float = 1.01) -> np.ndarray:
    values[channel] *= factor
    return values


def move_stride(proto: onnx.ModelProto) -> None:
    """The stride of a block sits on its other convolution: all shapes stay, as between ResNet v1 and v1.5."""
    for name, strides in (("layer2.0.conv1", [1, 1]), ("layer2.0.conv2", [2, 2])):
        next(a for a in node_of(proto, name).attribute if a.name == "strides").ints[:] = strides


def shift_padding(proto: onnx.ModelProto) -> None:
    next(a for a in node_of(proto, "layer2.1.conv1").attribute if a.name == "pads").ints[:] = [0, 1, 2, 1]


def bias_one(values: np.ndarray) -> np.ndarray:
    values[0] += 0.01
    return values


def drop_relu(proto: onnx.ModelProto) -> None:
    gone = node_of(proto, "layer2.1.relu")
    for node in proto.graph.node:
        node.input[:] = [gone.input[0] if i == gone.output[0] else i for i in node.input]
    proto.graph.node.remove(gone)


def pool_off_by_one(proto: onnx.ModelProto) -> None:
    """The average leaves out the last row."""
    pool = next(n for n in proto.graph.node if n.op_type in ("ReduceMean", "GlobalAveragePool"))
    for name, value in (("first", 0), ("last", -1), ("rows", 2)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"mutant.{name}"))
    cut = helper.make_node("Slice", [pool.input[0], "mutant.first", "mutant.last", "mutant.rows"], ["mutant.cut"])
    pool.input[0] = "mutant.cut"
    proto.graph.node.insert(list(proto.graph.node).index(pool), cut)


def other_mean(original: Original) -> Model:
    model = workflow.resolve(Request(model=str(original.path)))
    assert model.preprocessing is not None
    r, g, b = model.preprocessing.mean
    return replace(model, preprocessing=replace(model.preprocessing, mean=(r + 1 / 255, g, b)))


MUTANTS: dict[str, Callable[[Original], Model]] = {
    "epsilon of every batch norm x100 (1e-5 to 1e-3)": in_the_network(larger_epsilon(1e-3 - 1e-5, "")),
    "epsilon of one batch norm 1e-5 to 1e-3": in_the_network(larger_epsilon(1e-3 - 1e-5, "layer2.1.bn1.")),
    "a zeroed batch norm": in_the_network(zero_norm),
    "the stride on the other convolution": in_the_file(move_stride),
    "shifted padding": in_the_file(shift_padding),
    "BGR for RGB": in_the_file(lambda p: edit(p, "conv1", 1, lambda w: w[:, ::-1].copy())),
    "one bias off by 0.01": in_the_file(lambda p: edit(p, "layer2.1.conv1", 2, bias_one)),
    "a missing ReLU": in_the_file(drop_relu),
    "one channel of one weight off by 1 %": in_the_file(lambda p: edit(p, "layer2.1.conv2", 1, scaled_channel)),
    "average pool off by one": in_the_file(pool_off_by_one),
    "normalisation mean off by 1/255": other_mean,
}


def insist_on_failure(original: Original, mutant: str, runtimes: tuple[str, ...]) -> None:
    model = MUTANTS[mutant](original)
    report = workflow.check_parity(model, ParityPlan(runtimes=runtimes, gold=str(original.path), images=1))
    escaped = [outcome.runtime for outcome in report.outcomes if outcome.passed]
    assert not escaped
    assert [outcome.runtime for outcome in report.outcomes] == list(runtimes)
    for outcome in report.outcomes:
        print(f"{mutant}: {outcome.runtime} {outcome.relative_rmse / outcome.budget:,.0f} × budget")


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_every_mutant_of_a_small_net_fails_on_every_fast_onnx_runtime(cifar: Original, mutant: str) -> None:
    insist_on_failure(cifar, mutant, ("ort-cpu", "openvino"))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_every_mutant_of_a_small_net_fails_on_the_reference_evaluator(cifar: Original, mutant: str) -> None:
    insist_on_failure(cifar, mutant, ("reference",))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_every_mutant_of_resnet18_fails_on_every_onnx_runtime(resnet18: Original, mutant: str) -> None:
    insist_on_failure(resnet18, mutant, ONNX_RUNTIMES)


def test_a_mutant_that_changes_nothing_is_proven_equivalent(cifar: Original) -> None:
    """A dead channel (its ReLU lets nothing through) may be scaled: in float64 not one score changes."""

    def kill(state: State) -> None:
        state["layer2.1.bn1.weight"][5] = 0.0
        state["layer2.1.bn1.bias"][5] = -1.0

    dead = in_the_network(kill)(cifar)
    assert dead.onnx is not None
    base = dead.onnx.rename(dead.onnx.with_name("dead.onnx"))
    proto = onnx.load(base)
    edit(proto, "layer2.1.conv2", 1, lambda w: np.concatenate([w[:, :5], w[:, 5:6] * 1.01, w[:, 6:]], axis=1))
    path = base.with_name("dead-scaled.onnx")
    onnx.save(proto, path)
    model = workflow.resolve(Request(model=str(path)))
    feeds = workflow.sample_feeds(model, 4)
    exact = []
    for each in (base, path):
        with open_runtime("reference", ModelSource(path=each)) as runtime:
            exact.append(next(iter(runtime.run(feeds).values())))
    np.testing.assert_array_equal(exact[0], exact[1])
    plan = ParityPlan(runtimes=("ort-cpu", "openvino"), gold=str(base), images=4)
    assert workflow.check_parity(model, plan).passed


@pytest.mark.slow
@pytest.mark.parametrize("node", ["conv1", "layer1.0.conv1", "layer2.2.conv2", "layer3.2.conv2"])
def test_every_channel_off_by_one_percent_is_caught_or_proven_equivalent(cifar: Original, node: str) -> None:
    channels = len(workflow_weight(cifar.path, node))
    equivalent = []
    for channel in range(channels):
        model = in_the_file(lambda p, c=channel: edit(p, node, 1, lambda w: scaled_channel(w, c)))(cifar)
        report = workflow.check_parity(model, ParityPlan(runtimes=("ort-cpu",), gold=str(cifar.path), images=4))
        if report.passed:
            feeds = workflow.sample_feeds(model, 4)
            exact = []
            for path in (cifar.path, model.onnx):
                with open_runtime("reference", ModelSource(path=path)) as runtime:
                    exact.append(next(iter(runtime.run(feeds).values())))
            budget = report.outcomes[0].budget
            change = float(np.sqrt(np.mean((exact[0] - exact[1]) ** 2) / np.mean(exact[0] ** 2)))
            assert change < budget, f"channel {channel} of {node} escaped: {change:.1e}"
            equivalent.append(channel)
    print(f"{node}: {channels - len(equivalent)} of {channels} caught, equivalent: {equivalent}")


def workflow_weight(path: Path, node: str) -> np.ndarray:
    proto = onnx.load(path)
    name = node_of(proto, node).input[1]
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", catalog.names())
def test_the_whole_catalog_passes_on_every_runtime(name: str, seed: int) -> None:
    model = workflow.resolve(Request(model=name, seed=seed))
    large = model.preprocessing is not None and model.preprocessing.image_size > 64
    runtimes = ("torch", "ort-cpu", "openvino") if large else ALL_RUNTIMES
    report = workflow.check_parity(model, ParityPlan(runtimes=runtimes, images=2 if large else 8, seed=seed))
    assert [o.reason for o in report.outcomes if not o.passed] == []
    worst = max(o.relative_rmse / o.budget for o in report.outcomes)
    print(f"{name} seed {seed}: {len(report.outcomes)} runtimes, worst {worst:.0%} of the budget")
