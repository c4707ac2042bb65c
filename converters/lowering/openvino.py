"""OpenVINO on the CPU: what is never negative becomes unsigned with all eight bits, the rest stays as it is."""

from __future__ import annotations

from converters.graph import Graph
from converters.lowering.ort_cpu import unsigned_activations


def lower(graph: Graph, *, exact: bool = False) -> dict[str, int]:
    """Rewrites a portable graph in place; the arguments and the answer are those of ``ort_cpu.lower``."""
    shifted, widened, absorbed = unsigned_activations(graph, exact=exact, signed_stay=True)
    return {"unsigned": widened, "shifted": shifted, "absorbed_relu": absorbed, "int32_bias": 0}
