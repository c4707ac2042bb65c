"""int8 files of the small models, and how far their outputs are from float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converters import calibration, graph, int8
from runtimes import ModelSource, RuntimeOptions, onnx_gate, open_runtime
from support import precision_models
from support.precision_models import NET


def planned(path: Path, **options: Any) -> int8.Plan:
    return int8.plan(int8.prepared(graph.load(onnx_gate.check_onnx(path)), what="net"), **options)


def observed(plan: int8.Plan, folder: Path) -> calibration.Observed:
    return calibration.observe(plan.model, plan.observed, precision_models.feeds(), folder=folder, source=NET)


def quantised(path: Path, folder: Path, *, per_channel: bool = True, **options: Any) -> Path:
    plan = planned(path, **options)
    model = int8.quantise(plan, observed(plan, folder).ranges("minmax"), per_channel=per_channel)
    target = folder / f"{path.stem}-int8.onnx"
    graph.write(target, model, {})
    return target


def outputs(path: Path, runtime: str = "ort-cpu", *, optimize: bool = True) -> np.ndarray:
    options = RuntimeOptions(optimize=optimize)
    with open_runtime(runtime, ModelSource(path=path), options=options) as opened:
        found = [next(iter(opened.run(feeds).values())) for feeds in precision_models.feeds()]
    return np.concatenate(found).astype(np.float64)


def sqnr_db(want: np.ndarray, got: np.ndarray) -> float:
    return int8.signal_to_noise_db(want, want - got)
