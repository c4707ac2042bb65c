"""The fixed reference that a bundle's speed is a ratio to, and the measurement of that ratio in turns.

On a CPU it is the float32 network on the bundle's own library with one thread, one picture at a time: the same file for
every precision and setting of a network, so that ratios can be compared. Its weights are of no account and left out
(``converters.weightless``). On a GPU it is a large matrix product.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnet_onnx.bench.clock import Slice
from resnet_onnx.bench.paired import ContenderFailed, OpenedSide, PairedPlan, PairedRun, Side, run_pair, settled
from resnet_onnx.bench.statistics import median_interval, percentile
from resnet_onnx.parity.quantised import float32_twin, is_quantised, without_rounding
from resnet_onnx.results.bundle import Figures, Latency
from resnet_onnx.workflow import sample_feeds
from resnet_onnx.workflow.measuring import MOST_PICTURES, fixed_batch
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.opening import target
from resnet_onnx.workflow.request import UNTUNED, Model, OnnxForm
from runtimes import files, onnx_gate, registry
from runtimes.errors import RuntimeUnavailable
from runtimes.spec import RuntimeOptions

Progress = Callable[[str], None]

REFERENCE_OPTIONS = RuntimeOptions(threads=1, streams=1)

MEASURED_S = 20.0
"""Time of all turns at most, where nobody says."""

_FEWEST_RUNS = 300
"""An upper 95 % bound of p99 needs 299 (``statistics.samples_needed``)."""

_LATENCY_S = 20.0
_PRODUCT_SIDE = 4096


def reference_file(original: Model, runtime: str, *, device: str | None = None) -> Path:
    """Returns the reference's file, in the cache; the same model gives the same bytes.

    Args:
        original: The network before any change of precision; of a file whose network is not at hand, the file itself.
        runtime: On a GPU it is a matrix product, whatever the network.
        device: Of the runtime; None is its own default.

    Raises:
        RuntimeUnavailable: The runtime opens no ONNX file and no engine made of one.
    """
    adapter = registry.adapter(runtime)
    if "onnx" not in adapter.opens and adapter.built_from != "onnx":
        raise RuntimeUnavailable(f"runtime '{runtime}' opens no ONNX file, so that it has no reference")
    if adapter.resolve_device(device) != "cpu":
        return _stored(_product)
    path = onnx_path(_in_float32(original))
    return _stored(lambda target: _weightless(path, target))


def reference_side(original: Model, runtime: str, *, device: str | None = None) -> Side:
    """Returns the reference as a side of a comparison in turns; arguments and errors as ``reference_file``."""
    path = reference_file(original, runtime, device=device)
    checked = onnx_gate.check_onnx(path)
    stand_in = replace(original, name="reference", onnx=path, engine=None, network=None, inputs=checked.inputs)
    stand_in = replace(stand_in, precision="fp32", form=OnnxForm())
    batch = fixed_batch(stand_in) or 1
    return Side(
        target=target(stand_in, runtime, device=device, options=REFERENCE_OPTIONS, batches=(batch,)),
        feeds=sample_feeds(stand_in, batch),
        batch=batch,
    )


def bundle_side(
    model: Model, runtime: str, *, batch: int, options: RuntimeOptions = UNTUNED, device: str | None = None
) -> Side:
    """Returns a form of a model as a side of a comparison in turns."""
    return Side(
        target=target(model, runtime, device=device, options=options, batches=(batch,)),
        feeds=sample_feeds(model, fixed_batch(model) or min(batch, MOST_PICTURES)),
        batch=batch,
    )


def measure_against_reference(
    side: Side, reference: Side, plan: PairedPlan | None = None, *, progress: Progress = lambda _: None
) -> Figures:
    """Measures a side against the reference in turns, then its single runs alone.

    Raises:
        RunFailed: A side failed while it ran.
        UnsupportedModel: A side can't run its model.
        RuntimeUnavailable: The runtime is not here.
    """
    plan = plan or PairedPlan(duration_s=MEASURED_S)
    run = PairedRun()
    with (
        OpenedSide(reference, warm_up_s=plan.warm_up_limit_s) as first,
        OpenedSide(side, warm_up_s=plan.warm_up_limit_s) as second,
    ):
        for each in (first, second):
            progress(f"opening and warming up {each.side.target.source.name} on {each.side.target.runtime}")
            each.prepare()
            if each.error is not None:
                raise each.error
        try:
            run_pair(
                first,
                second,
                into=run,
                enough=settled(plan.tolerance),
                duration_s=plan.duration_s,
                coin=random.Random(plan.seed),
                progress=lambda now: progress(f"{len(now.blocks)} blocks against the reference"),
            )
            taken = second.sample(_seconds(second))
        except ContenderFailed as failure:
            error = first.error or second.error
            raise error if error is not None else failure from failure
    return figures(side.batch, run, taken)


def figures(batch: int, run: PairedRun, alone: Slice) -> Figures:
    """Returns the figures of a side: from its turns against the reference, and from its single runs alone."""
    times_ms = alone.times_ns / 1e6
    ends = run.found.ends if run.found is not None else None
    rate, rate_ci95 = median_interval(np.array([block.new_s for block in run.blocks])).rate(1.0)
    paces = alone.disturbance.paces_s
    return Figures(
        over_reference=run.found.ratio if run.found is not None else None,
        over_reference_ci95=ends,
        images_per_second=rate,
        images_per_second_ci95=rate_ci95,
        latency_ms=Latency(p50=float(np.median(times_ms)), p99=percentile(times_ms, 99)),
        pace_us=1e6 * float(np.median(paces)) if paces else None,
        measured_s=run.spent_s + alone.spent_s,
    )


def _seconds(side: OpenedSide) -> float:
    """Returns how long a side runs alone: as long as a p99 needs, or ``_LATENCY_S``."""
    run_s = side.warm_up.run_s if side.warm_up is not None else 0.0
    return min(_LATENCY_S, 1.2 * math.ceil(_FEWEST_RUNS / max(1, side.opened.streams if side.opened else 1)) * run_s)


def _in_float32(original: Model) -> Model:
    """Returns the float32 network in the form of its ONNX file, where its weights are at hand."""
    if original.network is None or (original.precision == "fp32" and original.onnx is not None):
        return original
    form = OnnxForm(batch=original.form.batch)
    return replace(original, onnx=None, engine=None, inputs=(), precision="fp32", form=form)


def _weightless(path: Path, target: Path) -> None:
    from converters.weightless import without_weights

    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        plain = Path(folder) / "float32.onnx"
        if is_quantised(path):
            path = without_rounding(path, plain)
        elif _is_half(path):
            path = float32_twin(path, plain)
        without_weights(path, target)


def _is_half(path: Path) -> bool:
    from runtimes.onnx_arithmetic import graph_precision

    return graph_precision(path) in ("fp16", "bf16")


def _product(path: Path) -> None:
    """Writes a product of two square matrices, float32; the second is made when the file is loaded."""
    import onnx
    from onnx import TensorProto, helper

    side = [_PRODUCT_SIDE, _PRODUCT_SIDE]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, side) for name in ("x", "y"))
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1 / _PRODUCT_SIDE])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], value=one),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], side)
    graph = helper.make_graph(nodes, "reference", [x], [y], [shape])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _stored(write: Callable[[Path], None]) -> Path:
    return files.store_by_content("references", ".onnx", write)[0]
