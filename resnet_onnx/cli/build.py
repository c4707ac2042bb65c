"""``resnet-onnx build``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_onnx.cli.gpu_options import Size, size_text
from resnet_onnx.cli.options import device_option, early_problem, make_command, model_options
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from converters.tensorrt_family import Progress
    from resnet_onnx.results.commands import BuildEngine
    from resnet_onnx.workflow import Model, Request
    from runtimes.base import Runtime
    from runtimes.engines import Engine
    from runtimes.onnx_gate import CheckedModel
    from runtimes.spec import Autocast, CompileMode, RuntimeOptions


@make_command("build", example="resnet-onnx build resnet50 --runtime tensorrt-rtx --target sm86 -o resnet50.engine")
@model_options()
@click.option(
    "--runtime", required=True, metavar="R", help="tensorrt, tensorrt-rtx, torch-compile; for int8 ort-cpu, openvino."
)
@click.option("--target", help="Compute capability to build for (sm86, 8.6); the GPU's here by default.")
@click.option("--shapes", metavar="NAME:MIN,OPT,MAX", help="Accepted shapes; batches 1 to 64 by default.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Copy the engine there, to deploy it.")
@click.option("--workspace", type=Size(), help="Most scratch memory of a kernel; the library's own by default.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fastest, 5 runs fastest.")
@click.option("--cuda-graph", is_flag=True, help="Keep to one stream, so that a captured graph is one chain.")
@click.option("--tf32", is_flag=True, help="Let fp32 products be rounded to TF32.")
@click.option("--no-timing-cache", is_flag=True, help="Don't use what earlier builds measured (tensorrt).")
@click.option("--autocast", type=click.Choice(["bf16", "fp16"]), help="Round products to that (torch-compile).")
@click.option("--channels-last", is_flag=True, help="Keep pictures as NHWC inside (torch-compile).")
@click.option(
    "--compile-mode",
    type=click.Choice(["default", "max-autotune"]),
    help="How long to look for kernels (torch-compile).",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads that it is compiled for (torch-compile).")
@click.option("--exact", is_flag=True, help="Clip where the portable int8 file clips (ort-cpu, openvino; slower).")
@click.option("--rebuild", is_flag=True, help="Build even where the engine is in the cache.")
@device_option
def command(
    terminal: Terminal,
    *,
    request: Request,
    runtime: str,
    target: str | None,
    shapes: str | None,
    output: Path | None,
    workspace: int | None,
    optimization_level: int | None,
    cuda_graph: bool,
    tf32: bool,
    no_timing_cache: bool,
    autocast: Autocast | None,
    channels_last: bool,
    compile_mode: CompileMode | None,
    threads: int | None,
    exact: bool,
    rebuild: bool,
    device: str | None,
) -> None:
    """Build what a runtime loads, from MODEL: an engine, or an int8 file in the form that ort-cpu or openvino runs.

    It stays in the cache, and --output copies it.

    tensorrt-rtx builds for any of its targets on a machine without a GPU; tensorrt builds on and for the GPU here.
    Precision comes from the ONNX graph, never from an option.
    """
    from converters import tensorrt_family
    from resnet_onnx import workflow
    from runtimes import engines, onnx_gate, registry
    from runtimes.spec import RuntimeOptions

    adapter = registry.adapter(runtime)
    engine_only = {
        "--target": target, "--shapes": shapes, "--workspace": workspace, "--optimization-level": optimization_level,
        "--cuda-graph": cuda_graph, "--no-timing-cache": no_timing_cache,
    }  # fmt: skip
    compiling = {
        "--autocast": autocast, "--channels-last": channels_last, "--compile-mode": compile_mode, "--threads": threads,
    }  # fmt: skip
    if adapter.lowers_int8:
        misplaced = {**engine_only, **compiling, "--tf32": tf32, "--device": device}
        return _build_lowered(terminal, request, runtime, output, exact, [n for n, v in misplaced.items() if v])
    if exact:
        lowering = " and ".join(registry.runtimes_that(lambda found: found.lowers_int8))
        raise UsageError(f"--exact is for {lowering}: an engine clips where the int8 file does")
    if adapter.built_from == "torch":
        _refuse(engine_only, "is for engines, not for what {} compiles", runtime)
        how = RuntimeOptions(
            threads=threads,
            tf32=tf32,
            autocast=autocast,
            channels_last=channels_last,
            compile_mode=compile_mode or "default",
        )
        return _build_compiled(terminal, request, adapter, output, how, device, rebuild)
    _refuse(compiling, "is for torch-compile, not for the engines of {}", runtime)
    library = _library(adapter)
    place = adapter.resolve_device(device)
    profile = tensorrt_family.parse_shapes(shapes) if shapes is not None else None
    options = tensorrt_family.EngineOptions(
        workspace_bytes=workspace,
        optimization_level=optimization_level,
        timing_cache=not no_timing_cache,
        cuda_graph=cuda_graph,
        tf32=tf32,
    )
    _check_output(output, adapter)
    _check_model(request, lambda: tensorrt_family.require_builder(library, target=target, device=place))
    with terminal.status("preparing the model"):
        model = workflow.resolve(request)
        source = onnx_gate.check_onnx(workflow.onnx_path(model))
    with _progress(terminal) as report:
        built = tensorrt_family.build_engine(
            source,
            library=library,
            target=target,
            shapes=profile,
            options=options,
            device=place,
            progress=report,
            rebuild=rebuild,
        )
    path = built.path if output is None else engines.copy_engine(built, _target_file(output, model, built))
    _print(terminal, model, built, source, path)
    terminal.emit(_document(built, runtime, model, source, path))


def _document(engine: Engine, runtime: str, model: Model, source: CheckedModel | None, path: Path) -> BuildEngine:
    from resnet_onnx.results.commands import BuildEngine, EngineLayers
    from resnet_onnx.results.document import FileRecord
    from resnet_onnx.results.writing import typed

    key = engine.key
    return BuildEngine(
        path=str(path),
        key=key.digest,
        seconds=engine.seconds,
        cached=engine.cached,
        replaced=engine.replaced,
        size_bytes=engine.size_bytes,
        sha256=engine.sha256,
        library=key.library,
        library_version=key.library_version,
        target=key.target,
        shapes={name: str(accepted) for name, accepted in key.profile.items()},
        tf32=key.tf32,
        layers=[typed(EngineLayers, row) for row in engine.layers],
        warnings=engine.warnings,
        cache_path=str(engine.path),
        runtime=runtime,
        model=model.name,
        precision=model.precision,
        onnx=None
        if source is None
        else FileRecord(path=str(source.path), sha256=source.sha256, size_bytes=source.size_bytes),
        options=key.options,
    )


def _build_lowered(
    terminal: Terminal, request: Request, runtime: str, output: Path | None, exact: bool, misplaced: list[str]
) -> None:
    """Makes the form of an int8 file that a runtime runs fastest, for users who deploy with the plain library."""
    from resnet_onnx import workflow
    from resnet_onnx.results.commands import BuildLowered
    from resnet_onnx.results.writing import typed
    from runtimes import onnx_gate

    if misplaced:
        raise UsageError(f"{', '.join(misplaced)}: for engines, not for the ONNX file that {runtime} loads")
    if output is not None and not output.is_dir() and output.suffix.lower() != ".onnx":
        raise UsageError(f"--output {output}: {runtime} loads an ONNX file", fix=f"--output {output}.onnx")
    with terminal.status("preparing the model"):
        model = workflow.resolve(request)
        made = typed(BuildLowered, workflow.build_lowered(model, runtime, output, exact=exact))
    for note in model.notes:
        terminal.note(f"{model.name}: {note}")
    checked = onnx_gate.check_onnx(Path(made.path))
    when = "made earlier, from the cache" if made.cached else f"made now in {made.seconds:.2f} s"
    terminal.line(f"{made.path}  {size_text(checked.size_bytes)}  {model.description}, for {runtime} ({when})")
    changes = made.changes
    terminal.line(
        f"{changes['unsigned']} tensors unsigned from 0, {changes['shifted']} shifted by 128, "
        f"{changes['absorbed_relu']} ReLUs absorbed, {changes['int32_bias']} biases as int32"
    )
    terminal.advice(f"Next: resnet-onnx bench {made.path} --runtime {runtime}")
    terminal.emit(made)


def _refuse(options: Mapping[str, object], what: str, runtime: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(f"{', '.join(given)} {what.format(runtime)}")


def _build_compiled(
    terminal: Terminal,
    request: Request,
    adapter: type[Runtime],
    output: Path | None,
    options: RuntimeOptions,
    device: str | None,
    rebuild: bool,
) -> None:
    """Compiles a network ahead of time for a runtime that opens machine code."""
    from resnet_onnx import workflow
    from runtimes import engines, registry

    _check_output(output, adapter)
    _check_model(request, lambda: registry.require(adapter.name, device=device))
    with terminal.status("preparing the model"):
        model = workflow.resolve(request)
        workflow.runnable(model, [adapter.name], chosen_by_all=False, device=device)
    with terminal.status("compiling: tens of seconds, where it is not in the cache"):
        built = workflow.build_from_network(model, adapter.name, device, options, (), rebuild=rebuild)
    path = built.path if output is None else engines.copy_engine(built, _target_file(output, model, built))
    for note in model.notes:
        terminal.note(f"{model.name}: {note}")
    if built.replaced:
        terminal.note(f"compiled again, because the package in the cache could not be used: {built.replaced}")
    when = "compiled earlier, from the cache" if built.cached else "compiled now"
    terminal.line(f"{path}  {size_text(built.size_bytes)}")
    how = built.key.options
    chosen = [f"autocast {how['autocast']}"] if how["autocast"] else []
    chosen += ["channels last"] if how["channels_last"] else []
    chosen.append(f"{how['threads']} thread{'s' if how['threads'] != 1 else ''} to a stream")
    terminal.line(" · ".join([model.description, f"torch.compile of torch {built.key.library_version}", *chosen]))
    terminal.line(f"For {built.key.target}")
    terminal.line(f"{built.seconds:.1f} s to compile ({when}). Key {built.key.digest[:16]}…")
    if built.key.options["batches"]:
        terminal.note(f"the network does not leave its batch open: compiled for {built.key.options['batches']} alone")
    trusted = "" if path == built.path else " --trust-engine"
    terminal.advice(f"Next: resnet-onnx bench {path} --runtime {adapter.name}{trusted}")
    terminal.emit(_document(built, adapter.name, model, None, path))


def _library(adapter: type[Runtime]) -> Any:
    """Returns the library that builds a runtime's engines, which has its name; ``UsageError`` where it has none."""
    from runtimes import registry

    if "engine" in adapter.opens:
        return adapter.name
    others = ", ".join(registry.runtimes_that(lambda found: "engine" in found.opens))
    raise UsageError(
        f"there is nothing to build for runtime '{adapter.name}': it {adapter.build_advice}",
        fix=f"make the ONNX file: resnet-onnx export; engines are built for: --runtime {others}",
    )


