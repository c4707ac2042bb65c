"""What a search works with: the network, its pictures, the field, the machine, the time, the journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from resnet_onnx.bench import roofline
from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.bench.feed_factory import FeedFactory
from resnet_onnx.deploy.bundle import check_target
from resnet_onnx.optimization.admission import Effort
from resnet_onnx.optimization.candidate import Candidate, Form
from resnet_onnx.optimization.candidates import Costs, Entries, batch_choices, entries_of
from resnet_onnx.optimization.journal import Journal
from resnet_onnx.optimization.pictures import FOR_GATE, SearchPictures, open_pictures
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.parity.budget import LABELLED_NEEDED
from resnet_onnx.results.document import Peaks
from resnet_onnx.results.optimize import (
    Timed,
)
from resnet_onnx.version import __version__
from resnet_onnx.workflow.decoding import decoding
from resnet_onnx.workflow.feeds import specs, takes_pictures
from resnet_onnx.workflow.measuring import fixed_batch
from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.request import Model
from resnet_onnx.workflow.weights import digest
from runtimes import files, onnx_gate, registry
from runtimes.cores import usable_cores
from runtimes.environment import describe_machine
from runtimes.errors import UsageError
from runtimes.spec import Scope

if TYPE_CHECKING:
    from resnet_onnx.bench.feed_factory import NextFeeds

Progress = Callable[[str], None]

_GATE_SHARE, _JUDGED_SHARE, _CALIBRATION_SHARE = 0.04, 0.10, 0.05
"""Of the budget, that a pass over the gate's pictures may take, one over all pictures that judge, and calibration."""
_FEW, _FEWEST = 256, 64
_VALIDATING = 5 * 1_024
"""Runs of pictures that choosing the method of calibration takes, about."""
_QUICK_CALIBRATION = 128

_FIGURES_SHARE, _FIGURES_MOST_S = 0.15, 75.0
"""Of the budget, left for what is measured of the answer after its confirmation."""


@dataclass(kw_only=True, eq=False)
class Search:
    """What the steps of a search share.

    Attributes:
        path: The network as an ONNX file.
        feed_factory: What makes the feeds of each run, or None.
        pictures: What the user's data gives, no more than the time allows; None without.
        batches: Sizes that race.
        notes: What the user should know.
        late: Forms for whose admission there was no time.
    """

    model: Model
    plan: OptimizePlan
    path: Path
    entries: Entries
    timed: Timed
    feed_factory: FeedFactory | None
    pictures: SearchPictures | None
    costs: Costs
    batches: tuple[int, ...]
    journal: Journal
    watch: Stopwatch
    progress: Progress
    notes: list[str] = field(default_factory=list)
    late: tuple[Form, ...] = ()

    @property
    def scope(self) -> Scope:
        """Of a run."""
        return "device" if self.timed == "device" else "end-to-end"

    @property
    def judged(self) -> bool:
        """Whether accuracy can be judged."""
        return self.pictures is not None and self.pictures.outputs is not None

    @property
    def figures_s(self) -> float:
        """Seconds that are left for what is measured after the confirmation."""
        return min(_FIGURES_SHARE * self.plan.time_budget_s, _FIGURES_MOST_S)

    @property
    def peaks(self) -> Peaks | None:
        """Of the machine."""
        return self.costs.peaks

    def left_s(self) -> float:
        """Seconds of the budget."""
        return self.plan.time_budget_s - self.journal.now()

    def say(self, text: str) -> None:
        """Tells what is being done, and how long it may still take."""
        self.progress(f"{text} · at most {max(0.0, self.left_s()):.0f} s left")


def prepared(model: Model, plan: OptimizePlan, watch: Stopwatch, progress: Progress, *, keep_journal: bool) -> Search:
    """Finds out what is to be searched; raises as ``optimizing.optimize_model``."""
    found = entries_of(plan, precision=model.precision)
    if plan.out is not None:
        check_target(plan.out)
    path = graph_path(model)
    if path is None:
        raise UsageError(
            f"{model.name} is an engine, and a search starts from the network",
            fix="name the ONNX file that it was built from",
        )
    notes = [f"{model.name}: {note}" for note in model.notes]
    timed, factory = _timing(model, plan, notes)
    pictures = None
    if plan.data is not None:
        progress("opening the pictures")
        pictures = open_pictures(model, plan.data, seed=plan.seed, class_order=plan.class_order)
        notes += pictures.notes
        if pictures.outputs is None:
            if plan.max_drop is not None:
                raise UsageError(
                    f"--max-drop was given, and accuracy can't be judged: {pictures.unjudged}",
                    fix="leave --max-drop out, or name labelled pictures and trained weights",
                )
            notes.append(f"accuracy is not judged: {pictures.unjudged}")
    progress("measuring the machine's peak")
    journal = _journal(model, plan, path, watch, keep=keep_journal)
    # A resumed search has the same candidates in the same order, whatever the machine would say now.
    costs = journal.once("costs", lambda: _costs(model, path, factory), Costs)
    search = Search(
        model=model,
        plan=plan,
        path=path,
        entries=found,
        timed=timed,
        feed_factory=factory,
        pictures=pictures,
        costs=costs,
        batches=batch_choices(plan, costs, fixed_batch(model)),
        journal=journal,
        watch=watch,
        progress=progress,
        notes=notes,
    )
    if pictures is not None:
        search.pictures = _limited(search, pictures)
    return search


