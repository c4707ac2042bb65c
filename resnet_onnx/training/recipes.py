"""Recipes: every number that decides how a network is trained, in one frozen value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from runtimes.errors import UsageError

Schedule = Literal["one-cycle", "step", "cosine"]
Crop = Literal["none", "pad", "resized"]
Padding = Literal["black", "mean"]
Precision = Literal["auto", "fp32", "bf16"]

ONE_CYCLE_START = 1 / 25
"""Where the one-cycle ramp starts, as a share of its peak; fastai's and torch's published default."""
SMALL_PICTURE = 64
"""Side in pixels up to which a network counts as one for small pictures (CIFAR's 32, digits)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. SGD with momentum throughout, as in the paper.

    Attributes:
        name: What ``--recipe`` calls it.
        source: Where the numbers come from.
        epochs: Passes over the training pictures.
        batch_size: Pictures per step.
        learning_rate: The peak of the schedule.
        momentum: Of SGD.
        weight_decay: L2 penalty on every parameter.
        nesterov: Nesterov's form of momentum.
        schedule: ``one-cycle`` (straight up, straight down to zero), ``step`` (times `decay` at each milestone) or
            ``cosine`` (down to zero along half a cosine).
        warmup: Share of all steps in which the rate rises linearly to its peak.
        milestones: Shares of all steps at which ``step`` decays.
        decay: Factor at each milestone.
        crop: ``pad`` (pad by `pad` pixels, crop back at random), ``resized`` (random area and aspect, scaled to the
            network's size) or ``none``.
        pad: Pixels on each side for ``pad``.
        padding: What is padded with: black, or the data's mean colour (zero after normalisation).
        smallest_area: Least share of the picture's area that ``resized`` keeps.
        flip: Mirror half of the pictures left to right.
        label_smoothing: Share of the target spread over all classes (arXiv:1512.00567, section 7).
        precision: ``fp32``, ``bf16`` (autocast; weights and optimizer stay fp32), or ``auto``: bf16 where the
            processor computes it in hardware.
        validation: Share of each class held out to choose the best epoch, where the data set has no ``val`` split.
    """

    name: str
    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    schedule: Schedule = "one-cycle"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    crop: Crop = "none"
    pad: int = 0
    padding: Padding = "black"
    smallest_area: float = 0.08
    flip: bool = False
    label_smoothing: float = 0.0
    precision: Precision = "auto"
    validation: float = 0.1

    def __post_init__(self) -> None:
        self._whole("epochs", least=1)
        self._whole("batch_size", least=2)
        self._whole("pad", least=0)
        self._between("learning_rate", 0.0, 1000.0, without=(0.0,))
        self._between("momentum", 0.0, 1.0, without=(1.0,))
        self._between("weight_decay", 0.0, 1.0)
        self._between("warmup", 0.0, 1.0, without=(1.0,))
        self._between("decay", 0.0, 1.0, without=(0.0,))
        self._between("smallest_area", 0.0, 1.0, without=(0.0,))
        self._between("label_smoothing", 0.0, 1.0, without=(1.0,))
        self._between("validation", 0.0, 0.9)
        self._one_of("schedule", get_args(Schedule))
        self._one_of("crop", get_args(Crop))
        self._one_of("padding", get_args(Padding))
        self._one_of("precision", get_args(Precision))
        for name in ("nesterov", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"recipe: {name} is true or false, not {getattr(self, name)!r}")
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"recipe: milestones are rising shares of all steps, not {list(self.milestones)}")
        if (self.schedule == "step") != bool(self.milestones):
            raise UsageError("recipe: milestones belong to the schedule 'step', and it needs at least one")
        if (self.crop == "pad") != bool(self.pad):
            raise UsageError(f"recipe: crop '{self.crop}' does not go with pad {self.pad}")
        if self.nesterov and self.momentum == 0:
            raise UsageError("recipe: nesterov needs a momentum above 0")

    def _whole(self, name: str, *, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"recipe: {name} must be a whole number of at least {least}, not {value!r}")

    def _between(self, name: str, low: float, high: float, *, without: tuple[float, ...] = ()) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or value in without:
            start, end = "above" if low in without else "from", "below" if high in without else "up to"
            raise UsageError(f"recipe: {name} must be {start} {low:g} and {end} {high:g}, not {value!r}")

    def _one_of(self, name: str, values: tuple[str, ...]) -> None:
        if getattr(self, name) not in values:
            raise UsageError(f"recipe: {name} is one of {', '.join(values)}, not {getattr(self, name)!r}")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of one step; a pure function, so that a resumed run needs no schedule state.

        Args:
            step: Index of the step, from 0.
            steps: Steps of the whole training.
        """
        position = (step + 0.5) / steps
        if position < self.warmup:
            start = ONE_CYCLE_START if self.schedule == "one-cycle" else 0.0
            return self.learning_rate * (start + (1 - start) * position / self.warmup)
        if self.schedule == "step":
            return self.learning_rate * self.decay ** sum(step >= m * steps for m in self.milestones)
        remaining = (1 - position) / (1 - self.warmup)
        if self.schedule == "one-cycle":
            return self.learning_rate * remaining
        return self.learning_rate * 0.5 * (1 - math.cos(math.pi * remaining))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; ``from_json`` is the inverse."""
        return {**dataclasses.asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Rebuilds from ``to_json``'s values.

        Raises:
            UsageError: A value is out of range, missing or unknown.
        """
        try:
            return cls(**{**values, "milestones": tuple(values["milestones"])})
        except (TypeError, KeyError) as error:
            raise UsageError(f"this is no recipe: {dict(values)}") from error

    def override(self, **changes: Any) -> Recipe:
        """Returns a copy with some fields changed; ``None`` leaves a field as it is.

        Raises:
            UsageError: A field is unknown or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise UsageError(
                f"a recipe has no field '{unknown[0]}'",
                fix=f"fields are {', '.join(sorted(known - {'name', 'source'}))}",
            )
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits",
            source="ours, measured: CIFAR ResNet-20 on scikit-learn's digits. No flip: a mirrored digit is no digit",
            epochs=6,
            batch_size=32,
            learning_rate=0.1,
            nesterov=True,
            warmup=0.25,
            crop="pad",
            pad=2,
        ),
        Recipe(
            name="cifar-fast",
            source="one-cycle (arXiv:1708.07120) for tens of epochs; augmentation of arXiv:1512.03385, section 4.2",
            epochs=15,
            batch_size=128,
            learning_rate=0.4,
            weight_decay=5e-4,
            nesterov=True,
            warmup=0.25,
            crop="pad",
            pad=4,
            flip=True,
        ),
        Recipe(
            name="cifar-paper",
            source="arXiv:1512.03385, section 4.2: 64k steps on 45k pictures, ÷10 at 32k and 48k, 5k held out; "
            "here the mean is one per channel, the paper's one per pixel",
            epochs=182,
            batch_size=128,
            learning_rate=0.1,
            schedule="step",
            milestones=(0.5, 0.75),
            crop="pad",
            pad=4,
            padding="mean",
            flip=True,
            precision="fp32",
        ),
        Recipe(
            name="folder",
            source="ours, for photographs: cosine (arXiv:1608.03983), random resized crops (arXiv:1409.4842)",
            epochs=30,
            batch_size=32,
            learning_rate=0.05,
            nesterov=True,
            schedule="cosine",
            warmup=0.1,
            crop="resized",
            smallest_area=0.35,
            flip=True,
            label_smoothing=0.1,
        ),
        Recipe(
            name="folder-small",
            source="ours, for a folder of small pictures, or a network for small pictures on any folder",
            epochs=20,
            batch_size=32,
            learning_rate=0.1,
            weight_decay=5e-4,
            nesterov=True,
            warmup=0.25,
            crop="pad",
            pad=4,
            flip=True,
        ),
    )
}


def recipe_names() -> list[str]:
    """Returns the names that ``lookup_recipe`` knows."""
    return list(_RECIPES)


def lookup_recipe(name: str) -> Recipe:
    """Returns a recipe by name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in _RECIPES:
        raise UsageError(f"no recipe '{name}': choose {', '.join(_RECIPES)}")
    return _RECIPES[name]


def default_recipe(data_name: str, *, image_size: int, pictures: int) -> Recipe:
    """Returns the recipe for a data set where none is named.

    Args:
        data_name: What ``--data`` was given; ``digits`` has a recipe of its own.
        image_size: The network's input size, pixels.
        pictures: How many pictures there are to train on.
    """
    if data_name == "digits":
        return _RECIPES["digits"]
    if image_size > SMALL_PICTURE:
        return _RECIPES["folder"]
    return _RECIPES["cifar-fast" if pictures >= 10_000 else "folder-small"]
