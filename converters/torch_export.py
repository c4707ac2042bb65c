"""Torch module in, one self-contained ONNX file out, verified against the module before anybody sees it."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes import onnx_gate, onnx_plain
from runtimes.errors import CheckFailed, UnsupportedModel, UsageError, reason

OPSETS = range(18, 25)
"""Operator sets that torch's dynamo exporter writes (seen with torch 2.15: 18 to 24; it leaves 17 at 18)."""
DEFAULT_OPSET = 18
"""The oldest of them: every released TensorRT 10, OpenVINO and ONNX Runtime parses it."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the ONNX file should look like.

    Attributes:
        input_names: In call order.
        output_names: In return order.
        batch: Fixed batch, or None for a dynamic one (named ``batch``).
        opset: Version of the default operator set.
    """

    input_names: tuple[str, ...] = ("input",)
    output_names: tuple[str, ...] = ("logits",)
    batch: int | None = None
    opset: int = DEFAULT_OPSET

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset} can't be exported: choose {OPSETS.start} to {OPSETS.stop - 1}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"a fixed batch must be at least 1, not {self.batch}")


@dataclass(frozen=True)
class Verification:
    """How far `runtime` with the file was from the module at worst, over batches of these sizes."""

    batches: tuple[int, ...]
    relative_rmse: float
    runtime: str


Evaluate = Callable[[Path, Sequence[Mapping[str, NDArray[Any]]]], list[dict[str, NDArray[Any]]]]
"""Runs an ONNX file on several feeds; given by the caller, who knows the runtimes."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an exported file is compared with its module.

    Attributes:
        batches: Tensors of the inputs, a batch each.
        evaluate: Runs the file.
        runtime: Name of the runtime behind `evaluate`.
        bound: Largest relative RMSE that counts as the same function.
    """

    batches: Sequence[Sequence[Any]]
    evaluate: Evaluate
    runtime: str
    bound: float


def export(
    module: Any, example: Sequence[Any], path: Path, options: ExportOptions, metadata: Mapping[str, str]
) -> None:
    """Exports with torch's dynamo exporter and writes the file to `path`, unverified.

    Nodes are named after the modules they came from (``layer3.2.conv2``), and what names this machine's folders
    (stack traces) is left out.

    Args:
        module: A ``torch.nn.Module`` in eval mode.
        example: Tensors of the module's inputs; with a dynamic batch at least two pictures, since the exporter
            takes an extent of 1 for a constant.
        path: Where to write.
        options: Names, batch, opset.
        metadata: Goes into ``metadata_props``.

    Raises:
        UnsupportedModel: The exporter can't write this module; names the operator where it is known.
    """
    import torch

    dynamic = options.batch is None
    shapes = tuple({0: torch.export.Dim("batch")} for _ in example) if dynamic else None
    with _without_chatter():
        try:
            program = torch.onnx.export(
                module,
                tuple(example),
                None,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(options.input_names),
                output_names=list(options.output_names),
                opset_version=options.opset,
                verbose=False,
            )
        except RuntimeError as error:  # the exporter's own errors, of which torch names the base in private
            if not type(error).__module__.startswith("torch.onnx"):
                raise
            raise _refusal(error) from error
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        _name_after_modules(program.model)
        program.model.metadata_props.update(metadata)
        proto = program.model_proto
        if dynamic:
            _check_open(proto, int(example[0].shape[0]))
        onnx_plain.drop_types_of_initialisers(proto)
        path.write_bytes(proto.SerializeToString())


def _check_open(proto: Any, size: int) -> None:
    """Raises ``UnsupportedModel`` where the exporter bound the batch to the example's `size`."""
    if any(not value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input):
        raise UnsupportedModel(
            f"{_EXPORTER} with an open batch: something in it depends on the batch, here {size}",
            fix=f"a fixed batch works: --batch {size}",
        )


_OPERATOR = re.compile(r"op='([\w.:]+)'|target=torch\.ops\.([\w.]+)|(aten(?:\.|::)\w+)")
_EXPORTER = "torch's exporter can't write this network as ONNX"


