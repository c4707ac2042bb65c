"""What a conversion should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from resnet_onnx.data.labels import ClassOrder
from resnet_onnx.parity.budget import MAX_DROP
from runtimes import registry
from runtimes.base import Runtime
from runtimes.errors import UsageError

Precision = Literal["fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8")

DEFAULT_COUNT: Mapping[Precision, int] = {"int8": 512, "fp16": 64, "bf16": 64}
"""Calibration pictures: more changed no decision of the measured networks. Half precision only looks for the largest
and smallest values of each tensor."""


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """What a conversion should be.

    Attributes:
        to: The precision.
        calibration: Data set; None takes crops of sample photos, for half precision and random weights.
        method: How ranges are found: ``minmax``, ``entropy``, ``percentile``, ``mse``, or ``auto``: the best of them
            by agreement with fp32 on pictures that calibration did not see.
        count: Calibration pictures; None is ``DEFAULT_COUNT`` of the precision.
        seed: Of their choice.
        held_out: At most so many held-out pictures for the gate.
        max_drop: Largest loss of top-1 that passes, in points.
        min_speedup: Least speed over fp32 on each of `runtimes`; None measures none.
        runtimes: Where `min_speedup` is measured; none named: ``registry.conversion_runtimes`` of the precision.
        keep_fp32: Patterns of names of layers that stay in float32.
        half_io: Whether inputs and outputs become half too.
        per_channel: Weight scales per output channel.
        sensitivity: Whether each layer is measured alone in int8, whatever the gate says.
        budget_minutes: How long to look for layers to keep in float32 where the gate refuses int8; None: not at all.
        skip_bad: Whether pictures that can't be decoded are left out, counted and named, instead of ending everything.
        class_order: How class folders that are named by numbers are ordered, where no name tells.
    """

    to: Precision
    calibration: str | None = None
    method: str = "auto"
    count: int | None = None
    seed: int = 0
    held_out: int = 5_000
    max_drop: float = MAX_DROP
    min_speedup: float | None = None
    runtimes: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    half_io: bool = False
    per_channel: bool = True
    sensitivity: bool = False
    budget_minutes: float | None = None
    skip_bad: bool = False
    class_order: ClassOrder | None = None

    @property
    def pictures(self) -> int:
        """How many pictures calibrate."""
        return self.count or DEFAULT_COUNT[self.to]

    def __post_init__(self) -> None:
        if self.to not in PRECISIONS:
            raise UsageError(f"precision is {', '.join(PRECISIONS)}, not '{self.to}'")
        if self.half_io and self.to == "int8":
            raise UsageError("--half-io is for fp16 and bf16; inputs and outputs of an int8 file stay float32")
        if self.to != "int8":
            minutes = self.budget_minutes is not None
            for name, given in (("--sensitivity", self.sensitivity), ("--budget-minutes", minutes)):
                if given:
                    raise UsageError(
                        f"{name} is for int8; {self.to} keeps in fp32 what needs it by itself", fix="leave it out"
                    )
        if self.budget_minutes is not None and not 0 < self.budget_minutes < math.inf:
            raise UsageError(f"--budget-minutes must be a number above 0, not {self.budget_minutes}")
        if not self.max_drop > 0:
            raise UsageError(f"--max-drop must be more than 0 points, not {self.max_drop}")
        if self.min_speedup is not None and not 0 < self.min_speedup < math.inf:
            raise UsageError(f"--min-speedup must be a number above 0, not {self.min_speedup}")
        if not self.runtimes:
            object.__setattr__(self, "runtimes", registry.conversion_runtimes(self.to))
        fit = registry.runtimes_that(_runs_files_as_they_are)
        unfit = [name for name in self.runtimes if name not in fit]
        if self.min_speedup is not None and unfit:
            raise UsageError(
                f"--min-speedup compares ONNX files, and {', '.join(unfit)} can't run both of them",
                fix=f"--runtime {', '.join(fit[:-1])} or {fit[-1]}; measure others with resnet-onnx bench and compare",
            )


def _runs_files_as_they_are(adapter: type[Runtime]) -> bool:
    """Whether a runtime opens an ONNX file without building an engine first, and its speed is worth measuring."""
    return "onnx" in adapter.opens and "shapes" not in adapter.uses and adapter.in_all
