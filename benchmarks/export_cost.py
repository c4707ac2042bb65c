"""What our export costs beside a bare ``torch.onnx.export`` script of the same depth, in time and memory.

    python benchmarks/export_cost.py [--depths 18,50,152] [--rounds 3]

Both run as whole processes, in turn, within one run. Ours makes the random weights (first round only; they are cached),
sets batch norm's statistics, exports, verifies at three batch sizes and writes a manifest. Targets: at most 2 times the
wall time and 1.5 times the peak memory. CPU time is printed too, since wall time suffers from neighbours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BARE = """
import sys, torch, torchvision
model = getattr(torchvision.models, f"resnet{sys.argv[1]}")(weights=None).eval()
example = torch.randn(2, 3, 224, 224)
torch.onnx.export(model, (example,), sys.argv[2], dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
                  input_names=["input"], output_names=["logits"], external_data=False)
"""
MOST_TIME, MOST_MEMORY = 2.0, 1.5


@dataclass(frozen=True)
class Cost:
    """What a process used: wall and CPU seconds, peak resident bytes."""

    wall: float
    cpu: float
    peak: float


def run(command: list[str], environment: dict[str, str]) -> Cost:
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        message = process.stderr.read().decode(errors="replace") if process.stderr else ""
        sys.exit(f"{' '.join(command[:4])}… failed: {message[-500:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="18,50,152")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    worst_time = worst_memory = 0.0
    print("depth       ours wall s   bare wall s   ratio   CPU ratio   ours peak MB   bare peak MB   ratio")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        environment = {**os.environ, "RESNET_ONNX_CACHE": f"{folder}/cache"}
        for depth in arguments.depths.split(","):
            ours, bare = [], []
            for _ in range(arguments.rounds):
                target = f"{folder}/{depth}.onnx"
                ours.append(
                    run([sys.executable, "-m", "resnet_onnx", "export", "--depth", depth, "-o", target], environment)
                )
                bare.append(run([sys.executable, str(script), depth, f"{folder}/bare.onnx"], environment))
            first = ours[0].wall / bare[0].wall
            times = [o.wall / b.wall for o, b in zip(ours, bare, strict=True)]
            memories = [o.peak / b.peak for o, b in zip(ours, bare, strict=True)]
            cpu = statistics.median(o.cpu / b.cpu for o, b in zip(ours, bare, strict=True))
            worst_time = max(worst_time, first, statistics.median(times))
            worst_memory = max(worst_memory, *memories)
            print(
                f"resnet{depth:<5} {statistics.median(o.wall for o in ours):>10.1f} "
                f"{statistics.median(b.wall for b in bare):>13.1f} {statistics.median(times):>7.2f} {cpu:>11.2f} "
                f"{max(o.peak for o in ours) / 1e6:>14.0f} {max(b.peak for b in bare) / 1e6:>14.0f} "
                f"{statistics.median(memories):>7.2f}   (first, nothing cached: {first:.2f})",
                flush=True,
            )
    print(f"worst: time {worst_time:.2f} of {MOST_TIME}, memory {worst_memory:.2f} of {MOST_MEMORY}")
    return 0 if worst_time <= MOST_TIME and worst_memory <= MOST_MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
