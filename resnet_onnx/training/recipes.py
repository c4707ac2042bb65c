"""Recipes: every number that decides how a network is trained, in one frozen value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from runtimes.errors import UsageError

Schedule = Literal["one-cycle", "step", "cosine", "plateau"]
Crop = Literal["none", "pad", "resized", "scaled"]
Padding = Literal["black", "mean"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Layout = Literal["auto", "contiguous", "channels-last"]
Compile = Literal["auto", "on", "off"]

ONE_CYCLE_START = 1 / 25
"""Where the one-cycle ramp starts, as a share of its peak; fastai's and torch's published default."""
PLATEAU_THRESHOLD = 1e-4
"""Share by which an error must fall to count as lower; the default of torch's ``ReduceLROnPlateau``."""
DEEP_CIFAR = 110
"""Depth from which the paper starts with a low learning rate (arXiv:1512.03385, section 4.2)."""
SMALL_PICTURE = 64
"""Side in pixels up to which a network counts as one for small pictures (CIFAR's 32, digits)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. SGD with momentum throughout, as in the paper.

    Attributes:
        name: As in ``--recipe``.
        source: Where the numbers come from.
        epochs: Passes over the training pictures.
        steps: The training ends after so many steps, where that is before `epochs` are over; 0 sets no such end.
        batch_size: Pictures per step, over all processes.
        learning_rate: The peak of the schedule.
        momentum: Of SGD.
        weight_decay: L2 penalty on the parameters.
        decay_norms: Whether the penalty includes batch norm's scales and shifts, and biases.
        nesterov: Nesterov's form of momentum.
        schedule: ``one-cycle`` (straight up, straight down to zero), ``step`` (times `decay` at each milestone),
            ``cosine`` (down to zero along half a cosine), or ``plateau`` (times `decay` when the validation error, or
            the training error where nothing is held out, has not fallen for more than `patience` epochs).
        warmup: Share of all steps in which the rate rises linearly to its peak.
        start_steps: Steps at the beginning that are done at `start_rate`.
        start_rate: Their learning rate.
        milestones: Shares of all steps at which ``step`` decays.
        decay: Factor at each milestone or plateau.
        patience: Epochs without a lower error that ``plateau`` allows.
        crop: ``pad`` (pad by `pad` pixels, crop back at random), ``resized`` (random area and aspect, scaled to the
            network's size), ``scaled`` (shorter side scaled to a random length, then a random crop of the network's
            size) or ``none``.
        pad: Pixels on each side for ``pad``.
        padding: What is padded with: black, or the data's mean colour (zero after normalisation).
        smallest_area: Least share of the picture's area that ``resized`` keeps.
        shorter_side: Bounds of the shorter side's length for ``scaled``, pixels.
        flip: Mirror half of the pictures left to right.
        colour: Standard deviation of random shifts along the principal components of ImageNet's colours
            (Krizhevsky, Sutskever, Hinton 2012, section 4.1); 0 is none.
        randaugment: Operations of RandAugment on each picture (arXiv:1909.13719); 0 is none.
        randaugment_magnitude: Their strength, from 0 to 30.
        mixup: α of mixup (arXiv:1710.09412); 0 is none. With `cutmix` too, each batch gets one of the two.
        cutmix: α of CutMix (arXiv:1905.04899); 0 is none.
        label_smoothing: Share of the target spread over all classes (arXiv:1512.00567, section 7).
        stochastic_depth: Share of the steps that leave out the last residual block, falling linearly to none at the
            first (arXiv:1603.09382, section 3); 0 is none.
        ema: Decay per step of a moving average of the weights, which is then what is validated and kept; 0 is none.
        freeze: Patterns of parameters or modules (``conv1``, ``layer[12]``) that stay as they are, statistics of
            batch norm included.
        sync_batch_norm: Statistics of batch norm over the pictures of all processes; needs GPUs.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast; weights and optimizer stay fp32), or ``auto``: bf16 where
            the processor computes it in hardware.
        layout: Of activations in memory. ``auto`` is channels-last: on CPUs as benchmarks/training_throughput.py
            measured, on GPUs by torch's advice, not measured here.
        compile: Through ``torch.compile``. ``auto`` is off.
        validation: Share of each class held out to choose the best epoch, where the data set has no ``val`` split.
    """

    name: str
    source: str
    epochs: int
    steps: int = 0
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms: bool = True
    nesterov: bool = False
    schedule: Schedule = "one-cycle"
    warmup: float = 0.0
    start_steps: int = 0
    start_rate: float = 0.01
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    patience: int = 5
    crop: Crop = "none"
    pad: int = 0
    padding: Padding = "black"
    smallest_area: float = 0.08
    shorter_side: tuple[int, ...] = (256, 480)
    flip: bool = False
    colour: float = 0.0
    randaugment: int = 0
    randaugment_magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    stochastic_depth: float = 0.0
    ema: float = 0.0
    freeze: tuple[str, ...] = ()
    sync_batch_norm: bool = False
    precision: Precision = "auto"
    layout: Layout = "auto"
    compile: Compile = "auto"
    validation: float = 0.1

    def __post_init__(self) -> None:
        self._whole("epochs", least=1)
        self._whole("batch_size", least=2)
        for name in ("steps", "start_steps", "patience", "pad", "randaugment", "randaugment_magnitude"):
            self._whole(name, least=0)
        self._between(0, 30, "randaugment_magnitude")
        self._between(0.0, 1000.0, "learning_rate", "start_rate", without=0.0)
        self._between(0.0, 100.0, "colour", "mixup", "cutmix")
        self._between(0.0, 1.0, "momentum", "ema", "warmup", "label_smoothing", "stochastic_depth", without=1.0)
        self._between(0.0, 1.0, "decay", "smallest_area", without=0.0)
        self._between(0.0, 1.0, "weight_decay")
        self._between(0.0, 0.9, "validation")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"recipe: {name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("nesterov", "flip", "decay_norms", "sync_batch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"recipe: {name} is true or false, not {getattr(self, name)!r}")
        sides = self.shorter_side
        if len(sides) != 2 or not all(type(side) is int for side in sides) or not 1 <= sides[0] <= sides[1] <= 8192:
            raise UsageError(f"recipe: shorter_side is two lengths in pixels, the smaller first, not {list(sides)}")
        if any(not isinstance(pattern, str) or not pattern for pattern in self.freeze):
            raise UsageError(f"recipe: freeze is a list of patterns like conv1 or layer[12], not {list(self.freeze)}")
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

    def _between(self, low: float, high: float, *names: str, without: float | None = None) -> None:
        for name in names:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high or value == without:
                start, end = "above" if low == without else "from", "below" if high == without else "up to"
                raise UsageError(f"recipe: {name} must be {start} {low:g} and {end} {high:g}, not {value!r}")

    @property
    def changes_loading(self) -> bool:
        """Whether pictures change while they are loaded, so that they can't be kept in memory as the network's size."""
        return self.crop in ("resized", "scaled") or self.randaugment > 0

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns the steps of the whole training; the last epoch may be cut short."""
        most = self.epochs * steps_per_epoch
        return min(most, self.steps) if self.steps else most

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Returns the epochs of the whole training, a last one that is cut short included."""
        return -(-self.total_steps(steps_per_epoch) // steps_per_epoch)

    def learning_rate_at(self, step: int, steps: int, *, drops: int = 0) -> float:
        """Returns the learning rate of one step; a pure function, so that a resumed run needs no schedule state.

        Args:
            step: Index of the step, from 0.
            steps: Steps of the whole training.
            drops: How often the error has come to a plateau before this step, for ``plateau``.
        """
        if step < self.start_steps:
            return self.start_rate
        position = (step + 0.5) / steps
        if position < self.warmup:
            start = ONE_CYCLE_START if self.schedule == "one-cycle" else 0.0
            return self.learning_rate * (start + (1 - start) * position / self.warmup)
        if self.schedule == "step":
            return self.learning_rate * self.decay ** sum(step >= m * steps for m in self.milestones)
        if self.schedule == "plateau":
            return self.learning_rate * self.decay**drops
        remaining = (1 - position) / (1 - self.warmup)
        if self.schedule == "one-cycle":
            return self.learning_rate * remaining
        return self.learning_rate * 0.5 * (1 - math.cos(math.pi * remaining))

    def plateaus(self, errors: Sequence[float]) -> int:
        """Returns how often the error came to a plateau: more than `patience` epochs in a row without a lower one."""
        best, waited, drops = math.inf, 0, 0
        for error in errors:
            if error < best * (1 - PLATEAU_THRESHOLD):
                best, waited = error, 0
            else:
                waited += 1
            if waited > self.patience:
                waited, drops = 0, drops + 1
        return drops

    def with_batch(self, batch_size: int) -> Recipe:
        """Returns a copy with another batch and the learning rate in proportion to it (arXiv:1706.02677, sec. 2.1)."""
        return self.override(batch_size=batch_size, learning_rate=self.learning_rate * batch_size / self.batch_size)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; ``from_json`` is the inverse."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Rebuilds from ``to_json``'s values.

        Raises:
            UsageError: A value is out of range, missing or unknown.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"not a recipe: {dict(values)}") from error

    def override(self, **changes: Any) -> Recipe:
        """Returns a copy with some fields changed; ``None`` leaves a field as it is.

        Raises:
            UsageError: A field is unknown or a value is out of range.
        """
        if unknown := sorted(set(changes) - {field.name for field in dataclasses.fields(self)}):
            raise _no_field(unknown[0])
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