def _refusal(error: BaseException) -> UnsupportedModel:
    """Returns what the exporter's error means, and which operator it can't write."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    said = reason(str(chain[-1]).strip().partition("\n\n")[0] or type(chain[-1]).__name__)
    operator = next((found for each in reversed(chain) if (found := _OPERATOR.search(str(each)))), None)
    if operator is not None:
        name = next(filter(None, operator.groups()))
        return UnsupportedModel(f"{_EXPORTER}: operator {name}: {said}")
    return UnsupportedModel(f"{_EXPORTER}: {said}")


def verify(module: Any, path: Path, options: ExportOptions, check: Check) -> Verification:
    """Compares the file with the module that was exported, on several batches.

    Raises:
        CheckFailed: Outputs differ in shape, are not finite, or are further apart than the bound.
    """
    import torch

    feeds = [{n: t.numpy() for n, t in zip(options.input_names, batch, strict=True)} for batch in check.batches]
    found = check.evaluate(path, feeds)
    worst = 0.0
    sizes = []
    for batch, outputs in zip(check.batches, found, strict=True):
        with torch.inference_mode():
            result = module(*batch)
        expected = list(result) if isinstance(result, tuple | list) else [result]
        sizes.append(int(batch[0].shape[0]))
        for name, tensor in zip(options.output_names, expected, strict=True):
            what = f"'{name}' at batch {sizes[-1]}"
            worst = max(worst, _difference(tensor.numpy(), outputs[name], what, check.bound))
    return Verification(tuple(sizes), worst, check.runtime)


def _difference(expected: NDArray[Any], found: NDArray[Any], what: str, bound: float) -> float:
    if found.shape != expected.shape:
        raise CheckFailed(f"the exported file gives {what} the shape {list(found.shape)}, torch {list(expected.shape)}")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(a).all():
        raise CheckFailed(
            f"torch itself computes NaN or Inf for {what}; these weights make no usable network",
            fix="check the weights",
        )
    scale = float(np.sqrt(np.mean(a * a)))
    error = float(np.sqrt(np.mean((a - b) ** 2))) / scale if scale else float(np.max(np.abs(b)))
    if not error <= bound:  # also catches NaN
        raise CheckFailed(
            f"the exported file does not compute what torch computes: {what} is {error:.1e} off (relative RMSE), "
            f"expected at most {bound:.1e}; nothing was written",
            fix="this is a fault of the exporter: try another --opset, or another torch version",
        )
    return error


def write_verified(
    path: Path,
    module: Any,
    example: Sequence[Any],
    options: ExportOptions,
    *,
    check: Check,
    metadata: Mapping[str, str],
    manifest: Mapping[str, Any],
) -> Verification:
    """Exports, verifies, and only then puts file and manifest into place; the arguments are as for ``export``.

    Raises:
        CheckFailed: The file does not compute what the module computes; the old file, if any, is untouched.
        FileProblem: The file can't be written.
    """
    with onnx_gate.atomic_model(path, manifest) as temporary:
        export(module, example, temporary, options, metadata)
        return verify(module, temporary, options, check)


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_after_modules(model: Any) -> None:
    """Renames nodes and their values after the modules they came from, and drops the exporter's notes on them."""
    outputs = {value.name for value in model.graph.outputs}
    taken = dict.fromkeys([*(v.name for v in model.graph.inputs), *model.graph.initializers, *outputs], 1)
    for node in model.graph:
        name = _module_of(node)
        count = taken[name] = taken.get(name, 0) + 1
        unique = name if count == 1 else f"{name}_{count}"
        taken[unique] = max(taken.get(unique, 0), 1)
        node.name = unique
        node.metadata_props.clear()
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if value.name not in outputs:
                value.name = unique if index == 0 else f"{unique}:{index}"


def _module_of(node: Any) -> str:
    for value in node.inputs:
        if value is not None and value.const_value is not None and value.name and ".weight" in value.name:
            return str(value.name).partition(".weight")[0]
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    module = parts[-2] if len(parts) > 1 else ""
    kind = str(node.op_type).lower()
    if not module:
        return kind
    return module if module.rpartition(".")[2] == kind else f"{module}.{kind}"
