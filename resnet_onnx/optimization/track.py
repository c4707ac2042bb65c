"""The real track: candidates in processes of their own, timed from picture files, arrays or device memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
from numpy.typing import NDArray

from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.bench.feed_factory import FeedFactory
from resnet_onnx.bench.paired import ContenderFailed, OpenedSide, Side
from resnet_onnx.optimization.admission import Admission
from resnet_onnx.optimization.candidate import Candidate, CandidateFailed, Form, PairedDecisions, Runs
from resnet_onnx.optimization.original import DoesNotCompute
from resnet_onnx.parity.sides import compare_outputs, rounding_limit
from resnet_onnx.workflow.feeds import sample_feeds
from resnet_onnx.workflow.measuring import MOST_PICTURES, fixed_batch
from resnet_onnx.workflow.onnx_form import graph_path
from resnet_onnx.workflow.precision.comparison import Comparison
from runtimes.errors import ToolkitError
from runtimes.spec import Feeds, RuntimeOptions, Scope

WARM_UP_S = 2.0
"""Of a candidate, at most: it meets others that are as warm."""

_SLICE_S = 0.25

_LEAST_SHARE_OF_SQNR_DB = 10.0
"""By how much less than at its admission a form's few measured pictures may agree with the network, decibels."""


@dataclass(kw_only=True, eq=False)
class RealTrack:
    """Where candidates really run. Use it as a context manager, which ends all processes.

    Attributes:
        admission: What was admitted.
        sqnr_db: Of the forms that changed precision, at their admission.
        scope: Of a run.
        feed_factory: What makes the feeds of each run, or None.
        watch: Since the command began.
        memory: Bytes that the processes of candidates held when they were warm.
    """

    admission: Admission
    sqnr_db: Mapping[Form, float | None]
    scope: Scope = "device"
    feed_factory: FeedFactory | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    memory: dict[Candidate, int] = field(default_factory=dict)
    _open: dict[Candidate, OpenedSide] = field(default_factory=dict)
    _parked: OpenedSide | None = None
    _feeds: Feeds | None = None

    def __enter__(self) -> RealTrack:
        return self

    def __exit__(self, *error: object) -> None:
        self._unpark()
        for side in self._open.values():
            side.close()
        self._open.clear()

    def now(self) -> float:
        """Seconds since the command began."""
        return self.watch.seconds

    def options(self, candidate: Candidate) -> RuntimeOptions:
        """Returns how a candidate's runtime is set."""
        return replace(self.admission.plan.options, streams=candidate.streams, threads=candidate.threads or None)

    def side(self, candidate: Candidate) -> Side:
        """Returns a candidate as a side of a comparison; raises as ``Admission.target``."""
        model = self.admission.model
        if self._feeds is None:
            self._feeds = sample_feeds(model, fixed_batch(model) or MOST_PICTURES, seed=self.admission.plan.seed)
        return Side(
            target=self.admission.target(candidate.form, self.options(candidate)),
            feeds=self._feeds,
            batch=candidate.batch,
            scope=self.scope,
            feed_factory=self.feed_factory,
        )

    def open(self, candidate: Candidate) -> OpenedSide:
        """Opens and warms up a candidate, and looks whether it computes there what it was admitted for.

        Raises:
            CandidateFailed: It can't be opened, takes too much memory, or computes something else.
        """
        try:
            opened = self._opened(self.side(candidate))
        except ToolkitError as error:
            raise CandidateFailed(error.message) from error
        try:
            if opened.error is not None:
                raise CandidateFailed(opened.error.message)
            self._check_memory(candidate, opened)
            self._check_outputs(candidate, opened)
        except BaseException:
            opened.close()
            raise
        self._open[candidate] = opened
        return opened

    def close(self, candidate: Candidate) -> None:
        """Ends a candidate; its process may serve the next one, if that differs in the batch alone."""
        side = self._open.pop(candidate)
        if side.error is not None:
            side.close()
            return
        self._unpark()
        self._parked = side

    def _unpark(self) -> None:
        if self._parked is not None:
            self._parked.close()
            self._parked = None

    def _opened(self, side: Side) -> OpenedSide:
        parked, self._parked = self._parked, None
        if parked is not None:
            if parked.side.target == side.target:
                parked.take(side)
                return parked
            parked.close()
        opened = OpenedSide(side, warm_up_s=WARM_UP_S)
        try:
            opened.prepare()
        except BaseException:
            opened.close()
            raise
        return opened

    def _check_memory(self, candidate: Candidate, opened: OpenedSide) -> None:
        most = self.admission.plan.max_memory
        held = self.memory[candidate] = _held(opened)
        if most is not None and held > most:
            raise CandidateFailed(f"holds {held / 2**20:,.0f} MiB, --max-memory allows {most / 2**20:,.0f} MiB")

    def _check_outputs(self, candidate: Candidate, opened: OpenedSide) -> None:
        """Raises ``CandidateFailed`` where the prepared runs compute something else than the network."""
        try:
            computed = opened.computed()
        except ContenderFailed as failed:
            raise CandidateFailed(str(failed.__cause__ or failed)) from failed
        for stream, (feeds, outputs) in enumerate(computed):
            if problem := self._difference(candidate.form, feeds, outputs):
                where = f", stream {stream + 1}" if len(computed) > 1 else ""
                raise CandidateFailed(f"computes something else while it is measured{where}: {problem}")

    def _difference(self, form: Form, feeds: Feeds, outputs: Mapping[str, NDArray[Any]]) -> str:
        original, model = self.admission.original, self.admission.model
        given = {spec.name: feeds[name].astype(spec.dtype) for spec, name in zip(self._inputs(), feeds, strict=True)}
        truth = original.computed(given)
        if form.precision == model.precision and form.precision != "int8":
            limit = rounding_limit([graph_path(model)] * 2, [model.precision] * 2)
            found = compare_outputs(truth, outputs, limit)
            return found.text if found.different else ""
        compared = Comparison()
        theirs = dict(zip(truth, outputs.values(), strict=True)) if len(truth) == len(outputs) else {}
        deciding = original.deciding
        if deciding not in theirs or theirs[deciding].shape != truth[deciding].shape:
            return f"its outputs are {', '.join(f'{name} {list(a.shape)}' for name, a in outputs.items())}"
        compared.add([truth[deciding]], [theirs[deciding]], None)
        if not compared.finite:
            return "an output is not finite"
        known = self.sqnr_db.get(form)
        if known is not None and compared.sqnr_db < known - _LEAST_SHARE_OF_SQNR_DB:
            return f"{compared.sqnr_db:.0f} dB signal to noise at its outputs, at its admission it was {known:.0f}"
        return ""

    def _inputs(self) -> tuple[Any, ...]:
        from resnet_onnx.workflow.feeds import specs

        return specs(self.admission.model)

    def run(self, candidate: Candidate, *, runs: int, seconds: float) -> Runs:
        """Times fresh runs of an open candidate; see ``candidate.Track``."""
        side = self._open[candidate]
        latencies: list[float] = []
        between: list[float] = []
        paces: list[float] = []
        spent = 0.0
        while len(latencies) < runs and (spent < seconds or not latencies):
            try:
                taken = side.sample(min(_SLICE_S, max(0.0, seconds - spent)))
            except ContenderFailed as failed:
                raise CandidateFailed(str(failed.__cause__ or failed)) from failed
            spent += taken.spent_s
            times = taken.times_ns / 1e9
            latencies += times.tolist()
            between += times.tolist() if candidate.streams == 1 else [1 / taken.runs_per_s]
            paces += taken.disturbance.paces_s
        return Runs(latencies_s=latencies, between_s=between, paces_s=paces)

    def accuracy(self, form: Form, part: int) -> PairedDecisions:
        """Compares the decisions of a form with the network's; see ``candidate.Track``."""
        self._unpark()
        pictures = self.admission.pictures
        if pictures is None or pictures.outputs is None:
            raise CandidateFailed("there are no labels to judge its decisions by")
        try:
            found = self.admission.original.compared(
                self.admission.target(form), pictures.portions[part], self.admission.batches
            )
        except DoesNotCompute as error:
            raise CandidateFailed(str(error)) from error
        except ToolkitError as error:
            raise CandidateFailed(error.message) from error
        if not found.finite:
            raise CandidateFailed("an output is NaN or Inf where the network's is not")
        return PairedDecisions(lost=found.only_fp32, won=found.only_candidate, pictures=found.labelled)


def _held(opened: OpenedSide) -> int:
    """Returns the bytes that the process of an opened side holds; 0 where it is gone."""
    try:
        return int(psutil.Process(opened.pid).memory_info().rss)
    except psutil.Error:
        return 0
