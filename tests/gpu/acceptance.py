"""A quarter of an hour on an NVIDIA machine: what of this project works there, and what the figures are.

Each step is a process with a time limit of its own. Its result is written to ``OUT/results.jsonl`` as it comes, with
everything that it said in ``OUT/STEP.txt``; ``OUT/summary.md`` has a line for each. A step whose library or GPU is
absent is left out, with the reason. With ``--device cpu`` it is a dry run of the same steps on a small network.

Not executed on a GPU yet: the dry run is all that has been tried.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

SMALL_WHEELS_KIB = {
    "click": 123, "rich": 303, "markdown_it": 95, "mdurl": 10, "pygments": 1221, "filelock": 239, "psutil": 152,
    "msgspec": 231, "safetensors": 504, "jinja2": 132, "markupsafe": 22, "ml_dtypes": 400, "pynvml": 57,
}  # fmt: skip
"""Modules that the steps import and that a machine with torch may lack; sizes of their wheels for Python 3.12."""

H200_BF16_FLOPS = 790e12
"""A dense H200's bf16 rate that large matrix products reach; what shares are of."""
RESNET50_FLOPS = 8.18e9
"""Of one picture of 224 × 224, two for a multiply-add."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process.

    Attributes:
        runtime: What must be available on the device; "" for nothing.
        command: Arguments of Python.
        in_dry_run: Whether it makes sense without a GPU.
    """

    name: str
    limit_s: float
    command: Sequence[str]
    runtime: str = ""
    in_dry_run: bool = True


@dataclass(kw_only=True)
class Result:
    """What became of a step: ``done``, ``failed``, ``timed out`` or ``skipped``, and why."""

    step: str
    state: str
    seconds: float = 0.0
    reason: str = ""
    figures: Any = field(default_factory=dict)


def steps(device: str) -> list[Step]:
    """Returns the steps in their order; what matters most comes first."""
    gpu = device != "cpu"
    model, seconds = ("resnet50", "2") if gpu else ("cifar-resnet20", "0.2")
    ours = [sys.executable, str(Path(__file__).resolve())]

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "resnet_onnx", *arguments, "--json"]

    def bench(name: str, runtime: str, *more: str, batches: str = "1,8,64", limit_s: float = 50) -> Step:
        batches = batches if gpu else "1"
        where = [] if runtime == "ort-cpu" else ["--device", device]
        line = command("bench", model, "--runtime", runtime, *where, "--batch", batches, "--duration", seconds, *more)
        return Step(name=name, limit_s=limit_s, runtime=runtime, command=line, in_dry_run=name == "bench fp32 torch")

    parity = ["--device", device] if gpu else []
    onnx = "ort-cuda" if gpu else "ort-cpu"
    found = [
        Step(name="doctor", limit_s=60, command=command("doctor")),
        Step(name="training", limit_s=60, command=[*ours, "--step", "training", "--device", device]),
        Step(name="sensors", limit_s=40, command=[*ours, "--step", "sensors", "--device", device], in_dry_run=False),
        *(
            Step(
                name=f"parity {name}",
                limit_s=90,
                runtime=name,
                command=command("parity", model, "--runtimes", name, *parity),
            )
            for name in ("torch", onnx)
        ),
        Step(
            name="contract",
            limit_s=120,
            command=[
                sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--timeout", "100",
                str(ROOT / "tests/test_runtime_contract.py"), "-k", "Cuda or TensorRT and not every_case",
            ],
            in_dry_run=False,
        ),
        bench("bench fp32 torch", "torch", batches="1,8,64,256"),
        bench("bench tf32 torch", "torch", "--tf32"),
        bench("bench bf16 torch", "torch", "--autocast", "bf16", "--channels-last", batches="1,8,64,256"),
        bench("bench fp16 torch", "torch", "--autocast", "fp16", "--channels-last"),
        bench("graphs torch", "torch", "--cuda-graph", batches="1,8"),
        bench("bench fp32 ort-cuda", onnx),
        bench("search heuristic", onnx, "--no-exhaustive-search", batches="1,64"),
        bench("streams ort-cuda", onnx, "--streams", "2", batches="1,8"),
        bench("graphs ort-cuda", onnx, "--cuda-graph", "--streams", "1", batches="1,8"),
        bench("tensorrt", "tensorrt", limit_s=180),
        bench("tensorrt-rtx", "tensorrt-rtx", limit_s=120),
        bench("ort-tensorrt", "ort-tensorrt", limit_s=180),
    ]  # fmt: skip
    return found