def read_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Returns what ``Recipe.override`` takes for texts like ``momentum=0.95`` or ``milestones=0.5,0.75``.

    Raises:
        UsageError: A text is not an assignment, or its value does not have the field's type.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(Recipe) if field.name not in _FIXED}
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not sign or not name:
            raise UsageError(f"'{text}' is not an assignment; expected FIELD=VALUE, as in momentum=0.95")
        if name not in types:
            raise _no_field(name)
        try:
            found[name] = _read_value(value, types[name])
        except ValueError as error:
            raise UsageError(f"recipe: {name} can't be '{value}'; expected {_EXAMPLES[types[name]]}") from error
    return found


_FIXED = frozenset({"name", "source"})
"""Fields that no training sets."""

_EXAMPLES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[float, ...]": "numbers like 0.5,0.75",
    "tuple[int, ...]": "whole numbers like 256,480",
    "tuple[str, ...]": "patterns like conv1,layer1",
}
"""What a value looks like, by the type of its field; any text fits the others."""


def _read_value(text: str, kind: str) -> Any:
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind.startswith("tuple["):
        element = kind.removeprefix("tuple[").partition(",")[0]
        return tuple(_read_value(part.strip(), element) for part in text.split(",") if part.strip())
    if kind == "int":
        return int(text)
    return float(text) if kind == "float" else text


