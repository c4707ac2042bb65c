"""Pairs of the same work, and of 5 % more, compared in turns: on a machine left alone, and beside a neighbour.

python benchmarks/compare_study.py [--minutes 30]     goes on where it was; every pair is a line of the record
python benchmarks/compare_study.py --check 10         ten pairs on a machine left alone; exit code 1 for a wrong verdict
python benchmarks/compare_study.py --table            writes docs/compare-study.md from the record

The network is resnet18, batch 1, ONNX Runtime on all cores; the tolerance is 2 %, a pair takes 120 s at most. The
neighbour is a process that loads one core in random bursts of 0.3 to 3 s, with pauses as long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resnet_onnx import workflow
from resnet_onnx.bench.paired import PairedPlan
from resnet_onnx.results.compare import ComparedRow
from runtimes.environment import describe_machine

RECORD = Path(__file__).with_name("compare_study.jsonl")
TABLE = Path(__file__).parents[1] / "docs" / "compare-study.md"

PAIRS = {("alone", "same"): 40, ("beside", "same"): 40, ("alone", "more"): 20, ("beside", "more"): 20}
"""Pairs by machine and work."""

SECONDS = 120.0

QUIET_CORES = 0.1
"""What other programs may use on a machine that counts as left alone."""

_NEIGHBOUR = """
import random, time
while True:
    end = time.perf_counter() + random.uniform(0.3, 3)
    while time.perf_counter() < end: pass
    time.sleep(random.uniform(0.3, 3))
"""
_WORDS = {
    "alone": "left alone", "beside": "beside a neighbour on one core", "same": "the same", "more": "5 % more work",
}  # fmt: skip


@contextlib.contextmanager
def neighbour(there: bool) -> Iterator[None]:
    if not there:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def with_more_work(path: Path, target: Path) -> Path:
    """Writes resnet18 with two more convolutions before its last stage: 5.0 % more multiply-adds."""
    model = onnx.load(str(path))
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    place, last = next(
        (index, node) for index, node in enumerate(model.graph.node)
        if node.op_type == "Conv" and weights.get(node.input[1]) == [512, 256, 3, 3]
    )  # fmt: skip
    random, nodes, data = np.random.default_rng(0), [], last.input[0]
    for name, (taken, made) in {"more_1": (256, 100), "more_2": (100, 256)}.items():
        values = random.standard_normal((made, taken, 3, 3), np.float32) / np.sqrt(np.float32(9 * taken))
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [data, f"{name}.weight"], [name], name=name, pads=[1, 1, 1, 1]))
        data = name
    last.input[0] = data
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    onnx.save(model, str(target))
    return target


def models(folder: Path) -> dict[str, workflow.Model]:
    base = workflow.resolve(workflow.Request(model="resnet18"))
    more = with_more_work(workflow.onnx_path(base), folder / "more.onnx")
    return {"same": base, "more": workflow.resolve(workflow.Request(model=str(more)))}


def compare(found: dict[str, workflow.Model], machine: str, work: str) -> ComparedRow:
    plan = workflow.PairsPlan(runtimes=("ort-cpu",), pair=PairedPlan(duration_s=SECONDS))
    with neighbour(machine == "beside"):
        (row,) = workflow.compare_models(found["same"], found[work], plan).rows
    return row


def line(row: ComparedRow, machine: str, work: str) -> dict[str, Any]:
    busy = row.disturbance.other_programs_cores if row.disturbance is not None else 0.0
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cpu": describe_machine()["cpu"]["model"],
        "machine": machine, "work": work, "verdict": row.verdict, "ratio": row.ratio, "ci95": row.ci95,
        "seconds": row.measured_s, "blocks": row.block_count, "other_programs_cores": busy,
    }  # fmt: skip


def read() -> list[dict[str, Any]]:
    return [json.loads(text) for text in RECORD.read_text().splitlines()] if RECORD.exists() else []


def study(minutes: float) -> None:
    """Compares what is missing, the cases in turns; no pair begins that might end after the time."""
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        found = models(Path(folder))
        while time.monotonic() + SECONDS + 20 < end:
            counts = Counter((each["machine"], each["work"]) for each in read())
            left = [case for case, wanted in PAIRS.items() if counts[case] < wanted]
            if not left:
                break
            machine, work = min(left, key=lambda case: counts[case] / PAIRS[case])
            made = line(compare(found, machine, work), machine, work)
            if machine == "alone" and made["other_programs_cores"] > QUIET_CORES:
                print(f"not left alone: others used {made['other_programs_cores']:.1f} cores; this pair does not count")
                continue
            with RECORD.open("a") as file:
                file.write(json.dumps(made) + "\n")
            print(
                f"{_WORDS[machine]}, {_WORDS[work]}: {made['verdict']} ({made['ratio']:.3f}) in {made['seconds']:.0f} s"
            )


def check(pairs: int) -> bool:
    """Compares some pairs on a machine left alone; returns whether no verdict was wrong."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        found = models(Path(folder))
        for index in range(pairs):
            work = "same" if index % 2 == 0 else "more"
            row = compare(found, "alone", work)
            wrong += row.verdict in (("slower", "faster") if work == "same" else ("same", "faster"))
            print(f"{_WORDS[work]}: {row.verdict}, {row.ratio:.3f} in {row.measured_s:.0f} s, {row.block_count} blocks")
    return not wrong


def table() -> str:
    """Returns the counts as Markdown, by processor."""
    lines = [
        "# Pairs compared in turns",
        "",
        "Written by `python benchmarks/compare_study.py --table` from its record (`benchmarks/compare_study.jsonl`); "
        "`make compare-study` adds pairs, in pieces of at most 30 minutes.",
        "resnet18, batch 1, ONNX Runtime on all cores, tolerance 2 %, at most 120 s a pair.",
        "",
        "| processor | machine | work | pairs | same | slower | faster | inconclusive | median seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = read()
    if not rows:
        return "\n".join([*lines[:-2], "No pair has been recorded yet."]) + "\n"
    for cpu in dict.fromkeys(row["cpu"] for row in rows):
        for (machine, work), wanted in PAIRS.items():
            own = [r for r in rows if (r["cpu"], r["machine"], r["work"]) == (cpu, machine, work)]
            if own:
                counts = Counter(row["verdict"] for row in own)
                cells = [counts[name] for name in ("same", "slower", "faster", "inconclusive")]
                seconds = np.median([row["seconds"] for row in own])
                head = [cpu, _WORDS[machine], _WORDS[work], f"{len(own)} of {wanted}"]
                lines.append(f"| {' | '.join(map(str, [*head, *cells, f'{seconds:.0f}']))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--check", type=int, metavar="PAIRS")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.check:
        return 0 if check(given.check) else 1
    if not given.table:
        study(given.minutes)
    TABLE.write_text(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