# ---- steps that are no command of ours


def training(device: str) -> dict[str, Any]:
    """Returns how often a training step waits for the GPU, and how many pictures a second it takes."""
    import numpy as np
    import torch

    from resnet_onnx.models import catalog
    from resnet_onnx.models.build import build
    from resnet_onnx.training.augmentation import BatchAugmentation, Normaliser, Shard
    from resnet_onnx.training.distributed import SINGLE_PROCESS
    from resnet_onnx.training.loaders import MemoryLoader
    from resnet_onnx.training.recipes import Recipe
    from resnet_onnx.training.step import TrainState

    gpu = device != "cpu"
    name, batch, count = ("resnet50", 64, 20) if gpu else ("cifar-resnet20", 4, 2)
    entry, where = catalog.lookup(name), torch.device(device if ":" in device or not gpu else f"{device}:0")
    recipe = Recipe(
        name="acceptance", source="acceptance.py", learning_rate=0.01, epochs=1, batch_size=batch, crop="pad", pad=4,
        flip=True, ema=0.99, precision="bf16" if gpu else "fp32",
    )  # fmt: skip
    state = TrainState(build(entry.config), recipe, where, SINGLE_PROCESS)
    normaliser = Normaliser(entry.preprocessing, where)
    size = entry.preprocessing.image_size
    total = batch * (count + 3)
    loader = MemoryLoader(torch.zeros((total, 3, size, size), dtype=torch.uint8), np.arange(total) % 10, where)
    augmentation = BatchAugmentation(recipe, normaliser, 1000, torch.Generator(), Shard(first=0, total=batch))
    state.train_mode()
    begin, waits = 0.0, 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for number, (pictures, labels) in enumerate(loader.batches(torch.arange(total), batch, epoch=0)):
            if number == 3:
                if gpu:
                    torch.cuda.synchronize()
                    torch.cuda.set_sync_debug_mode("warn")
                seen.clear()
                begin = time.perf_counter()
            inputs, targets = augmentation(pictures, labels, mix_seed=number)
            state.step(inputs, targets, 0.01)
        waits = sum("synchroniz" in str(each.message) for each in seen)
        if gpu:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return {"model": name, "batch": batch, "steps": count, "waits": waits, "images_per_second": batch * count / seconds}


