"""``resnet-onnx doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from resnet_onnx.cli.gpu_options import Size, size_text
from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal
from runtimes.errors import FileProblem

if TYPE_CHECKING:
    from resnet_onnx.results.commands import CachedEngineRecord
    from resnet_onnx.results.document import Environment
    from runtimes.base import Availability
    from runtimes.engines import Engine


@make_command("doctor", example="resnet-onnx doctor --cache")
@click.option("--cache", "show_cache", is_flag=True, help="Show what the cache holds, in place of the machine.")
@click.option("--prune", type=Size(), metavar="SIZE", help="Remove the engines unused for longest, down to SIZE.")
def command(terminal: Terminal, *, show_cache: bool, prune: int | None) -> None:
    """Say what this machine can run, and the exact fix for what it can't."""
    if show_cache or prune is not None:
        _cache(terminal, prune)
        return
    from resnet_onnx.results.commands import Doctor
    from resnet_onnx.results.document import Environment, Gpus
    from resnet_onnx.results.writing import typed
    from runtimes import registry
    from runtimes.environment import describe_machine

    machine = typed(Environment, describe_machine())
    with terminal.status("trying every runtime"):
        answers = [registry.probe(name) for name in registry.runtime_names()]
        on_cuda = [registry.probe(name, device="cuda") for name in _also_on_cuda(machine)]
    _print_machine(terminal, machine)
    cache = _cache_place()
    terminal.line(f"Cache: {cache} (resnet-onnx doctor --cache)")
    terminal.line()
    _print_runtimes(terminal, answers)
    if on_cuda:
        terminal.line()
        terminal.line("With --device cuda:")
        _print_runtimes(terminal, on_cuda)
    terminal.emit(
        Doctor(
            runtimes=answers,
            machine=machine,
            gpu=machine.gpu or Gpus(),
            cache=cache,
            on_cuda=on_cuda,
        )
    )


def _also_on_cuda(machine: Environment) -> Sequence[str]:
    """Returns the runtimes whose default device is the CPU, and that run on the GPU that is here too."""
    from runtimes import registry

    if machine.gpu is None or not machine.gpu.gpus:
        return ()
    return registry.runtimes_that(lambda found: found.default_device == "cpu" and "cuda" in found._device_kinds())


def _cache_place() -> str:
    """Returns where the cache is, or why there is none: a user without a home is told what works all the same."""
    from runtimes import files

    try:
        return str(files.cache_root())
    except FileProblem as error:
        return f"unavailable: {error.message}; {error.fix}"


def _print_machine(terminal: Terminal, machine: Environment) -> None:
    cpu, gpu = machine.cpu, machine.gpu
    parts = [cpu.model, f"{cpu.usable_cores} usable cores"]
    if cpu.quota_cores is not None:
        parts[-1] += f" (a quota of {cpu.quota_cores:g})"
    if cpu.clock_mhz:
        parts.append(f"{cpu.clock_mhz:.0f} MHz now")
    terminal.line(", ".join([*parts, f"{(machine.memory_bytes or 0) / 2**30:.0f} GiB memory"]))
    terminal.line(f"Instruction sets: {', '.join(cpu.instruction_sets) or 'none that matter here'}")
    terminal.line(f"{machine.system} · Python {machine.python}")
    if gpu is None or not gpu.gpus:
        terminal.line(f"GPUs: {(gpu.reason if gpu else '') or 'none'}")
        return
    terminal.line(f"NVIDIA driver {gpu.driver or 'of unknown version'}, CUDA up to {gpu.cuda}")
    terminal.line()
    terminal.table(
        ["device", "GPU", "compute capability", "memory", "clock MHz", "at most", "memory MHz", "limit W", "°C"],
        [
            [
                row.device,
                row.name,
                row.compute_capability,
                f"{row.memory_bytes / 2**30:.0f} GiB",
                *(
                    "–" if value is None else f"{value:.0f}"
                    for value in (
                        row.clock_mhz,
                        row.max_clock_mhz,
                        row.memory_clock_mhz,
                        row.power_limit_w,
                        row.temperature_c,
                    )
                ),
            ]
            for row in gpu.gpus
        ],
        left=3,
    )
    for row in gpu.gpus:
        if row.throttled:
            terminal.line(f"{row.device} is held down: {', '.join(row.throttled)}")


def _print_runtimes(terminal: Terminal, answers: Sequence[Availability]) -> None:
    from runtimes import registry

    terminal.table(
        ["runtime", "", "version", "what it is, or why it can't run"],
        [
            [
                answer.name,
                "ready" if answer.available else "no",
                answer.version or "–",
                registry.adapter(answer.name).title if answer.available else answer.reason or "",
            ]
            for answer in answers
        ],
        left=4,
    )
    for answer in answers:
        if not answer.available and answer.fix:
            terminal.line()
            terminal.line(f"{answer.name}:")
            for line in answer.fix.splitlines():
                terminal.line(f"  {line}")


def _cache(terminal: Terminal, prune: int | None) -> None:
    import time

    from resnet_onnx.results.commands import Cache
    from runtimes import cache, engines, files

    removed = cache.prune(prune) if prune is not None else []
    rows, listed = cache.usage(), engines.list_engines()
    terminal.line(f"{files.cache_root()}: {size_text(sum(row.size_bytes for row in rows))}")
    terminal.line()
    terminal.table(
        ["kind", "what it is", "files", "size"],
        [[row.kind, row.about, str(row.files), size_text(row.size_bytes)] for row in rows],
        left=2,
    )
    if listed:
        terminal.line()
        terminal.table(
            ["engine of", "library", "target", "size", "last used", "accepts, or what is wrong with it"],
            [
                [
                    row.model or row.path.name[:16],
                    row.key.built_by or "–",
                    row.key.target or "–",
                    size_text(row.size_bytes),
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(row.last_used)),
                    row.problem or row.key.shapes,
                ]
                for row in listed
            ],
            left=6,
        )
    if prune is not None:
        terminal.line()
        freed = sum(row.size_bytes for row in removed)
        engine = "1 engine" if len(removed) == 1 else f"{len(removed)} engines"
        terminal.line(f"Removed {engine}, {size_text(freed)}" + (":" if removed else "."))
        for row in removed:
            terminal.line(f"  {row.name}  {size_text(row.size_bytes)}")
    terminal.emit(
        Cache(
            cache=str(files.cache_root()),
            size_bytes=sum(row.size_bytes for row in rows),
            kinds=rows,
            engines=[_listed(row) for row in listed],
            removed=removed,
        )
    )


def _listed(engine: Engine) -> CachedEngineRecord:
    from resnet_onnx.results.commands import CachedEngineRecord

    return CachedEngineRecord(
        path=str(engine.path),
        size_bytes=engine.size_bytes,
        last_used=engine.last_used,
        model=engine.model,
        library=engine.key.built_by,
        target=engine.key.target,
        shapes=engine.key.shapes,
        problem=engine.problem,
    )