def _check_output(output: Path | None, adapter: type[Runtime]) -> None:
    suffixes = adapter.suffixes
    if output is not None and not output.is_dir() and output.suffix.lower() not in suffixes:
        raise UsageError(
            f"--output {output}: an engine ends in {' or '.join(suffixes)}",
            fix=f"--output {output.with_suffix(suffixes[0])}",
        )


def _check_model(request: Request, require: Callable[[], object]) -> None:
    """Checks usage, then that what builds is there, then the model."""
    from runtimes.registry import engine_suffixes

    if request.model is not None and Path(request.model).suffix.lower() in engine_suffixes():
        raise UsageError(
            f"{request.model} is an engine already; engines are built from ONNX files, networks and checkpoints"
        )
    problem = early_problem(request)
    require()
    if problem is not None:
        raise problem


def _target_file(output: Path, model: Model, built: Engine) -> Path:
    from runtimes import registry

    if not output.is_dir():
        return output
    if built.key.library in registry.runtimes_that(lambda found: found.built_from == "torch"):
        return output / f"{model.file_stem}{registry.adapter(built.key.library).suffixes[0]}"
    return output / f"{model.file_stem}-{built.key.target}.engine"


@contextmanager
def _progress(terminal: Terminal) -> Iterator[Progress]:
    """Yields what a builder reports to; phases lie inside each other and come and go."""
    with terminal.progress() as display:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = display.add_task(phase, total=steps)
            display.update(tasks[phase], completed=done, visible=done < steps)

        yield report