def sensors(device: str) -> dict[str, Any]:
    """Returns clock and power after a pause: at once, after a slice, and as the slice's energy says."""
    import torch

    from runtimes import nvidia

    gpu = nvidia.require_gpu(device)
    matrix = torch.ones((8192, 8192), dtype=torch.bfloat16, device=device)

    def busy(seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            matrix @ matrix
            torch.cuda.synchronize()

    rows = []
    busy(1.0)
    for seconds in (0.0, 0.02, 0.1, 0.5, 2.0):
        time.sleep(2.0)
        before, held = nvidia.total_energy_j(gpu), nvidia.throttled_s(gpu)
        begin = time.perf_counter()
        busy(seconds)
        spent, after = time.perf_counter() - begin, nvidia.total_energy_j(gpu)
        seen = nvidia.read_sensors(gpu)
        energy = None if before is None or after is None else after - before
        rows.append(
            {
                "busy_s": spent,
                "clock_mhz": seen.clock_mhz,
                "power_now_w": seen.power_w,
                "power_by_energy_w": None if energy is None or not spent else energy / spent,
                "held_s": {name: value - held[name] for name, value in nvidia.throttled_s(gpu).items() if name in held},
            }
        )
    return {"gpu": str(gpu), "after_a_pause": rows}


# ---- running them


def unavailable(runtime: str, device: str) -> str:
    """Returns why a runtime can't run on the device, or ""."""
    if not runtime:
        return ""
    from runtimes import registry
    from runtimes.errors import UsageError

    try:
        answer = registry.probe(runtime, device=device)
    except UsageError as wrong:
        return wrong.message
    return "" if answer.available else str(answer.reason)


def run(step: Step, device: str, out: Path, left_s: float) -> Result:
    """Runs one step in a process of its own."""
    if device == "cpu" and not step.in_dry_run:
        return Result(step=step.name, state="skipped", reason="needs an NVIDIA GPU: this is a dry run on the CPU")
    if reason := unavailable(step.runtime, device):
        return Result(step=step.name, state="skipped", reason=reason)
    limit_s = min(step.limit_s, left_s)
    if limit_s < 5:
        return Result(step=step.name, state="skipped", reason="no time is left")
    begin = time.monotonic()
    log = out / f"{step.name.replace(' ', '-')}.txt"
    try:
        done = subprocess.run(step.command, capture_output=True, text=True, timeout=limit_s, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        log.write_text(f"{late.stdout or ''}\n{late.stderr or ''}")
        return Result(step=step.name, state="timed out", seconds=limit_s, reason=f"it took more than {limit_s:.0f} s")
    log.write_text(f"$ {' '.join(step.command)}\n{done.stdout}\n{done.stderr}")
    result = Result(step=step.name, state="done" if done.returncode == 0 else "failed")
    result.seconds = round(time.monotonic() - begin, 1)
    try:
        result.figures = figures(json.loads(done.stdout))
    except ValueError:
        result.figures = {"said": done.stdout.strip().splitlines()[-1:]}
    if done.returncode:
        error = result.figures.get("error") if isinstance(result.figures, dict) else None
        result.reason = str(error or (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return result


def figures(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a reader wants of a command's document."""
    if "error" in document:
        return {"error": document["error"]["message"]}
    if "runtimes" in document:
        return {row["name"]: row["reason"] or row["version"] for row in (*document["runtimes"], *document["on_cuda"])}
    if "results" not in document:
        return dict(document)
    rows = []
    for row in document["results"]:
        if "relative_rmse" in row:
            rows.append({name: row[name] for name in ("runtime", "passed", "relative_rmse", "budget", "reason")})
            continue
        kept = {name: row.get(name) for name in ("batch", "streams", "images_per_second", "stable", "unstable_reason")}
        kept |= {name: row.get(name) for name in ("latency_ms", "gpu", "energy", "split", "roofline", "error")}
        if row.get("images_per_second") and row.get("model") == "resnet50":
            kept["share_of_790_tflops"] = row["images_per_second"] * RESNET50_FLOPS / H200_BF16_FLOPS
        rows.append(kept)
    return {"rows": rows}


def missing_modules() -> dict[str, int]:
    """Returns the small modules that are not here, with the sizes of their wheels."""
    return {name: size for name, size in SMALL_WHEELS_KIB.items() if importlib.util.find_spec(name) is None}


def main() -> int:
    """Runs the steps; exit code 1 where one failed or took too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="gpu-acceptance", help="folder for the results")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for a dry run")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all steps together")
    parser.add_argument("--only", default="", help="comma list of steps")
    parser.add_argument("--step", choices=["training", "sensors"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps({"training": training, "sensors": sensors}[asked.step](asked.device)))
        return 0
    if lacking := missing_modules():
        print("missing, wheels for Python 3.12: " + ", ".join(f"{n} ({size} KiB)" for n, size in lacking.items()))
        return 3
    out = Path(asked.out)
    out.mkdir(parents=True, exist_ok=True)
    wanted = [name.strip() for name in asked.only.split(",") if name.strip()]
    end = time.monotonic() + 60 * asked.minutes
    bad = 0
    (out / "summary.md").write_text("| step | state | seconds | why |\n|---|---|---|---|\n")
    for step in steps(asked.device):
        if wanted and step.name not in wanted:
            continue
        result = run(step, asked.device, out, end - time.monotonic())
        bad += result.state in ("failed", "timed out")
        with (out / "results.jsonl").open("a") as results:
            results.write(json.dumps(asdict(result)) + "\n")
        with (out / "summary.md").open("a") as summary:
            summary.write(f"| {step.name} | {result.state} | {result.seconds:.0f} | {result.reason[:200]} |\n")
        print(f"{step.name:22} {result.state:9} {result.seconds:5.0f} s  {result.reason[:100]}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
