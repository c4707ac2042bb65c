"""Admission: a form races only after it was shown to compute the network, at every batch size that it races with.

Forms in the network's own precision pass parity. A change of precision passes the gate of its conversion, and then each
runtime that runs the new file passes the same gate by itself: outputs, decisions, and labels where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.models.network import file_stem
from resnet_onnx.optimization.candidate import Form
from resnet_onnx.optimization.original import DoesNotCompute, Original
from resnet_onnx.optimization.pictures import SearchPictures
from resnet_onnx.optimization.plan import OptimizePlan
from resnet_onnx.parity import record
from resnet_onnx.parity.adversarial import LARGE_BATCH
from resnet_onnx.results.convert import Convert
from resnet_onnx.results.optimize import Form as FormRecord
from resnet_onnx.results.parity import Parity
from resnet_onnx.version import __version__
from resnet_onnx.workflow.onnx_form import onnx_path
from resnet_onnx.workflow.opening import runnable, target
from resnet_onnx.workflow.parity import ParityPlan, check_parity
from resnet_onnx.workflow.precision import ConversionConfig, convert
from resnet_onnx.workflow.precision.gate import judge
from resnet_onnx.workflow.request import Model
from resnet_onnx.workflow.weights import digest
from runtimes import files, onnx_gate
from runtimes.environment import library_versions
from runtimes.errors import ToolkitError, reason
from runtimes.spec import RuntimeOptions, Target

Progress = Callable[[str], None]

_QUIET = RuntimeOptions(spin=False)

_SAME_SQNR_DB, _SAME_DECISIONS = 60.0, 0.995
"""What a form in the network's own precision has at least on further pictures; float32's noise is some 120 dB below."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much an admission may take.

    Attributes:
        calibration: Pictures.
        method: How ranges are found.
    """

    calibration: int | None = None
    method: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a form may race, a step of the journal.

    Attributes:
        parity: Where it is in the network's own precision.
        converting_s: Of its seconds, those in which the network was converted, which is done once for all runtimes.
    """

    form: FormRecord
    parity: Parity | None = None
    converting_s: float = 0.0

    @property
    def proving_s(self) -> float:
        """Seconds that its proof took."""
        return self.form.seconds - self.converting_s