# ---- for people ------------------------------------------------------------------------------------------------------


def _print(terminal: Terminal, model: Model, built: Engine, source: Any, path: Path) -> None:
    from converters.tensorrt_family import describe_target

    for note in model.notes:
        terminal.note(f"{model.name}: {note}")
    if built.replaced:
        terminal.note(f"built again, because the engine in the cache could not be used: {built.replaced}")
    terminal.line(f"{path}  {size_text(built.size_bytes)} (ONNX file {size_text(source.size_bytes)})")
    terminal.line(f"{model.description} · {_title(built)} · for {describe_target(built.key.target)}")
    for name, accepted in built.key.profile.items():
        low, usual, high = (_shape(s) for s in (accepted.minimum, accepted.optimum, accepted.maximum))
        terminal.line(f"Accepts {name} {low}" + (f" to {high}, fastest at {usual}" if low != high else ""))
    when = "built earlier, from the cache" if built.cached else "built now"
    terminal.line(f"{built.seconds:.2f} s to build ({when}). Key {built.key.digest[:16]}…")
    terminal.line()
    terminal.table(["layer", "precision", "count"], [_row(row) for row in built.layers], left=2)
    for warning in built.warnings:
        terminal.note(f"{_title(built)} warns: {warning}")
    terminal.line()
    trusted = "" if path == built.path else " --trust-engine"
    terminal.advice(
        f"Next, on a machine with such a GPU: resnet-onnx bench {path} --runtime {built.key.library}{trusted}"
    )


def _row(row: Mapping[str, Any]) -> list[str]:
    return [str(row["type"]), str(row["precision"]) or "–", str(row["count"])]


def _title(built: Engine) -> str:
    from runtimes import trt_shim

    return f"{trt_shim.KNOWN[built.key.library].title} {built.key.library_version}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)
