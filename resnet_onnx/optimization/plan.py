"""What a search is to find, among what, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from resnet_onnx.data.labels import ClassOrder
from resnet_onnx.parity.budget import MAX_DROP
from resnet_onnx.results.optimize import Goal, Timed
from resnet_onnx.workflow.request import UNTUNED
from runtimes.errors import UsageError
from runtimes.spec import RuntimeOptions

PRECISIONS = ("fp32", "bf16", "fp16", "int8")

Arrivals = Literal["poisson"]

DEFAULT_BUDGET_S = 15 * 60.0
_LEAST_BUDGET_S = 1.0


@dataclass(frozen=True, kw_only=True)
class OptimizePlan:
    """What a search is to find, among what, and for how long.

    Attributes:
        data: Pictures: a folder, a .zip or the name of a data set; None takes sample photos and judges no accuracy.
        goal: What is best: most pictures a second, the shortest run, or the least cost of a picture.
        min_throughput: Least pictures a second.
        max_drop: Points of top-1 that the answer may lose; None is ``MAX_DROP`` where accuracy can be judged.
        p99_ms: Limit of the 99th percentile of the time of one run of the batch, queueing not included; with
            `arrivals` from arrival to answer.
        arrivals: ``poisson`` judges by the capacity for random arrivals.
        max_memory: Bytes that the process of an engine may hold.
        price: Of the machine per hour.
        runtimes: None named: all that are known.
        precisions: None: those that this machine has arithmetic for.
        batches: None: some that suit the network, or its own fixed one; as `streams` and `threads`.
        timed: What a run covers; None: picture files to scores where the model takes pictures.
        time_budget_s: For everything: admission, opening, compiling, race and confirmation.
        resume: Whether to go on from the journal of a search that was ended before its time.
        out: Folder of the bundle; None writes none.
        journal: File of the journal; None is one in the cache, by model and `out`.
        device: Of the runtimes; None is each one's own.
        options: Of the runtimes, beside streams and threads.
        class_order: How class folders named by numbers are ordered, where no name tells.
        seed: Of the pictures, and of the coins of the race.
    """

    data: str | None = None
    goal: Goal = "throughput"
    min_throughput: float | None = None
    max_drop: float | None = None
    p99_ms: float | None = None
    arrivals: Arrivals | None = None
    max_memory: int | None = None
    price: float | None = None
    runtimes: tuple[str, ...] = ()
    precisions: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    streams: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None
    timed: Timed | None = None
    time_budget_s: float = DEFAULT_BUDGET_S
    resume: bool = False
    out: Path | None = None
    journal: Path | None = None
    device: str | None = None
    options: RuntimeOptions = UNTUNED
    class_order: ClassOrder | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.goal not in get_args(Goal):
            raise UsageError(f"the goal is {', '.join(get_args(Goal))}, not '{self.goal}'")
        if self.timed not in (None, *get_args(Timed)):
            raise UsageError(f"what is timed is {', '.join(get_args(Timed))}, not '{self.timed}'")
        if self.arrivals not in (None, *get_args(Arrivals)):
            raise UsageError(f"arrivals are {', '.join(get_args(Arrivals))}, not '{self.arrivals}'")
        for name, value in (
            ("--min-throughput", self.min_throughput),
            ("--p99", self.p99_ms),
            ("--price", self.price),
            ("--max-memory", self.max_memory),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be a number above 0, not {value}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop must be between 0 and 100 points, not {self.max_drop:g}")
        if self.max_drop is not None and self.data is None:
            raise UsageError(
                "--max-drop limits the loss of accuracy, and without pictures that have labels there is none to judge",
                fix="--data D, or leave --max-drop out: the noise of the outputs is judged all the same",
            )
        if not _LEAST_BUDGET_S <= self.time_budget_s < math.inf:
            raise UsageError(f"the time budget must be at least a second, not {self.time_budget_s:g} s")
        if self.goal == "cost" and self.price is None:
            raise UsageError("--goal cost needs the price of the machine per hour", fix="--price N")
        if self.arrivals is not None and self.p99_ms is None:
            raise UsageError(
                "--arrivals poisson judges by the rate that is answered within a limit, and no limit was given",
                fix="--p99 MS",
            )
        if self.arrivals is not None and self.timed == "pictures":
            raise UsageError(
                "--arrivals poisson serves decoded pictures, and decoding was to be timed", fix="--scope end-to-end"
            )
        self._check_choices()

    def _check_choices(self) -> None:
        unknown = [each for each in self.precisions or () if each not in PRECISIONS]
        if unknown or self.precisions == ():
            raise UsageError(f"precisions are {', '.join(PRECISIONS)}, not '{', '.join(unknown)}'")
        for name, values in (("batch", self.batches), ("streams", self.streams), ("threads", self.threads)):
            if values is not None and (not values or min(values) < 1):
                raise UsageError(f"{name} must be at least 1, not {', '.join(map(str, values)) or 'nothing'}")

    @property
    def allowed_drop(self) -> float:
        """Points of top-1 that may be lost."""
        return MAX_DROP if self.max_drop is None else self.max_drop
