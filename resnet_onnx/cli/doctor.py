"""``resnet-onnx doctor``."""

from __future__ import annotations

from resnet_onnx.cli.options import make_command
from resnet_onnx.cli.terminal import Terminal


@make_command("doctor", example="resnet-onnx doctor --json")
def command(terminal: Terminal) -> None:
    """Say what this machine can run, and the exact fix for what it can't."""
    from runtimes import files, nvidia, registry
    from runtimes.environment import describe_machine

    machine = describe_machine()
    with terminal.status("trying every runtime"):
        answers = [registry.probe(name) for name in registry.RUNTIME_NAMES]
    gpu = nvidia.describe()
    cpu = machine["cpu"]
    terminal.line(
        f"{cpu['model']}, {cpu['usable_cores']} usable cores, {machine['memory_bytes'] / 2**30:.0f} GiB memory"
    )
    terminal.line(f"Instruction sets: {', '.join(cpu['instruction_sets']) or 'none that matter here'}")
    terminal.line(f"{machine['system']} · Python {machine['python']}")
    found = gpu.get("gpus") or []
    terminal.line(f"GPUs: {', '.join(str(g.get('name')) for g in found) if found else gpu.get('reason') or 'none'}")
    terminal.line(f"Cache: {files.cache_root()}")
    terminal.line()
    terminal.table(
        ["runtime", "", "version", "what it is, or why it can't run"],
        [
            [
                answer.name,
                "ready" if answer.available else "no",
                answer.version or "–",
                registry.title(answer.name) if answer.available else answer.reason,
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
    terminal.emit(
        {
            "runtimes": [
                {
                    "name": answer.name,
                    "available": answer.available,
                    "version": answer.version,
                    "devices": answer.devices,
                    "reason": answer.reason or None,
                    "fix": answer.fix or None,
                }
                for answer in answers
            ],
            "machine": machine,
            "gpu": gpu,
            "cache": str(files.cache_root()),
        }
    )
