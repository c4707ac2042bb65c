"""The form of a model that each runtime opens: a path or the name of a factory, so that a child process can open it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet_onnx.workflow.feeds import specs
from resnet_onnx.workflow.onnx_form import keep_weights, network_metadata, onnx_path
from resnet_onnx.workflow.request import INPUT_NAME, OUTPUT_NAME, Model, need_network
from resnet_onnx.workflow.weights import digest
from runtimes import onnx_gate, registry
from runtimes.engines import Engine
from runtimes.errors import RuntimeUnavailable, ToolkitError, UnsupportedModel, UsageError
from runtimes.spec import (
    ENGINE_BATCHES,
    ModelForm,
    ModelSource,
    Profile,
    RuntimeOptions,
    Target,
    TensorSpec,
    default_profile,
)

TORCH_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
"""What torch computes in by the precision of the file; its inputs and outputs stay as the file has them."""


def source(
    model: Model,
    runtime: str,
    *,
    device: str | None = None,
    options: RuntimeOptions | None = None,
    batches: Sequence[int] = (),
) -> ModelSource:
    """Returns the form of a model that a runtime opens; an engine is found in the cache, or built.

    An engine is built for the GPU `device`, with TF32 and CUDA graphs as in the options, and accepts the batches named
    beside those from 1 to 64.

    Raises:
        UsageError: The runtime opens networks in torch alone, and the weights are not at hand; or MODEL is another
            runtime's engine.
        UnsupportedModel: The engine can't be built; names the node.
    """
    form = _form(model, runtime)
    if form == "torch":
        return _torch_program(model, **_torch_dtype(model, runtime))
    if model.engine is not None:
        _check_engine_of(model.engine, runtime)
        return ModelSource(path=model.engine, label=model.name)
    if form == "engine":
        made = build_from_network if _from_network(runtime) else _engine
        built = made(model, runtime, device, options or RuntimeOptions(), batches)
        return ModelSource(path=built.path, label=model.name, built_in=None if built.cached else built.seconds)
    path = onnx_path(model)
    given = ModelSource(path=path, label=model.name)
    if model.precision == "int8" and registry.adapter(runtime).lowers_int8:
        lowered = lowered_path(path, runtime)
        return given if lowered == path else given.rewritten(lowered)
    return given


def _form(model: Model, runtime: str) -> ModelForm:
    """Returns the form that a runtime opens a model in: the first of its own that the model has."""
    forms = registry.adapter(runtime).opens
    in_torch = model.network is not None and model.precision != "int8"
    return next((form for form in forms if form != "torch" or in_torch), forms[0])


def whole_picture_source(model: Model) -> ModelSource:
    """Returns the torch form of a model that takes pictures of any height and width; raises as ``source``."""
    return _factory_source(model, "whole_picture_program", **_torch_dtype(model, registry.TORCH_RUNTIME))


def _torch_dtype(model: Model, runtime: str) -> dict[str, str]:
    """Returns what a runtime computes in that takes networks in torch, where it is not float32."""
    need_network(model)
    if model.precision == "int8":
        others = ", ".join(registry.runtimes_that(lambda found: found.lowers_int8))
        raise UnsupportedModel(
            f"runtime '{runtime}' can't run {model.name} in int8: its Q/DQ graph has no torch form here",
            fix=f"run it on {others} or an engine, or name the fp32 model for {runtime}",
        )
    return {"dtype": TORCH_DTYPES[model.precision]} if model.precision in TORCH_DTYPES else {}


def _torch_program(model: Model, **dtype: str) -> ModelSource:
    return _factory_source(
        model, "torch_program", form=model.form, names=tensor_names(model), taken=_half_input(model), **dtype
    )


def _factory_source(model: Model, factory: str, **arguments: Any) -> ModelSource:
    """Returns a factory of ``torch_form`` for a network."""
    return ModelSource(
        factory=f"resnet_onnx.workflow.torch_form:{factory}",
        arguments={"network": need_network(model), **arguments},
        label=model.name,
    )


def lowered_path(path: Path, runtime: str, *, exact: bool = False) -> Path:
    """Returns what a runtime opens in place of an int8 file: its lowering from the cache, or the file itself.

    An exact one keeps every step and clip where the portable file clips.
    """
    from converters.lowering import lowered_file

    made = lowered_file(onnx_gate.check_onnx(path), runtime, exact=exact)
    return path if made is None else made.path


def _check_engine_of(engine: Path, runtime: str) -> None:
    from runtimes import engines

    library = engines.read_record(engine).key.library
    if runtime != library:
        raise UsageError(f"{engine} is an engine of {library}, not of {runtime}", fix=f"--runtime {library}")


def _from_network(runtime: str) -> bool:
    """Whether what a runtime opens is made from a network in torch."""
    adapter = registry.adapter(runtime)
    return "torch" in adapter.opens or ("engine" in adapter.opens and adapter.built_from == "torch")


def build_from_network(
    model: Model,
    runtime: str,
    device: str | None,
    options: RuntimeOptions,
    batches: Sequence[int],
    *,
    rebuild: bool = False,
) -> Engine:
    """Compiles the network of a model into what a runtime opens, or finds it in the cache.

    Where the network does not leave the batch open, it is compiled for `batches`, 1 and 8.

    Raises:
        UsageError: The weights are not at hand.
        UnsupportedModel: The model is int8, or the network can't be compiled.
    """
    from converters.torch_compile import Compilation, build_package

    program = _torch_program(model, **_torch_dtype(model, runtime))
    network = need_network(model)
    keep_weights(network)
    arguments = {name: value for name, value in program.arguments.items() if name not in ("network", "form")}
    identity = {"network": {**network.to_json(), "weights_source": ""}, "form": model.form.to_json(), **arguments}
    job = Compilation(
        source=program,
        identity=digest(identity),
        precision=model.precision,
        options=options,
        device=registry.adapter(runtime).resolve_device(device),
        batches=(1, ENGINE_BATCHES[1], *batches),
        metadata=network_metadata(network, model.form),
    )
    return build_package(job, rebuild=rebuild)


def _engine(model: Model, runtime: Any, device: str | None, options: RuntimeOptions, batches: Sequence[int]) -> Engine:
    from converters.tensorrt_family import EngineOptions, build_engine

    path = onnx_path(model)
    try:
        shapes = profile(onnx_gate.check_onnx(path).inputs, batches)
    except UsageError as problem:
        raise UsageError(
            problem.message,
            fix=f"build an engine and give it as MODEL: resnet-onnx build {path} --runtime {runtime} --shapes …",
        ) from problem
    how = EngineOptions(tf32=options.tf32, cuda_graph=options.cuda_graph)
    return build_engine(path, library=runtime, shapes=shapes, options=how, device=device or "cuda:0")


def profile(inputs: Sequence[TensorSpec], batches: Sequence[int]) -> Profile:
    """Returns the shapes that an engine should accept: batches 1 to 64, fastest at 8, or up to a larger one requested.

    Raises:
        UsageError: The model has open dimensions besides the batch.
    """
    largest = max(batches, default=1)
    return default_profile(inputs, ENGINE_BATCHES if largest <= ENGINE_BATCHES[2] else (1, largest, largest))


def tuned(model: Model, runtime: str, options: RuntimeOptions, batches: Sequence[int]) -> RuntimeOptions:
    """Adds the shapes that a runtime builds for which builds its engine itself; without them it builds as they come."""
    if "shapes" not in registry.adapter(runtime).uses:
        return options
    try:
        return replace(options, shapes=profile(specs(model), batches))
    except UsageError:
        return options


def target(
    model: Model, runtime: str, *, device: str | None, options: RuntimeOptions, batches: Sequence[int]
) -> Target:
    """Returns a model as a runtime opens it, with the options tuned to the batches; raises as ``source``."""
    options = tuned(model, runtime, options, batches)
    found = source(model, runtime, device=device, options=options, batches=batches)
    return Target(runtime=runtime, source=found, device=device, options=options)


def gold_target(model: Model) -> Target:
    """Returns the float64 gold of a model: torch in double, or the graph in double."""
    if model.network is not None:
        return Target(runtime=registry.TORCH_RUNTIME, source=_torch_program(model, dtype="float64"))
    return Target(runtime=registry.GRAPH_RUNTIME, source=ModelSource(path=onnx_path(model), label=model.name))


def _half_input(model: Model) -> str | None:
    """Returns ``float16`` or ``bfloat16`` where the file takes that itself, else None."""
    name = model.inputs[0].dtype.name if model.inputs else ""
    return name if name in TORCH_DTYPES.values() else None


def tensor_names(model: Model) -> tuple[str, str]:
    """Returns the names of the input and of the output that holds the scores in the ONNX form of a model."""
    if model.onnx is None:
        return INPUT_NAME, OUTPUT_NAME
    checked = onnx_gate.check_onnx(model.onnx)
    return checked.inputs[0].name, (model.scores.output or checked.outputs[0]).name


def runnable(
    model: Model, names: Sequence[str], *, chosen_by_all: bool, device: str | None = None
) -> tuple[list[str], list[str]]:
    """Splits runtime names into those that can open the model and, for ``all`` only, those left out, with the reason.

    Raises:
        UsageError: A runtime was requested by name and needs weights that are not at hand.
        UnsupportedModel: A runtime that opens networks in torch was requested by name, and the model is int8.
        RuntimeUnavailable: No runtime is left.
    """
    forms = {name: _form(model, name) for name in names}
    if not chosen_by_all:
        for name in names:
            if model.engine is None and _from_network(name):
                _torch_dtype(model, name)  # says why it can't be opened
        return list(names), []
    left_out: dict[str, str] = {}
    if model.network is None:
        why = "the torch weights of this file are not at hand; --weights names them"
        left_out = {name: why for name in names if _from_network(name)}
    if model.precision != "fp32" or model.network is None:  # not every runtime has every operator in every precision
        for name in names:
            if name not in left_out and forms[name] != "engine":
                try:
                    registry.open_runtime(name, source(model, name), device=device).close()
                except UnsupportedModel as error:
                    left_out[name] = error.message
                except ToolkitError:  # more is wrong than an operator: whoever opens it next says so
                    continue
    rest = [name for name in names if name not in left_out]
    if not rest:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise RuntimeUnavailable(f"no runtime is left that can open this model: {reasons}", fix="resnet-onnx doctor")
    left_out |= {
        name: registry.adapter(name).left_out_because
        for name in registry.runtimes_that(lambda found: bool(found.left_out_because) and not found.in_all)
        if name not in names
        and model.network is not None
        and model.precision != "int8"
        and registry.probe(name, device=device).available
    }
    return rest, [f"{name} ({reason})" for name, reason in left_out.items()]
