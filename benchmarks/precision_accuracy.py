"""What fp16, bf16 and int8 cost the published CIFAR ResNets, on all test pictures and on every form that runs.

    python benchmarks/precision_accuracy.py DATA_FOLDER

Exports the trained networks in DATA_FOLDER (``cifar-resnet20.th``, ``cifar-resnet32.th``, ``cifar10-jpeg.zip``),
converts them as ``resnet-onnx convert --to … --calibration …`` does, evaluates everything on all 10,000 test pictures,
and checks the targets of the project; exit code 1 where one is missed.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.lowering import lowered_file
from resnet_onnx import workflow
from resnet_onnx.data.batches import Batches
from resnet_onnx.data.datasets import open_dataset
from runtimes import ModelSource, RuntimeOptions, onnx_gate, open_runtime

NETWORKS = ("cifar-resnet20", "cifar-resnet32")
LARGEST_DROP = {"fp32": 0.1, "fp16": 0.1, "bf16": 0.3, "int8": 0.3}
"""Points of top-1 against fp32."""
LEAST_EQUAL = {"portable": 97.8, "ort-cpu": 98.4, "openvino": 98.4, "ort-cpu = openvino": 98.8}
"""Percent of equal decisions: with fp32, and between the two lowered forms."""


def exported(shared: Path, network: str, folder: Path) -> workflow.Model:
    """Exports a trained network into `folder` as NETWORK.onnx and returns it as a model."""
    plain = folder / f"{network}.onnx"
    request = workflow.Request(
        model=network,
        weights=str(shared / f"{network}.th"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        labels="cifar10",
    )
    workflow.export(workflow.resolve(request), plain)
    return workflow.resolve(workflow.Request(model=str(plain)))


def decisions(runtime: str, path: Path, pictures: list[np.ndarray], *, optimize: bool = True) -> np.ndarray:
    """Returns the top-1 decision for every picture."""
    options = RuntimeOptions(optimize=optimize)
    with open_runtime(runtime, ModelSource(path=path), options=options) as opened:
        name = opened.inputs[0].name
        return np.concatenate([next(iter(opened.run({name: batch}).values())).argmax(axis=1) for batch in pictures])


def lowered(path: Path, runtime: str) -> Path:
    """Returns the int8 file in the form of a runtime."""
    made = lowered_file(onnx_gate.check_onnx(path), runtime)
    return path if made is None else made.path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One form of one network: what it is, and how it decides."""

    network: str
    form: str
    top1: float
    drop: float
    equal: float
    largest_drop: float
    least_equal: float | None = None

    def missed(self) -> str | None:
        """Returns which target was missed, or None."""
        if self.drop > self.largest_drop:
            return (
                f"{self.network} {self.form}: drop {self.drop:.2f} points, at most {self.largest_drop:g} were aimed at"
            )
        if self.least_equal is not None and self.equal < self.least_equal:
            return f"{self.network} {self.form}: {self.equal:.2f} % equal, aimed at {self.least_equal:g} at least"
        return None


def measure(shared: Path, network: str, folder: Path) -> tuple[list[Row], float, str]:
    """Returns a row per form, the percent of decisions that both lowered int8 forms share, and int8's method."""
    data = str(shared / "cifar10-jpeg.zip")
    model = exported(shared, network, folder)
    assert model.preprocessing is not None
    test = open_dataset(data, split="test")
    decoded = list(Batches(test, model.preprocessing, batch_size=200))
    pictures = [model.preprocessing.normalise(batch.pictures) for batch in decoded]
    labels = np.concatenate([batch.labels for batch in decoded])
    fp32 = decisions("ort-cpu", folder / f"{network}.onnx", pictures)
    right = 100 * float((fp32 == labels).mean())
    rows = [Row(network=network, form="fp32 ort-cpu", top1=right, drop=0.0, equal=100.0, largest_drop=0.0)]

    def add(form: str, found: np.ndarray, precision: str, least: float | None = None) -> None:
        top1 = 100 * float((found == labels).mean())
        equal = 100 * float((found == fp32).mean())
        rows.append(
            Row(network=network, form=f"{precision} {form}", top1=top1, drop=right - top1, equal=equal,
                largest_drop=LARGEST_DROP[precision], least_equal=least)
        )  # fmt: skip

    add("openvino", decisions("openvino", folder / f"{network}.onnx", pictures), "fp32")
    method, both = "", 0.0
    for precision in ("fp16", "bf16", "int8"):
        path = folder / f"{network}-{precision}.onnx"
        result = workflow.convert(model, path, workflow.ConversionConfig(to=precision, calibration=data))
        if precision == "int8":
            method = str(result.method)
            # Not lowered; ONNX Runtime without optimisation computes the pairs as they stand in the file.
            for runtime in ("ort-cpu", "openvino"):
                found = decisions(runtime, path, pictures, optimize=runtime != "ort-cpu")
                add(f"portable, {runtime}", found, precision, LEAST_EQUAL["portable"])
            ort, ov = (decisions(runtime, lowered(path, runtime), pictures) for runtime in ("ort-cpu", "openvino"))
            add("lowered, ort-cpu", ort, precision, LEAST_EQUAL["ort-cpu"])
            add("lowered, openvino", ov, precision, LEAST_EQUAL["openvino"])
            both = 100 * float((ort == ov).mean())
            continue
        for runtime in ("ort-cpu", "openvino"):
            if precision == "bf16" and runtime == "ort-cpu":
                continue  # it has no kernel for it
            add(runtime, decisions(runtime, path, pictures), precision)
    return rows, both, method


def main() -> int:
    """Prints a table as Markdown and returns how it ended."""
    shared = Path(sys.argv[1])
    missed = []
    print("| network | form | top-1 % | drop, points | = fp32 % |\n|---|---|---|---|---|", flush=True)
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as name:
            rows, both, method = measure(shared, network, Path(name))
        for row in rows:
            print(f"| {row.network} | {row.form} | {row.top1:.2f} | {row.drop:+.2f} | {row.equal:.2f} |")
        print(f"| {network} | int8 ({method}), ort-cpu = openvino | | | {both:.2f} |", flush=True)
        missed += [line for row in rows if (line := row.missed())]
        if both < LEAST_EQUAL["ort-cpu = openvino"]:
            missed.append(f"{network} int8: ort-cpu and openvino decide alike on {both:.2f} %")
    print("\n".join(f"missed: {line}" for line in missed) or "every target was met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
