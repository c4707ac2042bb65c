"""The worker processes of one measurement: opened together, revived where one dies, ended together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from resnet_onnx.bench.plan import BenchPlan
from resnet_onnx.bench.row import Row
from resnet_onnx.bench.worker_process import WorkerDied, WorkerProcess
from runtimes.errors import ToolkitError
from runtimes.spec import Feeds, Target

_PROFILE_S, _FEWEST_PROFILED, _MOST_PROFILED = 1.0, 3, 50


class WorkerPool:
    """The worker processes of one measurement, one per target; use it as a context manager, which ends them."""

    def __init__(self, rows: Sequence[Row], feeds: Feeds, plan: BenchPlan) -> None:
        self._rows, self._feeds, self._plan = rows, feeds, plan
        self._workers: dict[int, WorkerProcess] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def open(self) -> None:
        """Starts all processes and opens the models in them, at the same time: nothing is timed yet."""
        targets = {id(row.target): row.target for row in self._rows}
        for key, target in targets.items():
            self._start(key, target)
        for key in targets:
            self._opened(key)

    def prepare(self, index: int) -> None:
        """Prepares a row and warms it up, unless its runtime could not be opened."""
        row = self._rows[index]
        if row.error is not None:
            return
        with self._recorded(index):
            row.warm_up = self._worker(row).call(
                "prepare",
                row=index,
                feeds=self._feeds,
                batch=row.batch,
                scope=row.scope,
                feed_factory=self._plan.feed_factory,
                limit_s=self._plan.warm_up_limit_s,
                in_sets=row.scenario == "offline",
                at_once=row.warm_up.at_once if row.warm_up else None,  # a row that is prepared anew keeps its set
            )

    def sample(self, index: int, seconds: float) -> None:
        """Takes one slice of a row, and frees the row where it was its last."""
        row = self._rows[index]
        with self._recorded(index):
            worker = self._worker(row)
            row.slices.append(worker.call("sample", row=index, seconds=seconds, discard=row.discarded_runs))
            if row.is_done(self._plan):
                if row.opened is not None and row.opened.device != "cpu":
                    row.breakdown = worker.call("breakdown", row=index)
                worker.call("release", row=index)

    def profile(self, index: int) -> None:
        """Takes the layers of a row that was measured from the runtime's own profiler."""
        row = self._rows[index]
        run_s = row.warm_up.run_s if row.warm_up else 1.0
        runs = min(_MOST_PROFILED, max(_FEWEST_PROFILED, int(_PROFILE_S / run_s)))
        try:
            row.layers = self._worker(row).call("profile", feeds=self._feeds, batch=row.batch, runs=runs)
        except WorkerDied as error:
            row.unprofiled = error.message
            self._workers[id(row.target)].close()
            self._start(id(row.target), row.target)
            with contextlib.suppress(ToolkitError):  # the next row reports it, if it has the same trouble
                self._workers[id(row.target)].receive()
        except ToolkitError as error:  # what was measured stays as it is
            row.unprofiled = error.message

    def _worker(self, row: Row) -> WorkerProcess:
        return self._workers[id(row.target)]

    def _start(self, key: int, target: Target) -> None:
        worker = self._stack.enter_context(WorkerProcess(target.runtime))
        self._workers[key] = worker
        worker.send("open", target=target)

    def _opened(self, key: int) -> None:
        rows = [row for row in self._rows if id(row.target) == key and not row.is_done(self._plan)]
        try:
            opened = self._workers[key].receive()
        except ToolkitError as error:
            for row in rows:
                row.error = error
        else:
            for row in rows:
                row.opened, row.streams = opened, opened.streams

    @contextlib.contextmanager
    def _recorded(self, index: int) -> Iterator[None]:
        """Keeps an error with the row; a process that died takes only the row that it was working on with it."""
        row = self._rows[index]
        try:
            yield
        except WorkerDied as error:
            row.error = error
            self._revive(row.target)
        except ToolkitError as error:
            row.error = error

    def _revive(self, target: Target) -> None:
        key = id(target)
        self._workers[key].close()
        others = [i for i, row in enumerate(self._rows) if id(row.target) == key and row.error is None]
        unfinished = [i for i in others if not self._rows[i].is_done(self._plan)]
        prepared = [i for i in unfinished if self._rows[i].warm_up is not None]
        if not unfinished and not self._plan.profile:
            return
        self._start(key, target)
        self._opened(key)
        for index in prepared:
            self.prepare(index)
