"""How good the answers of ``optimize`` are: the regret against all candidates, and the printed ratio in later runs.

python benchmarks/optimize_study.py [--minutes 30]    goes on where it was; every step is a line of the record
python benchmarks/optimize_study.py --table           writes the table into docs/optimize.md from the record

For each net: ``optimize`` answers within a quarter of the time that follows; every candidate is measured once; those
within 10 % of the best then meet the answer in turns. The regret is what the best of them is faster by. Then the
answer's printed ratio to the reference is measured ten times more. Real data: $RESNET_ONNX_DATA, or ../shared/data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx.bench.paired import ContenderFailed, PairedRun, run_pair
from resnet_onnx.optimization.admission import Admission, batches_of
from resnet_onnx.optimization.candidate import Candidate, CandidateFailed
from resnet_onnx.optimization.figures import against_reference
from resnet_onnx.optimization.optimizing import optimize_model
from resnet_onnx.optimization.original import Original
from resnet_onnx.optimization.pictures import open_pictures
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.optimization.track import RealTrack
from resnet_onnx.workflow import Model, Request, decoding, resolve
from runtimes.environment import describe_machine

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RESNET_ONNX_DATA") or ROOT.parent / "shared" / "data").expanduser()
RECORD = Path(__file__).with_name("optimize_study.jsonl")
PAGE = ROOT / "docs" / "optimize.md"
BEGIN, END = "<!-- study: benchmarks/optimize_study.py -->", "<!-- end of study -->"

NETS = ("cifar-resnet20", "cifar-resnet32", "resnet18", "resnet50", "plain34")
BUDGET_S = {"cifar-resnet20": 300.0, "cifar-resnet32": 300.0}
"""Of ``optimize``; 600 where nothing is said."""

ONCE_S, PAIR_S, LATER = 3.0, 60.0, 10
NEAR = 0.9
"""Candidates at least this fast, by the one measurement, meet the answer in turns."""


def network(name: str) -> tuple[Model, str | None]:
    """Returns a net, and the data that it is judged by: real weights and pictures where there are any."""
    weights = DATA / f"{name}.th"
    if weights.is_file():
        statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        request = Request(model=name, weights=str(weights), labels="cifar10", **statistics)  # type: ignore[arg-type]
        return resolve(request), str(DATA / "cifar10-jpeg.zip")
    return resolve(Request(model=name)), None


def read() -> dict[str, Any]:
    """Returns the finished steps by their keys."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {found["step"]: found for found in map(json.loads, lines)}


def plan_of(name: str, data: str | None) -> OptimizePlan:
    return OptimizePlan(
        data=data,
        max_drop=0.5 if data is not None else None,
        time_budget_s=BUDGET_S.get(name, 600.0),
        resume=True,
        journal=RECORD.with_name(f"optimize_study-{name}.journal"),
    )


