"""What fp16, bf16 and int8 cost the published CIFAR ResNets, on all test pictures and on every form that runs.

    python benchmarks/precision_accuracy.py DATA_FOLDER

Exports the trained networks in DATA_FOLDER (``cifar-resnet20.th``, ``cifar-resnet32.th``, ``cifar10-jpeg.zip``),
converts them as ``resnet-onnx convert --to … --calibration …`` does, evaluates everything on all 10,000 test pictures,
and checks the targets of the project; exit code 1 where one is missed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from converters.lowering import lowered_file
from resnet_onnx import workflow
from resnet_onnx.data.batches import batches
from resnet_onnx.data.datasets import open_dataset
from runtimes import ModelSource, RuntimeOptions, files, open_runtime

NETWORKS = ("cifar-resnet20", "cifar-resnet32")
LARGEST_DROP = {"fp16": 0.1, "bf16": 0.3, "int8": 0.3}
"""Points of top-1 against fp32."""
LEAST_EQUAL = {"portable": 97.8, "ort-cpu": 98.4, "openvino": 98.4, "ort-cpu = openvino": 98.8}
"""Percent of equal decisions: with fp32, and between the two lowered forms."""


def decisions(runtime: str, path: Path, pictures: list[np.ndarray], *, optimize: bool = True) -> np.ndarray:
    """Returns the top-1 decision for every picture."""
    options = RuntimeOptions(optimize=optimize)
    with open_runtime(runtime, ModelSource(path=path), options=options) as opened:
        name = opened.inputs[0].name
        return np.concatenate([next(iter(opened.run({name: batch}).values())).argmax(axis=1) for batch in pictures])


def lowered(path: Path, runtime: str) -> Path:
    """Returns the int8 file in the form of a runtime."""
    made = lowered_file(files.check_onnx(path), runtime)
    return path if made is None else made.path


def main() -> int:
    """Prints a table and returns how it ended."""
    shared = Path(sys.argv[1])
    data = str(shared / "cifar10-jpeg.zip")
    missed = []
    with tempfile.TemporaryDirectory() as name:
        for network in NETWORKS:
            folder = Path(name)
            plain = folder / f"{network}.onnx"
            request = workflow.Request(
                model=network,
                weights=str(shared / f"{network}.th"),
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                labels="cifar10",
            )
            workflow.export(workflow.resolve(request), plain)
            model = workflow.resolve(workflow.Request(model=str(plain)))
            assert model.preprocessing is not None
            test = open_dataset(data, split="test")
            decoded = [(b.pictures, b.labels) for b in batches(test, model.preprocessing, batch_size=200)]
            pictures, labels = [p for p, _ in decoded], np.concatenate([t for _, t in decoded])
            fp32 = decisions("ort-cpu", plain, pictures)
            print(f"{network}: fp32 {100 * (fp32 == labels).mean():.2f} % of {len(labels)} pictures")
            for precision in ("fp16", "bf16", "int8"):
                path = folder / f"{network}-{precision}.onnx"
                result = workflow.convert(model, path, workflow.Wishes(to=precision, calibration=data))
                if precision == "int8":
                    rows = {
                        "portable": decisions("ort-cpu", path, pictures, optimize=False),
                        "ort-cpu": decisions("ort-cpu", lowered(path, "ort-cpu"), pictures),
                        "openvino": decisions("openvino", lowered(path, "openvino"), pictures),
                    }
                else:
                    rows = {result["agreement_runtime"]: decisions(result["agreement_runtime"], path, pictures)}
                for form, found in rows.items():
                    drop = 100 * ((fp32 == labels).mean() - (found == labels).mean())
                    equal = 100 * (found == fp32).mean()
                    method = f" ({result['method']})" if precision == "int8" else ""
                    print(f"  {precision}{method} {form}: drop {drop:+.2f} points, decides like fp32 on {equal:.2f} %")
                    if drop > LARGEST_DROP[precision]:
                        missed.append(f"{network} {precision} {form}: drop {drop:.2f}")
                    if precision == "int8" and equal < LEAST_EQUAL[form]:
                        missed.append(f"{network} int8 {form}: {equal:.2f} % equal")
                if precision == "int8":
                    both = 100 * (rows["ort-cpu"] == rows["openvino"]).mean()
                    print(f"  int8 ort-cpu = openvino on {both:.2f} %")
                    if both < LEAST_EQUAL["ort-cpu = openvino"]:
                        missed.append(f"{network} int8 ort-cpu = openvino: {both:.2f} %")
    print("\n".join(f"missed: {line}" for line in missed) or "every target was met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
