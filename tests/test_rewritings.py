"""The verdict and the budget belong to the network, not to the way in which its file is written."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.rewritings import REWRITINGS, foreign_net, plain, rewritten, with_fault

from resnet_onnx import workflow
from resnet_onnx.models.build import build
from resnet_onnx.models.catalog import lookup
from resnet_onnx.parity.budget import derived_bound
from resnet_onnx.parity.compare import ParityReport
from resnet_onnx.parity.summation import sums_of
from resnet_onnx.workflow import ParityPlan, Request
from runtimes.onnx_arithmetic import graph_precision

TRAINED = ["digits", "cifar-resnet20", "cifar-resnet32"]
SHAPES = {"input": (2, 3, 32, 32), "data": (2, 3, 32, 32)}


@dataclass(frozen=True)
class Net:
    model: onnx.ModelProto
    faulty_node: str
    folder: Path

    def write(self, name: str, *, rewriting: str | None = None, fault: bool = False) -> Path:
        model = with_fault(self.model, self.faulty_node) if fault else self.model
        path = self.folder / f"{name}.onnx".replace(" ", "-")
        onnx.save(model if rewriting is None else rewritten(model, rewriting), path)
        return path


def trained_on_digits(folder: Path) -> Path:
    """The weights of a small network that tells most digits apart after two passes over them."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    found = load_digits()
    pictures = torch.from_numpy(found.images.astype(np.float32) / 16).unsqueeze(1).repeat(1, 3, 1, 1)
    pictures = torch.nn.functional.interpolate(pictures, (16, 16)) - 0.5
    labels = torch.from_numpy(found.target)
    network = build(lookup("cifar-resnet8").config).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for batch in torch.randperm(len(labels)).repeat(2)[:3584].split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(pictures[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.inference_mode():
        right = (network.eval()(pictures[:500]).argmax(1) == labels[:500]).float().mean()
    assert right > 0.8
    torch.save(network.state_dict(), folder / "digits.pth")
    return folder / "digits.pth"


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Net]:
    return {}


def net_of(nets: dict[str, Net], name: str, request: pytest.FixtureRequest) -> Net:
    """Returns a network of this module's, made once."""
    if name not in nets:
        folder = request.getfixturevalue("tmp_path_factory").mktemp("rewritings")
        if name == "foreign":
            nets[name] = Net(plain(onnx.load(foreign_net(folder / "net.onnx"))), "c1", folder)
        else:
            if name == "digits":
                catalog_name, weights = "cifar-resnet8", trained_on_digits(folder)
            else:
                catalog_name, weights = name, request.getfixturevalue("shared_data") / f"{name}.th"
            workflow.export(workflow.resolve(Request(model=catalog_name, weights=str(weights))), folder / "own.onnx")
            nets[name] = Net(plain(onnx.load(folder / "own.onnx")), "layer2.0.conv2", folder)
    return nets[name]


def judged(path: Path, gold: Path | None = None) -> ParityReport:
    model = workflow.resolve(Request(model=str(path), image_size=32))
    runtimes = ("ort-cpu",) if onnx.load(path).functions else ("ort-cpu", "openvino")  # which opens none with functions
    plan = ParityPlan(runtimes=runtimes, images=1, gold=None if gold is None else str(gold))
    return workflow.check_parity(model, plan)


@pytest.mark.parametrize("name", ["foreign", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED)])
def test_every_rewriting_has_the_same_sums(nets: dict[str, Net], name: str, request: pytest.FixtureRequest) -> None:
    net = net_of(nets, name, request)
    plainly = sums_of(net.write("plain"), SHAPES)
    for rewriting in REWRITINGS:
        path = net.write("other", rewriting=rewriting)
        sums = sums_of(path, SHAPES)
        assert sorted((s.terms, s.precision, s.pooling) for s in sums) == sorted(
            (s.terms, s.precision, s.pooling) for s in plainly
        ), rewriting
        assert graph_precision(path) == "fp32", rewriting
        assert derived_bound(sums) < 1e-5


def same_verdict(net: Net, rewriting: str) -> None:
    base = net.folder / "plain.onnx"
    if not base.exists():
        net.write("plain")
    expected = budget_of_plain(base)
    own = judged(net.write("other", rewriting=rewriting))
    assert [outcome.reason for outcome in own.outcomes if not outcome.passed] == []
    assert expected / 1.5 < budget_of(own) < expected * 1.5
    faulty = judged(net.write("faulty", rewriting=rewriting, fault=True), gold=base)
    assert [outcome.runtime for outcome in faulty.outcomes if outcome.passed] == []
    assert expected / 1.5 < budget_of(faulty) < expected * 1.5
    print(f"{rewriting}: {budget_of(own) / expected:.2f} of the budget, fault {faulty.outcomes[0].reason}")


@functools.cache
def budget_of_plain(base: Path) -> float:
    """The budget of a network as it was exported, which every rewriting of it is held against."""
    return budget_of(judged(base))


def budget_of(report: ParityReport) -> float:
    return next(iter(report.budgets.values())).relative_rmse


QUICK = ["weights stored in half", "local functions", "norms unfolded"]


@pytest.mark.parametrize("rewriting", QUICK)
def test_a_foreign_net_keeps_its_verdict(nets: dict[str, Net], rewriting: str, request: pytest.FixtureRequest) -> None:
    same_verdict(net_of(nets, "foreign", request), rewriting)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["foreign", *TRAINED])
@pytest.mark.parametrize("rewriting", REWRITINGS)
def test_a_rewriting_keeps_the_verdict(
    nets: dict[str, Net], name: str, rewriting: str, request: pytest.FixtureRequest
) -> None:
    same_verdict(net_of(nets, name, request), rewriting)