class Study:
    """Does what is missing, step by step, until the time is over."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.done = read()
        self.cpu = describe_machine()["cpu"]["model"]

    def left_s(self) -> float:
        """Seconds until the time is over."""
        return self.end - time.monotonic()

    def step(self, key: str, measure: Callable[[], Any], needs_s: float) -> Any:
        """Returns the result of a step, or raises ``TimeoutError`` where it might not end in time."""
        if key not in self.done:
            if self.left_s() < needs_s:
                raise TimeoutError
            begin = time.monotonic()
            result = measure()
            found = {"step": key, "cpu": self.cpu, "result": result, "seconds": time.monotonic() - begin}
            with RECORD.open("a") as file:
                file.write(json.dumps(found) + "\n")
            self.done[key] = found
            print(f"{key}: {json.dumps(result)[:140]}")
        return self.done[key]["result"]

    def net(self, name: str) -> None:
        """Does what is missing of a net."""
        model, data = network(name)
        plan = plan_of(name, data)
        answer = self.step(f"{name} answer", lambda: answered(model, plan), 1.4 * plan.time_budget_s)
        if answer is None:
            return
        chosen = Candidate(**answer["candidate"])
        with track_of(model, plan, answer["batches"]) as track:
            once = {
                text: self.step(f"{name} once {text}", lambda each=each: measured(track, each), 30.0)  # type: ignore[misc]
                for each in (Candidate(**row) for row in answer["all"])
                for text in (str(each),)
            }
            best = max((rate for rate in once.values() if rate is not None), default=0.0)
            for each in (Candidate(**row) for row in answer["all"]):
                rate = once[str(each)]
                if each != chosen and rate is not None and rate >= NEAR * best:
                    self.step(f"{name} pair {each}", lambda each=each: paired(track, chosen, each), PAIR_S + 40)  # type: ignore[misc]
            for number in range(LATER):
                self.step(f"{name} later {number}", lambda: later(track, chosen), 60.0)


def answered(model: Model, plan: OptimizePlan) -> Any:
    begin = time.monotonic()
    found = optimize_model(model, plan)
    if found.answer is None:
        return None
    admitted = {(form.runtime, form.precision) for form in found.forms if form.admitted}
    rows = [row for row in found.candidates if row.batch is not None and (row.runtime, row.precision) in admitted]
    return {
        "candidate": candidate_of(found.answer),
        "all": [candidate_of(row) for row in rows],
        "batches": sorted({row.batch for row in rows}),
        "over_reference": found.answer.over_reference,
        "over_reference_ci95": found.answer.over_reference_ci95,
        "seconds": time.monotonic() - begin,
    }


def candidate_of(row: Any) -> dict[str, Any]:
    return {
        "runtime": row.runtime, "precision": row.precision, "batch": row.batch, "streams": row.streams,
        "threads": row.threads or 0,
    }  # fmt: skip


@contextlib.contextmanager
def track_of(model: Model, plan: OptimizePlan, batches: list[int]) -> Iterator[RealTrack]:
    pictures = None if plan.data is None else open_pictures(model, plan.data)
    with Original(model=model, outputs=None if pictures is None else pictures.outputs) as original:
        admission = Admission(original=original, plan=plan, pictures=pictures, batches=batches_of(batches))
        with RealTrack(
            admission=admission, sqnr_db={}, scope="end-to-end", feed_factory=decoding(model, plan.data)
        ) as track:
            yield track


def measured(track: RealTrack, candidate: Candidate) -> float | None:
    try:
        track.open(candidate)
    except CandidateFailed:
        return None
    try:
        runs = track.run(candidate, runs=10**6, seconds=ONCE_S)
        return candidate.batch / float(np.median(runs.between_s))
    except CandidateFailed:
        return None
    finally:
        track.close(candidate)


def paired(track: RealTrack, chosen: Candidate, other: Candidate) -> Any:
    """Returns the other's speed over the answer's, with its interval."""
    opened = {}
    run = PairedRun()
    try:
        for each in (chosen, other):
            opened[each] = track.open(each)
        coin = random.Random(str(other))
        run_pair(opened[chosen], opened[other], into=run, enough=lambda _: False, duration_s=PAIR_S, coin=coin)
    except (CandidateFailed, ContenderFailed):
        return None
    finally:
        for each in opened:
            track.close(each)
    return None if run.found is None else [run.found.ratio, run.found.ends]


def later(track: RealTrack, chosen: Candidate) -> Any:
    found = against_reference(track, chosen, progress=lambda _: None)
    return None if found.over_reference is None else [found.over_reference, found.over_reference_ci95]


def table(done: dict[str, Any]) -> str:
    """Returns what was found, as Markdown."""
    lines = [
        "| net | answer | regret | 95 % | candidates | share of the time | printed ratio over later ones | inside |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in NETS:
        if (answer := done.get(f"{name} answer", {}).get("result")) is None:
            continue
        once = {key: found for key, found in done.items() if key.startswith(f"{name} once ")}
        pairs = [found["result"] for key, found in done.items() if key.startswith(f"{name} pair ") and found["result"]]
        best = max(pairs, key=lambda pair: pair[0], default=[1.0, [1.0, 1.0]])
        regret, ends = max(0.0, 1 - 1 / best[0]), best[1]
        interval = "–" if ends is None else f"{100 * (1 - 1 / ends[0]):.1f} – {100 * (1 - 1 / ends[1]):.1f} %"
        all_s = sum(
            found["seconds"] for key, found in done.items() if key.startswith((f"{name} once ", f"{name} pair "))
        )
        later_runs = [
            found["result"] for key, found in done.items() if key.startswith(f"{name} later ") and found["result"]
        ]
        printed, printed_ends = answer["over_reference"], answer["over_reference_ci95"]
        ratio, inside = "–", "–"
        if printed and later_runs:
            ratio = f"{printed / float(np.median([each[0] for each in later_runs])):.3f}"
            if printed_ends:
                hits = sum(printed_ends[0] <= each[0] <= printed_ends[1] for each in later_runs)
                inside = f"{hits} of {len(later_runs)}"
        share = f"{100 * answer['seconds'] / all_s:.0f} %" if all_s else "–"
        text = Candidate(**answer["candidate"])
        cells = [
            name,
            str(text),
            f"{100 * regret:.1f} %",
            interval,
            f"{len(once)} + {len(pairs)} in pairs",
            share,
            ratio,
            inside,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing has been recorded yet: `make optimize-study`."


def write_table() -> None:
    page = PAGE.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(f"{page[:begin]}\n{table(read())}\n{page[end:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        study = Study(given.minutes)
        with contextlib.suppress(TimeoutError):
            for name in given.nets.split(","):
                study.net(name)
        left = study.left_s()
        print(f"{'done' if left > 0 else 'the time is over'}, {len(study.done)} steps in the record")
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
