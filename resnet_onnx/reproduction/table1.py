"""Table 1 of the ResNet paper (arXiv:1512.03385), counted: what each network consists of, beside what is printed.

The plain networks and VGG, with which the paper compares (section 3.3, figure 3), are counted in the same way.
"""

from __future__ import annotations

import itertools

from resnet_onnx.models import catalog
from resnet_onnx.models.catalog import RESNET_PAPER, VGG_PAPER, CatalogEntry
from resnet_onnx.models.counting import count, layer_table, printed_convention
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


def table1() -> list[CountedNetwork]:
    """Counts every network of the table."""
    return [_counted(catalog.lookup(name)) for name in NETWORKS]


def conclude(rows: list[CountedNetwork]) -> str:
    """Returns the verdict in words."""
    differing = [f"{row.model} in {', '.join(row.differs)}" for row in rows if row.differs]
    if differing:
        return f"Counted otherwise than printed: {'; '.join(differing)}."
    return (
        "Layers and output sizes are the printed ones, and every printed number of multiply-adds and parameters comes "
        f"out of the count, to the digits printed, in the way named ({RESNET_PAPER}; VGG: {VGG_PAPER})."
    )


def _counted(entry: CatalogEntry) -> CountedNetwork:
    counts, stages, printed = count(entry.config, entry.image_size), _stages(entry), entry.published
    sides = _VGG_SIDES if entry.name.startswith("vgg") else _RESNET_SIDES
    printed_stages = [
        PrintedStage(output=(side, side), convolutions=convolutions)
        for side, convolutions in zip(sides, _PRINTED_CONVOLUTIONS[entry.name], strict=True)
    ]
    printed_g = printed.multiply_adds_g if printed else None
    printed_m = printed.parameters_m if printed else None
    convention = None if printed_g is None else printed_convention(counts, printed_g)
    agrees = {
        "stages": [(stage.output, stage.convolutions) for stage in stages]
        == [(stage.output, stage.convolutions) for stage in printed_stages],
        "layers": counts.layers == entry.depth,
        "multiply-adds": printed_g is None or convention is not None,
        "parameters": printed_m is None or round(counts.parameters / 1e6) == printed_m,
    }
    return CountedNetwork(
        model=entry.name,
        layers=counts.layers,
        printed_layers=entry.depth,
        stages=stages,
        printed_stages=printed_stages,
        parameters=counts.parameters,
        printed_parameters_m=printed_m,
        multiply_adds=counts.multiply_adds,
        printed_multiply_adds_g=printed_g,
        difference=None if printed_g is None else counts.multiply_adds / (1e9 * printed_g) - 1,
        convention=convention,
        source=(printed.multiply_adds_source if printed else "") or None,
        differs=[name for name, same in agrees.items() if not same],
    )


def _stages(entry: CatalogEntry) -> list[CountedStage]:
    convolutions = [row for row in layer_table(entry.config, entry.image_size) if row.kind != "linear"]
    stages = []
    for side, group in itertools.groupby(convolutions, key=lambda row: row.output[-1]):
        members = list(group)
        stages.append(
            CountedStage(
                output=(side, side),
                convolutions=sum(row.kind == "convolution" for row in members),
                channels=members[-1].output[0],
                multiply_adds=sum(row.multiply_adds for row in members),
            )
        )
    return stages