def _no_field(name: str) -> UsageError:
    known = sorted({field.name for field in dataclasses.fields(Recipe)} - _FIXED)
    return UsageError(f"a recipe has no field '{name}'", fix=f"fields are {', '.join(known)}")


_CHOICES = {
    "schedule": get_args(Schedule),
    "crop": get_args(Crop),
    "padding": get_args(Padding),
    "precision": get_args(Precision),
    "layout": get_args(Layout),
    "compile": get_args(Compile),
}
"""By field, what it may be."""

_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits",
            source="ours, measured: CIFAR ResNet-20 on scikit-learn's digits. No flip: a mirrored digit is not a digit",
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
            source="ours, measured: one-cycle (arXiv:1708.07120) for tens of epochs; crop and flip of "
            "arXiv:1512.03385, section 4.2, but padded by 2 pixels where the paper takes 4",
            epochs=15,
            batch_size=64,
            learning_rate=0.1,
            weight_decay=5e-4,
            nesterov=True,
            decay_norms=False,
            warmup=0.2,
            validation=0.02,
            crop="pad",
            pad=2,
            padding="mean",
            flip=True,
        ),
        Recipe(
            name="cifar-paper",
            source="arXiv:1512.03385, section 4.2: 64k steps, ÷10 at 32k and 48k, 5k of 50k held out "
            "(validation=0: none); from depth 110 on the first 400 steps at 0.01; "
            "here the mean is one per channel, the paper's one per pixel",
            epochs=183,
            steps=64_000,
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
            name="imagenet-paper",
            source="arXiv:1512.03385, section 3.4: 600k steps of 256, ÷10 on plateau, shorter side 256 to 480, colour "
            "shifts of Krizhevsky et al. 2012; here the mean is one per channel, and a plateau is 5 epochs",
            epochs=120,
            steps=600_000,
            batch_size=256,
            learning_rate=0.1,
            schedule="plateau",
            crop="scaled",
            shorter_side=(256, 480),
            flip=True,
            colour=0.1,
            precision="fp32",
        ),
        Recipe(
            name="imagenet-modern",
            source="after torchvision's recipe for ResNet50_Weights.IMAGENET1K_V2 (pytorch.org/blog, How to Train "
            "State-Of-The-Art Models Using TorchVision's Latest Primitives): here 100 epochs instead of 600, "
            "RandAugment instead of TrivialAugment, without random erasing and repeated augmentation",
            epochs=100,
            batch_size=1024,
            learning_rate=0.5,
            weight_decay=2e-5,
            decay_norms=False,
            schedule="cosine",
            warmup=0.05,
            crop="resized",
            flip=True,
            randaugment=2,
            randaugment_magnitude=9,
            mixup=0.2,
            cutmix=1.0,
            label_smoothing=0.1,
            ema=0.9999,
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


def lookup_recipe(name: str, *, depth: int = 0) -> Recipe:
    """Returns a recipe by name; ``cifar-paper`` starts networks of many weighted layers slowly.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in _RECIPES:
        raise UsageError(f"no recipe '{name}': choose {', '.join(_RECIPES)}")
    recipe = _RECIPES[name]
    return recipe.override(start_steps=400) if name == "cifar-paper" and depth >= DEEP_CIFAR else recipe


def default_recipe(data_name: str, *, image_size: int, pictures: int) -> Recipe:
    """Returns the recipe for a data set where none is named; ``digits`` has a recipe of its own.

    Otherwise the network's input size in pixels and the number of pictures to train on decide.
    """
    if data_name == "digits":
        return _RECIPES["digits"]
    if image_size > SMALL_PICTURE:
        return _RECIPES["folder"]
    return _RECIPES["cifar-fast" if pictures >= 10_000 else "folder-small"]
