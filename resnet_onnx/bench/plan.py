"""What a measurement is to cover, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_onnx.bench.feed_factory import FeedFactory
from runtimes.errors import UsageError
from runtimes.spec import Scope

Scenario = Literal["latency", "throughput", "offline", "server"]
"""One run at a time; several beside each other; all samples handed over at once, timed until the last is done; or
single pictures that arrive at random, answered within a limit."""

PRECISION_TARGET = 0.01
LONGEST_WARM_UP_S = 5.0


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What is measured, and for how long.

    Attributes:
        streams: Numbers of concurrent runs; None is as many as each runtime does best with.
        threads: Numbers of CPU threads over all streams together; None is all usable cores.
        duration_s: Measuring time of a row at most, its warm-up excluded.
        feed_factory: What makes the feeds of each run, which is then timed too, or None; its scope is ``end-to-end``.
        scenario: What a sample is; None: ``latency`` with one stream, ``throughput`` with several.
        cut_off: The least growth of throughput, as a fraction, with which the next larger batch is still measured;
            None measures all.
        limit_s: Of the server scenario: what the 99th percentile from arrival to answer may be.
        profile: Whether each row of one run at a time is profiled by layer after it was measured.
        percentile: One that every row is measured for until it has the samples that it needs, however long; or None.
        precision_target: Half-width of the 95 % interval of the median, as a fraction of it, at which a row is done.
    """

    batches: tuple[int, ...] = (1, 8)
    streams: tuple[int | None, ...] = (1,)
    threads: tuple[int | None, ...] = (None,)
    duration_s: float = 5.0
    scope: Scope = "device"
    feed_factory: FeedFactory | None = None
    scenario: Scenario | None = None
    cut_off: float | None = None
    limit_s: float | None = None
    profile: bool = False
    percentile: float | None = None
    precision_target: float = PRECISION_TARGET
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("batch", self.batches), ("streams", self.streams), ("threads", self.threads)):
            if not values or any(value is not None and value < 1 for value in values):
                raise UsageError(f"{name} must be at least 1, not {', '.join(map(str, values)) or 'nothing'}")
        if self.feed_factory is not None and self.scope != "end-to-end":
            raise UsageError(
                f"{' and '.join(self.feed_factory.includes)} begins in host memory, and the scope is {self.scope}",
                fix="use the scope end-to-end",
            )
        if (self.scenario == "server") != (self.limit_s is not None) or not (self.limit_s is None or self.limit_s > 0):
            raise UsageError(
                "the server scenario needs a limit of its 99th percentile above 0, and no other scenario has one",
                fix="--scenario server --p99 MS",
            )
        if not 0 < self.duration_s < math.inf:
            raise UsageError(f"duration must be a number of seconds above 0, not {self.duration_s}")

    @property
    def fewest_samples(self) -> int:
        """Samples that a row needs whatever its time."""
        from resnet_onnx.bench.statistics import samples_needed  # loads SciPy, which a usage error must not wait for

        return 0 if self.percentile is None else samples_needed(self.percentile)

    @property
    def warm_up_limit_s(self) -> float:
        """The most that the warm-up of a row may take."""
        return min(LONGEST_WARM_UP_S, self.duration_s)
