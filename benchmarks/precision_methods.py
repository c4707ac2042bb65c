"""By which rule int8 should choose its calibration method, told from training pictures alone.

    python benchmarks/precision_methods.py DATA_FOLDER [SEEDS]

For the trained networks in DATA_FOLDER and some seeds: 512 training pictures calibrate, 1,024 others validate, 5,000
others are held out; no test picture is read. Each method is made as ``resnet-onnx convert`` makes it, biases corrected,
and each rule picks by what it sees on the validation pictures. What counts is how often the pick decides like fp32 on
the held-out pictures: the mean over the portable file and the lowered forms of ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from precision_accuracy import NETWORKS, decisions, exported, lowered

from converters.calibration import METHODS
from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.workflow import ConversionConfig
from resnet_onnx.workflow.precision.candidates import calibrated, int8_candidate
from resnet_onnx.workflow.precision.comparison import Comparison
from resnet_onnx.workflow.precision.conversion import Conversion
from resnet_onnx.workflow.precision.pictures import Pictures
from runtimes import onnx_gate

_VALIDATION, _HELD_OUT = 1_024, 5_000

Rows = dict[str, Comparison]


class TrainingPictures(Pictures):
    """Calibration, validation and held-out pictures are disjoint training pictures."""

    def _split(self, name: str) -> None:
        train = open_dataset(name, split="train")
        order = np.random.default_rng(self._config.seed).permutation(len(train))
        first, second = self._config.pictures, self._config.pictures + _VALIDATION
        self._calibration = train.subset(order[:first])
        self._validation = train.subset(order[first:second])
        self._held_out = train.subset(order[second : second + _HELD_OUT])


def within(errors: float) -> Callable[[Rows], str]:
    """Returns the rule: of those whose agreement is within so many standard errors of the best, the best SQNR."""

    def rule(rows: Rows) -> str:
        best = max(found.agreement for found in rows.values())
        images = next(iter(rows.values())).images
        error = math.sqrt(max(best * (1 - best), 1 / images) / images)
        alike = [name for name, found in rows.items() if found.agreement >= best - errors * error]
        return max(alike, key=lambda name: rows[name].sqnr_db)

    return rule


def always(method: str) -> Callable[[Rows], str]:
    """Returns the rule that looks at nothing."""
    return lambda _: method


RULES: dict[str, Callable[[Rows], str]] = {
    "agreement": within(0.0),
    "agreement within 1 error, then SQNR": within(1.0),
    "agreement within 2 errors, then SQNR": within(2.0),
    "SQNR": within(math.inf),
    **{f"always {method}": always(method) for method in METHODS},
}


def main() -> None:
    """Prints each method on each network and seed, and each rule's mean."""
    shared = Path(sys.argv[1])
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    picked: dict[str, list[float]] = {name: [] for name in RULES}
    for network in NETWORKS:
        for seed in range(seeds):
            seen: Rows = {}
            held_out: dict[str, float] = {}
            for method in METHODS:
                with tempfile.TemporaryDirectory() as name:
                    seen[method], shares = measure(shared, network, method, seed, Path(name))
                held_out[method] = float(np.mean(shares))
                print(
                    f"{network} seed {seed} {method:10s} validation {100 * seen[method].agreement:.2f} % "
                    f"{seen[method].sqnr_db:.2f} dB | held out: portable {100 * shares[0]:.2f} %, "
                    f"ort-cpu {100 * shares[1]:.2f} %, openvino {100 * shares[2]:.2f} %",
                    flush=True,
                )
            for rule, pick in RULES.items():
                picked[rule].append(held_out[pick(seen)])
    for rule, shares in sorted(picked.items(), key=lambda item: -float(np.mean(item[1]))):
        print(f"{rule}: {100 * float(np.mean(shares)):.3f} % equal decisions, worst {100 * min(shares):.2f} %")


def measure(shared: Path, network: str, method: str, seed: int, folder: Path) -> tuple[Comparison, Any]:
    """Returns what is seen on the validation pictures, and equal decisions of the three forms on the held-out ones."""
    model = exported(shared, network, folder)
    config = ConversionConfig(to="int8", calibration=str(shared / "cifar10-jpeg.zip"), method=method, seed=seed)
    pictures = TrainingPictures(model, config)
    plain = onnx_gate.check_onnx(folder / f"{network}.onnx")
    conversion = Conversion(
        model=model, source=plain, config=config, data=pictures, folder=folder, progress=lambda _: None
    )
    candidate = int8_candidate(conversion, calibrated(conversion)).model
    seen = conversion.compare_one(candidate, "validation")
    path = conversion.draft(candidate, None)
    batches = [next(iter(feeds.values())) for feeds, _, _ in pictures.held_out()]
    fp32 = decisions("ort-cpu", plain.path, batches)
    forms = [
        decisions("ort-cpu", path, batches, optimize=False),
        decisions("ort-cpu", lowered(path, "ort-cpu"), batches),
        decisions("openvino", lowered(path, "openvino"), batches),
    ]
    return seen, [float((form == fp32).mean()) for form in forms]


if __name__ == "__main__":
    main()
