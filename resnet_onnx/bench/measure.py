"""Measures rows in interleaved rounds, each runtime in a process of its own.

A row is one runtime at one batch size and number of streams. Rows take turns in short slices, in another order each
round, so that a drift of clocks or of neighbours hits all of them alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.worker_pool import WorkerPool
from runtimes.cores import usable_cores
from runtimes.registry import adapter
from runtimes.spec import Feeds, Target

Progress = Callable[[str], None]


def measure(
    targets: Sequence[Target], feeds: Feeds, plan: BenchPlan, *, progress: Progress = lambda _: None
) -> list[Row]:
    """Measures every target at every batch size, number of streams and number of threads.

    Each number of streams and threads has a process of its own: a runtime arranges itself for them when it opens. A row
    repeats the samples of `feeds` up to its batch.

    Returns:
        Rows by target, batch, streams and threads, in the order of the arguments. A row that ran out of memory,
        failed, or whose process died has its ``error`` set; the others are not affected.
    """
    rows = [
        Row(
            target=arranged,
            batch=batch,
            streams=arranged.options.streams or usable_cores(),  # its own choice is known when it is opened
            scope=plan.scope,
            includes=plan.feed_factory.includes if plan.feed_factory is not None else (),
            requested=plan.scenario,
        )
        for arrangements in (_arrangements(target, plan) for target in targets)
        for batch in plan.batches
        for arranged in arrangements
    ]
    with WorkerPool(rows, feeds, plan) as pool:
        progress(f"opening {', '.join(dict.fromkeys(target.runtime for target in targets))}")
        pool.open()
        _warm_up(pool, rows, plan, progress)
        _rounds(pool, rows, plan, progress)
        if plan.profile:
            for index, row in enumerate(rows):
                if row.slices and row.error is None and row.scenario == "latency":
                    progress(f"profiling {row}")
                    pool.profile(index)
    return rows


def _warm_up(pool: WorkerPool, rows: Sequence[Row], plan: BenchPlan, progress: Progress) -> None:
    """Prepares all rows, the smaller batches first; where there is a cut-off, as many as it allows.

    The warm-ups decide, so that the rows which are measured still take turns from the first round on.
    """
    best: dict[int, float] = {}
    ended: dict[int, str] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index].batch):
        row = rows[index]
        key = id(row.target)
        if key in ended:
            row.cut_off = ended[key]
            continue
        progress(f"warming up {row}")
        pool.prepare(index)
        if plan.cut_off is None or row.opened is None:
            continue
        now, before = row.expected_images_per_second, best.get(key)
        if now is None:
            ended[key] = f"batch {row.batch} failed already"
        elif before is not None and now < before * (1 + plan.cut_off):
            ended[key] = f"batch {row.batch} brought {100 * (now / before - 1):+.1f} % throughput"
        best[key] = max(now or 0.0, before or 0.0)


def _arrangements(target: Target, plan: BenchPlan) -> list[Target]:
    """Returns a target once for every number of streams and threads; threads of the CPU change nothing on a GPU."""
    on_cpu = adapter(target.runtime).resolve_device(target.device) == "cpu"
    own = target.options.threads
    return [
        replace(target, options=replace(target.options, streams=streams, threads=threads or own))
        for streams in plan.streams
        for threads in (plan.threads if on_cpu else plan.threads[:1])
    ]


def _rounds(pool: WorkerPool, rows: Sequence[Row], plan: BenchPlan, progress: Progress) -> None:
    order = random.Random(plan.seed)
    waiting = [index for index, row in enumerate(rows) if row.error is None and not row.cut_off]
    number = 0
    while waiting:
        number += 1
        order.shuffle(waiting)
        for index in waiting:
            if rows[index].error is None:
                left = sum(max(0.0, plan.duration_s - rows[i].spent_s) for i in waiting if rows[i].error is None)
                progress(f"round {number}: {rows[index]} · at most {math.ceil(left)} s left")
                pool.sample(index, rows[index].slice_seconds(plan))
        waiting = [index for index in waiting if not rows[index].is_done(plan)]