@dataclass(kw_only=True)
class Admission:
    """Admits forms of a network.

    Attributes:
        original: The network before any change.
        pictures: What the user's data gives; None without.
        batches: Sizes that the forms race with.
    """

    original: Original
    plan: OptimizePlan
    pictures: SearchPictures | None
    batches: tuple[int, ...]
    effort: Effort = Effort()
    progress: Progress = lambda _: None
    conversions: dict[str, Convert] = field(default_factory=dict)
    _models: dict[str, Model] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)
    _converting_s: float = 0.0

    @property
    def model(self) -> Model:
        """The network before any change."""
        return self.original.model

    def model_in(self, precision: str) -> Model:
        """Returns the network in a precision, converted once and kept in the cache.

        Raises:
            ToolkitError: It can't be converted, or loses too much.
        """
        if precision == self.model.precision:
            return self.model
        if precision not in self._models:
            watch = Stopwatch()
            try:
                path, record_ = self._converted(precision)
            finally:
                self._converting_s += watch.seconds
            self.conversions[precision] = record_
            checked = onnx_gate.check_onnx(path)
            self._models[precision] = replace(self.model, onnx=path, precision=precision, inputs=checked.inputs)
        return self._models[precision]

    def target(self, form: Form, options: RuntimeOptions = _QUIET) -> Target:
        """Returns a form as its runtime opens it; raises as ``model_in`` and ``workflow.source``."""
        made = self.model_in(form.precision)
        runnable(made, [form.runtime], chosen_by_all=False, device=self.plan.device)
        return target(made, form.runtime, device=self.plan.device, options=options, batches=self.batches)

    def admit(self, form: Form) -> Verdict:
        """Finds out whether a form computes the network."""
        watch, self._converting_s = Stopwatch(), 0.0
        try:
            found = self._parity(form) if form.precision == self.model.precision else self._gate(form)
        except ToolkitError as error:
            found = self._verdict(form, reason=error.message, proof="none")
        except DoesNotCompute as error:
            found = self._verdict(form, reason=str(error), proof="none")
        except Exception as error:  # the code of somebody else's runtime
            found = self._verdict(form, reason=f"{type(error).__name__}: {reason(error)}", proof="none")
        return replace(found, form=replace(found.form, seconds=watch.seconds), converting_s=self._converting_s)

    def _verdict(self, form: Form, *, reason: str, proof: str, admitted: bool = False, **figures: Any) -> Verdict:
        parity = figures.pop("parity", None)
        made = FormRecord(
            runtime=form.runtime, precision=form.precision, admitted=admitted, reason=reason, proof=proof,
            batches=self.batches, **figures,
        )  # fmt: skip
        return Verdict(form=made, parity=parity)

    def _parity(self, form: Form) -> Verdict:
        self.target(form)  # says why it can't be opened
        report = check_parity(
            self.model,
            ParityPlan(
                runtimes=(form.runtime,),
                device=self.plan.device,
                options=replace(self.plan.options, spin=False),
                seed=self.plan.seed,
                batches=tuple(size for size in self.batches if size <= LARGE_BATCH),
            ),
            progress=lambda text: self.progress(f"{form}: parity, {text}"),
        )
        outcome = report.outcomes[0]
        document = record.document(report, model=self.model.name, precision=self.model.precision)
        figures: dict[str, Any] = {
            "proof": "parity", "error": _finite(outcome.relative_rmse), "budget": outcome.budget,
            "agreement": outcome.top1_agreement, "pictures": report.pictures, "parity": document,
        }  # fmt: skip
        if not outcome.passed:
            return self._verdict(form, reason=f"parity: {outcome.reason}", **figures)
        self.progress(f"{form}: further pictures in batches of {', '.join(map(str, self.batches))}")
        further = None if self.pictures is None else self.pictures.gate
        found = self.original.compared(self.target(form), further, self.batches)
        figures |= {"sqnr_db": _finite(found.sqnr_db), "pictures": report.pictures + found.images}
        if not found.finite:
            return self._verdict(form, reason="an output is NaN or Inf where the network's is not", **figures)
        if found.sqnr_db < _SAME_SQNR_DB or found.agreement < _SAME_DECISIONS:
            differs = f"decides {found.images - found.equal} of {found.images} pictures otherwise"
            return self._verdict(
                form, reason=f"{differs}, with {found.sqnr_db:.0f} dB signal to noise at its outputs", **figures
            )
        return self._verdict(form, admitted=True, reason=outcome.reason, **figures)

    def _gate(self, form: Form) -> Verdict:
        opened = self.target(form)
        self.progress(f"{form}: the gate of its conversion")
        pictures = self.pictures
        found = self.original.compared(opened, None if pictures is None else pictures.gate, self.batches)
        verdict = judge(
            found,
            to=f"{form}",
            max_drop=max(self.plan.allowed_drop, self._loosest()),
            chance=1.0 if pictures is None else pictures.chance,
        )
        figures: dict[str, Any] = {
            "proof": str(verdict.gate["kind"]), "sqnr_db": _finite(found.sqnr_db),
            "agreement": found.agreement, "pictures": found.images,
        }  # fmt: skip
        if verdict.problem is not None:
            return self._verdict(form, reason=verdict.problem, **figures)
        decided = f"decides {100 * found.agreement:.2f} % of {found.images} pictures as the network does"
        return self._verdict(form, admitted=True, reason=decided, **figures)

    def _loosest(self) -> float:
        """Returns what the gate lets pass at least: what may be lost is for the limits to judge, on more pictures."""
        from resnet_onnx.parity.budget import MAX_DROP

        return MAX_DROP

    def _converted(self, precision: str) -> tuple[Path, Convert]:
        if precision in self._refused:
            raise _Again(self._refused[precision])
        source = onnx_gate.check_onnx(onnx_path(self.model))
        config = ConversionConfig(
            to=precision,  # type: ignore[arg-type]
            seed=self.plan.seed,
            max_drop=max(self.plan.allowed_drop, self._loosest()),
            count=self.effort.calibration,
            method=self.effort.method if precision == "int8" else "auto",
            skip_bad=True,
            class_order=self.plan.class_order,
        )
        key = digest(
            {
                "source": source.sha256,
                "config": msgspec.to_builtins(config),
                "data": [self.plan.data, None if self.pictures is None else len(self.pictures.gate)],
                "tools": [__version__, *library_versions().items()],
            }
        )
        folder = files.cache_dir("converted", key)
        path, note = folder / f"{file_stem(self.model.name)}-{precision}.onnx", folder / "convert.json"
        kept = files.read_sealed(note) if path.is_file() else None
        if kept is not None:
            try:
                known = msgspec.json.decode(kept, type=Convert)
                if onnx_gate.check_onnx(path).sha256 == known.sha256:
                    return path, known
            except (ValueError, ToolkitError):
                pass  # damaged: made anew
        sets = None if self.pictures is None else (self.pictures.calibration, self.pictures.gate)
        try:
            made = convert(
                self.model,
                path,
                config,
                pictures=sets,
                progress=lambda text: self.progress(f"converting to {precision}: {text}"),
            )
        except ToolkitError as error:
            self._refused[precision] = error.message
            raise
        files.write_sealed(note, msgspec.json.encode(made))
        return path, made


class _Again(ToolkitError):
    """A conversion that was refused before."""

    kind = "check-failed"
    exit_code = 1


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def batches_of(candidates_batches: Sequence[int]) -> tuple[int, ...]:
    """Returns the batch sizes to prove a form at: all that it races with, and one beside them.

    A form that is right only for batches that follow each other in size must not pass.
    """
    return tuple(dict.fromkeys((*candidates_batches, 1, 3)))
