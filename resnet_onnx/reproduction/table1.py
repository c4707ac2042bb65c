"""Table 1 of the ResNet paper (arXiv:1512.03385), counted: what each network consists of, beside what is printed.

The plain networks and VGG, with which the paper compares (section 3.3, figure 3), are counted in the same way.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from resnet_onnx.models import catalog
from resnet_onnx.models.catalog import RESNET_PAPER, VGG_PAPER, CatalogEntry
from resnet_onnx.models.counting import Counts, count, layer_table, printed_convention
from resnet_onnx.results.reproduce import CountedNetwork, CountedStage, PrintedStage

NETWORKS = (
    "resnet18", "resnet34", "resnet50-v1", "resnet101-v1", "resnet152-v1", "plain18", "plain34", "vgg16", "vgg19",
)  # fmt: skip

_RESNET_SIDES, _VGG_SIDES = (112, 56, 28, 14, 7), (224, 112, 56, 28, 14)
# Output side and convolutions per stage, as printed: arXiv:1512.03385, table 1 (plain nets: section 3.3 and figure 3);
# arXiv:1409.1556, table 1, columns D and E.
_PRINTED_CONVOLUTIONS = {
    "resnet18": (1, 4, 4, 4, 4),
    "resnet34": (1, 6, 8, 12, 6),
    "resnet50-v1": (1, 9, 12, 18, 9),
    "resnet101-v1": (1, 9, 12, 69, 9),
    "resnet152-v1": (1, 9, 24, 108, 9),
    "plain18": (1, 4, 4, 4, 4),
    "plain34": (1, 6, 8, 12, 6),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The convolutions whose output has one size.

    Attributes:
        side: Height and width of the output, pixels.
        convolutions: On the main path; projections on shortcuts are not counted.
        channels: Going out.
        multiply_adds: For one picture, projections included.
    """

    side: int
    convolutions: int
    channels: int
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """One network.

    Attributes:
        entry: From the catalog.
        stages: As counted.
        counts: As counted.
        printed_stages: Side and convolutions of each stage, as printed.
    """

    entry: CatalogEntry
    stages: tuple[Stage, ...]
    counts: Counts
    printed_stages: tuple[tuple[int, int], ...]

    @property
    def printed_g(self) -> float | None:
        """Multiply-adds in 10⁹, as printed, or None."""
        return self.entry.published.multiply_adds_g if self.entry.published else None

    @property
    def printed_parameters_m(self) -> float | None:
        """Parameters in 10⁶, as printed, or None."""
        return self.entry.published.parameters_m if self.entry.published else None

    @property
    def convention(self) -> str | None:
        """Which way of counting gives the printed multiply-adds; None where none does, or none are printed."""
        return None if self.printed_g is None else printed_convention(self.counts, self.printed_g)

    @property
    def differences(self) -> list[str]:
        """What is counted here and printed otherwise, in words."""
        found = []
        if tuple((stage.side, stage.convolutions) for stage in self.stages) != self.printed_stages:
            found.append("stages")
        if self.counts.layers != self.entry.depth:
            found.append("layers")
        if self.printed_g is not None and self.convention is None:
            found.append("multiply-adds")
        printed = self.printed_parameters_m
        if printed is not None and round(self.counts.parameters / 1e6) != printed:
            found.append("parameters")
        return found

    def record(self) -> CountedNetwork:
        """Returns what the document has of it."""
        printed = self.entry.published
        return CountedNetwork(
            model=self.entry.name,
            layers=self.counts.layers,
            printed_layers=self.entry.depth,
            stages=[
                CountedStage(
                    output=(stage.side, stage.side),
                    convolutions=stage.convolutions,
                    channels=stage.channels,
                    multiply_adds=stage.multiply_adds,
                )
                for stage in self.stages
            ],
            printed_stages=[
                PrintedStage(output=(side, side), convolutions=convolutions)
                for side, convolutions in self.printed_stages
            ],
            parameters=self.counts.parameters,
            printed_parameters_m=self.printed_parameters_m,
            multiply_adds=self.counts.multiply_adds,
            printed_multiply_adds_g=self.printed_g,
            difference=None if self.printed_g is None else self.counts.multiply_adds / (1e9 * self.printed_g) - 1,
            convention=self.convention,
            source=(printed.multiply_adds_source if printed else "") or None,
            differs=self.differences,
        )


def table1() -> list[Line]:
    """Counts every network of the table."""
    return [_line(catalog.lookup(name)) for name in NETWORKS]


def conclude(lines: list[Line]) -> str:
    """Returns the verdict in words."""
    differing = [f"{line.entry.name} in {', '.join(line.differences)}" for line in lines if line.differences]
    if differing:
        return f"Counted otherwise than printed: {'; '.join(differing)}."
    return (
        "Layers and output sizes are the printed ones, and every printed number of multiply-adds and parameters comes "
        f"out of the count, to the digits printed, in the way named ({RESNET_PAPER}; VGG: {VGG_PAPER})."
    )


def _line(entry: CatalogEntry) -> Line:
    rows = layer_table(entry.config, entry.image_size)
    convolutions = [row for row in rows if row.kind != "linear"]
    stages = []
    for side, group in itertools.groupby(convolutions, key=lambda row: row.output[-1]):
        members = list(group)
        stages.append(
            Stage(
                side=side,
                convolutions=sum(row.kind == "convolution" for row in members),
                channels=members[-1].output[0],
                multiply_adds=sum(row.multiply_adds for row in members),
            )
        )
    sides = _VGG_SIDES if entry.name.startswith("vgg") else _RESNET_SIDES
    return Line(
        entry=entry,
        stages=tuple(stages),
        counts=count(entry.config, entry.image_size),
        printed_stages=tuple(zip(sides, _PRINTED_CONVOLUTIONS[entry.name], strict=True)),
    )