def _timing(model: Model, plan: OptimizePlan, notes: list[str]) -> tuple[Timed, FeedFactory | None]:
    """Returns what a run covers and what makes its feeds; where decoding can't be timed a note says so."""
    if plan.timed in ("device", "end-to-end"):
        return plan.timed, None
    if plan.arrivals is not None:
        return "end-to-end", None
    if not takes_pictures(model):
        if plan.timed == "pictures":
            raise UsageError(
                f"{model.name} takes no pictures, so that there is nothing to decode", fix="--scope device"
            )
        notes.append(f"{model.name} takes no pictures: device-resident runs are timed")
        return "device", None
    try:
        return "pictures", decoding(model, plan.data)
    except UsageError as error:
        if plan.timed == "pictures":
            raise
        notes.append(f"{error.message}: runs from array to array are timed")
        return "end-to-end", None


def _costs(model: Model, path: Path, factory: FeedFactory | None) -> Costs:
    import onnx

    size = fixed_batch(model) or 1
    shapes = {spec.name: spec.concrete(**{str(spec.shape[0]): size} if spec.shape else {}) for spec in specs(model)}
    work = roofline.count_work(path, shapes)
    nodes = len(onnx.load(str(path), load_external_data=False).graph.node)
    return Costs(
        multiply_adds=None if work is None else work.multiply_adds // size,
        layers=nodes,
        decode_s=0.0 if factory is None else _decode_s(factory),
        peaks=roofline.peaks(usable_cores()),
    )


def _decode_s(factory: FeedFactory, *, pictures: int = 8, tries: int = 3) -> float:
    """Returns the seconds of one core to prepare a picture, the least of a few tries."""
    following: NextFeeds = factory.open(batch=pictures, threads=1)
    following()
    seconds = []
    for _ in range(tries):
        watch = Stopwatch()
        following()
        seconds.append(watch.seconds)
    return min(seconds) / pictures


def _journal(model: Model, plan: OptimizePlan, path: Path, watch: Stopwatch, *, keep: bool) -> Journal:
    machine = describe_machine()
    gpus = [gpu.get("name", "") for gpu in machine["gpu"].get("gpus", [])]
    settings = msgspec.to_builtins(replace(plan, resume=False, time_budget_s=1.0, out=None, journal=None), enc_hook=str)
    identity = {
        "machine": f"{machine['cpu']['model']}, {machine['cpu']['usable_cores']} cores, {', '.join(gpus) or 'no GPU'}",
        "libraries": ", ".join(
            f"{name} {version}"
            for name, version in sorted({**machine["libraries"], "resnet-onnx": __version__}.items())
        ),
        "model": onnx_gate.check_onnx(path).sha256[:16],
        "settings": digest(settings)[:16],
    }
    where = plan.journal
    if keep and where is None:
        name = digest({"model": model.name, "out": str(plan.out and plan.out.absolute())})[:32]
        where = files.cache_dir("searches") / f"{name}.jsonl"
    return Journal(where if keep else None, identity, clock=lambda: watch.seconds, resume=plan.resume)


def _limited(search: Search, pictures: SearchPictures) -> SearchPictures:
    """Returns no more pictures than the time allows."""
    usual = Candidate(
        runtime=registry.DEFAULT_RUNTIME, precision="fp32", batch=max(search.batches), threads=search.costs.cores
    )
    image_s = search.costs.image_s(usual)
    for_gate = int(_GATE_SHARE * search.plan.time_budget_s / image_s)
    gate = min(FOR_GATE, for_gate) if for_gate >= LABELLED_NEEDED else int(np.clip(for_gate, _FEWEST, _FEW))
    found = pictures.limited(gate=gate, judged=int(_JUDGED_SHARE * search.plan.time_budget_s / image_s))
    judged = sum(map(len, found.portions))
    if found.outputs is not None and judged < sum(map(len, pictures.portions)):
        search.notes.append(f"the time allows {judged:,} pictures to judge accuracy by")
    return found


def effort_of(search: Search) -> Effort:
    """Returns how much an admission may take."""
    usual = Candidate(runtime=registry.DEFAULT_RUNTIME, precision="fp32", batch=8, threads=search.costs.cores)
    image_s = search.costs.image_s(usual)
    if _VALIDATING * image_s > _CALIBRATION_SHARE * search.plan.time_budget_s:
        return Effort(calibration=_QUICK_CALIBRATION, method="mse")
    return Effort()
