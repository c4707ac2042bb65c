"""Records the noise of a machine as paired turns of one model, and replays it: how often is a comparison wrong?

python benchmarks/paired_noise.py record FILE.json [--model resnet18] [--seconds 300]
python benchmarks/paired_noise.py simulate FILE.json… [--comparisons 10000]

A replay takes the recorded turns from a random one on, as they followed each other: bursts stay whole. A coin gives
each block its order, as in ``compare``, and the new side's turns are longer by what the work is more. The interval is
looked at after every block.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_onnx import workflow
from resnet_onnx.bench.always_valid import ERROR, RatioSequence, log_wealth
from resnet_onnx.bench.equivalence import TOLERANCE
from resnet_onnx.bench.paired import ORDERS, OpenedSide, Side, run_pair
from resnet_onnx.workflow.opening import target
from runtimes import files
from runtimes.environment import describe_machine
from runtimes.spec import RuntimeOptions


def record(path: Path, model: str, seconds: float) -> None:
    resolved = workflow.resolve(workflow.Request(model=model))
    opened = target(resolved, "ort-cpu", device=None, options=RuntimeOptions(streams=1), batches=(1,))
    side = Side(target=opened, feeds=workflow.sample_feeds(resolved, 1))
    with OpenedSide(side) as first, OpenedSide(side) as second:
        first.prepare()
        second.prepare()
        run = run_pair(first, second, enough=lambda _: False, duration_s=seconds, coin=random.Random())
    content = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": model,
        "runtime": "ort-cpu",
        "cpu": describe_machine()["cpu"]["model"],
        "turns_us": [round(1e6 * turn) for block in run.blocks for turn in block.turns_s],
    }
    files.write_text(path, json.dumps(content) + "\n")
    print(f"{path}: {len(run.blocks)} blocks in {run.spent_s:.0f} s")


def read_turns(path: Path) -> NDArray[np.float64]:
    """Returns the recorded turns, seconds [turn]."""
    return np.asarray(json.loads(path.read_text())["turns_us"], np.float64) / 1e6


def replayed(turns: NDArray[np.float64], ratio: float, blocks: int, coin: random.Random) -> list[float]:
    """Returns the log ratios of a comparison on recorded noise, where the new side's speed is `ratio` of the base's."""
    start = coin.randrange(len(turns))
    found = []
    for four in np.take(turns, range(start, start + 4 * blocks), mode="wrap").reshape(-1, 4):
        outer, inner = four[0] + four[3], four[1] + four[2]
        base, new = (outer, inner) if coin.choice(ORDERS) == "ABBA" else (inner, outer)
        found.append(math.log(base / new) + math.log(ratio))
    return found


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What became of a comparison that is looked at after every block.

    Attributes:
        missed: Whether the interval missed the true ratio at any moment.
        verdict: The first that was certain.
        after: Blocks until then.
    """

    missed: bool
    verdict: str
    after: int


def judge(values: list[float], ratio: float, *, tolerance: float = TOLERANCE) -> Replay:
    """Returns what the comparison would have said; the interval excludes a ratio where the bets on it have won."""
    array, scales = np.asarray(values), RatioSequence(values).scales
    needed, edge = math.log(2 / ERROR), -math.log1p(-tolerance)

    def above(theta: float) -> NDArray[np.bool_]:
        return np.asarray(log_wealth(array, scales, theta) >= needed)

    def below(theta: float) -> NDArray[np.bool_]:
        return np.asarray(log_wealth(-array, scales, -theta) >= needed)

    said = {"slower": below(-edge), "faster": above(edge), "same": above(-edge) & below(edge)}
    firsts = {name: int(np.argmax(holds)) + 1 for name, holds in said.items() if holds.any()}
    verdict = min(firsts, key=lambda name: firsts[name], default="inconclusive")
    missed = bool((above(math.log(ratio)) | below(math.log(ratio))).any())
    return Replay(missed=missed, verdict=verdict, after=firsts.get(verdict, len(values)))


def simulate(path: Path, comparisons: int, blocks: int) -> None:
    turns, coin = read_turns(path), random.Random(0)
    spread = np.std([math.log((t[0] + t[3]) / (t[1] + t[2])) for t in turns.reshape(-1, 4)])
    print(f"{path.name}: {len(turns) // 4} blocks of {4e3 * np.median(turns):.0f} ms, deviation {100 * spread:.1f} %")
    for ratio in (1.0, 1 / 1.05):
        found = [judge(replayed(turns, ratio, blocks, coin), ratio) for _ in range(comparisons)]
        counts = {
            name: sum(one.verdict == name for one in found) for name in ("same", "slower", "faster", "inconclusive")
        }
        decided = [one.after for one in found if one.verdict != "inconclusive"]
        print(
            f"  {'the same' if ratio == 1 else '5 % more work'}, {comparisons:,} times, {blocks} blocks at most: "
            + ", ".join(f"{count:,} {name}" for name, count in counts.items())
            + f"; interval wrong at any moment in {100 * sum(one.missed for one in found) / comparisons:.1f} %"
            + (f"; blocks until decided, median {np.median(decided):.0f}" if decided else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--model", default="resnet18")
    recording.add_argument("--seconds", type=float, default=300.0)
    replaying = commands.add_parser("simulate")
    replaying.add_argument("files", type=Path, nargs="+")
    replaying.add_argument("--comparisons", type=int, default=10_000)
    replaying.add_argument("--blocks", type=int, default=1000)
    given = parser.parse_args()
    if given.command == "record":
        record(given.file, given.model, given.seconds)
        return
    for path in given.files:
        simulate(path, given.comparisons, given.blocks)


if __name__ == "__main__":
    main()
