"""Finds where a difference begins: walks the graph of a model and of its gold and compares what lies between.

First the tensors through which every path leads (the stem, the ends of blocks, the output) are compared, which also
gives the error per layer; then every node between the last sound one and the first one that is off. A node is named
when its output is far from gold while its inputs are not.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.graph import name_of
from resnet_onnx.parity.budget import UNIT_ROUNDOFF
from resnet_onnx.parity.metrics import distance
from resnet_onnx.parity.running import run
from resnet_onnx.results.parity import FirstDifference, LayerError, Localisation
from runtimes import files, onnx_gate, onnx_plain
from runtimes.spec import Feeds, ModelSource, Target

JUMP = 8.0
"""A node is named where its output error is more than this many times its input error. Sound nodes were seen to
amplify an error by at most 3 (a sum of two branches that nearly cancel); planted faults begin at 100."""

ROUNDINGS = 4.0
"""Input errors below this many unit round-offs count as this many: a node with exact inputs still rounds its own
output, libraries measured at 1 to 4 of them with blocked summation."""

LEAST_STEP = 3.0
"""No node is named below this ratio, which sound ones reach."""

Values = Mapping[str, NDArray[Any]]


class Graph:
    """The nodes of a checked ONNX file, with what is needed to compute the values between them.

    Attributes:
        nodes: Those that depend on an input of the graph, in the file's order.
        checkpoints: Indices into `nodes`: those through whose output every path leads.
    """

    def __init__(self, path: Path) -> None:

        checked = onnx_gate.check_onnx(path)
        self.path = checked.path
        self._model = onnx_gate.load_model(checked)
        onnx_plain.constants_from_nodes(self._model)
        graph = self._model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.initializers]
        dynamic = set(self.inputs)
        self.nodes: list[Any] = []
        for node in graph.node:
            if dynamic.intersection(node.input):
                dynamic.update(name for name in node.output if name)
                self.nodes.append(node)
        self.dynamic = dynamic
        self.outputs = [value.name for value in graph.output]
        self.checkpoints = self._find_checkpoints()
        self._types: dict[str, Any] | None = None

    def _find_checkpoints(self) -> list[int]:
        last: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                last[name] = index
        last.update(dict.fromkeys(self.outputs, len(self.nodes)))
        alive = set(self.inputs)
        found = []
        for index, node in enumerate(self.nodes):
            alive.update(name for name in node.output if last.get(name, -1) > index)
            alive = {name for name in alive if last.get(name, -1) > index}
            if len(alive) == 1 and node.output[0] in alive:
                found.append(index)
        return found

    def types(self) -> Mapping[str, Any]:
        """Returns the ``ValueInfoProto`` of every floating-point tensor whose type is known, by name."""
        import onnx

        if self._types is None:
            graph = onnx.shape_inference.infer_shapes(self._model).graph
            kinds = onnx.TensorProto
            floats = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE)
            self._types = {
                value.name: value
                for value in (*graph.input, *graph.value_info, *graph.output)
                if value.type.tensor_type.elem_type in floats
            }
        return self._types

    def exposed(self, tensors: Iterable[str], path: Path) -> Path:
        """Writes a copy of the model to `path` in which `tensors` are outputs too."""
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        types = self.types()
        copy.graph.output.extend(
            types[name] for name in dict.fromkeys(tensors) if name in types and name not in self.outputs
        )
        files.write_bytes(path, copy.SerializeToString())
        return path


def stage_of(name: str) -> str:
    """Returns the part of the network that a node belongs to, by the names that torch leaves: layer3 → stage 3."""
    head = name.removeprefix("network.").split(".")[0]
    if head.startswith("layer") and head[5:].isdigit():
        return f"stage {head[5:]}"
    return "stem" if head in ("conv1", "relu", "maxpool", "bn1") else head


@dataclass(frozen=True)
class Matching:
    """Which node of the candidate stands for which of gold's.

    Attributes:
        gold: Index of gold's node by index of the candidate's.
        by_name: Whether nodes were paired by name, and not only by the order of operators.
    """

    gold: Mapping[int, int]
    by_name: bool


def match(candidate: Graph, gold: Graph) -> Matching:
    """Pairs the nodes of two graphs: by name where most names are in both, else by the order of operators."""
    theirs = {name_of(node): index for index, node in enumerate(gold.nodes)}
    pairs = {
        index: theirs[name_of(node)]
        for index, node in enumerate(candidate.nodes)
        if name_of(node) in theirs and gold.nodes[theirs[name_of(node)]].op_type == node.op_type
    }
    if 2 * len(pairs) >= min(len(candidate.nodes), len(gold.nodes)):
        return Matching(pairs, True)
    blocks = difflib.SequenceMatcher(
        None, [n.op_type for n in candidate.nodes], [n.op_type for n in gold.nodes], autojunk=False
    ).get_matching_blocks()
    return Matching({b.a + i: b.b + i for b in blocks for i in range(b.size)}, False)


class _Observer:
    """Values of tensors inside a model on one runtime, computed in as few runs as possible."""

    def __init__(self, target: Target, graph: Graph, feeds: Feeds, folder: Path) -> None:
        self._target, self._graph, self._feeds, self._folder = target, graph, feeds, folder
        self._values: dict[str, NDArray[Any]] = dict(feeds)
        self._requested: set[str] = set(feeds)
        self._runs = 0

    def values(self, tensors: Iterable[str]) -> Values:
        wanted = [name for name in tensors if name not in self._requested]
        if wanted:
            self._requested.update(wanted)
            source = self._source(wanted)
            self._values.update(next(iter(run(replace(self._target, source=source), [self._feeds]).outputs)))
        return self._values

    def _source(self, wanted: list[str]) -> ModelSource:
        target = self._target
        if target.source.factory is not None:
            by_node = {node.output[0]: name_of(node) for node in self._graph.nodes}
            arguments = {
                "factory": target.source.factory,
                "arguments": target.source.arguments,
                "names": {name: by_node[name] for name in wanted if name in by_node},
            }
            return ModelSource(
                factory="resnet_onnx.parity.watch:watched_program", arguments=arguments, label=target.source.name
            )
        self._runs += 1
        path = self._folder / f"{target.runtime}-{self._runs}.onnx"
        whole = ModelSource(path=self._graph.path, label=target.source.name)
        return whole.rewritten(self._graph.exposed(wanted, path))


def localize(
    candidate: Path,
    gold: Path,
    targets: Sequence[Target],
    feeds: Feeds,
    gold_feeds: Feeds,
    *,
    failed: Collection[str],
    precision: str = "fp32",
) -> Localisation:
    """Compares what lies inside a model on several runtimes with the same values of gold.

    Gold's file is evaluated in float64; it is the candidate's own where only runtimes are in question. Targets that
    take a torch factory are watched at their modules. Every value between is kept in memory, so that the feeds should
    be a few inputs, best those with the largest errors.

    Returns:
        The error per layer of all targets, and a first difference for each of `failed`.
    """
    ours = Graph(candidate)
    theirs = ours if candidate == gold else Graph(gold)
    pairs = match(ours, theirs)
    truth_source = ModelSource(path=theirs.path)
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as folder:
        truth = _Observer(Target(runtime="reference", source=truth_source), theirs, gold_feeds, Path(folder))
        compared = [index for index in ours.checkpoints if index in pairs.gold]
        ends = [theirs.nodes[pairs.gold[index]].output[0] for index in compared]
        truths = truth.values(ends)
        errors: dict[str, list[float | None]] = {}
        findings = []
        for target in targets:
            observer = _Observer(target, ours, feeds, Path(folder))
            values = observer.values(ours.nodes[index].output[0] for index in compared)
            column = errors[target.runtime] = [
                _error(truths.get(end), values.get(ours.nodes[index].output[0]))
                for index, end in zip(compared, ends, strict=True)
            ]
            if target.runtime in failed:
                search = _Search(ours, theirs, pairs, observer, truth, target.runtime, precision)
                findings.append(search.run(compared, column))
    return Localisation(
        layers=[
            LayerError(
                node=name_of(ours.nodes[index]),
                stage=stage_of(name_of(ours.nodes[index])),
                errors={name: column[place] for name, column in errors.items()},
            )
            for place, index in enumerate(compared)
        ],
        findings=findings,
    )


def _error(gold: NDArray[Any] | None, found: NDArray[Any] | None) -> float | None:
    if gold is None or found is None:
        return None
    return distance(gold, found).relative_rmse if gold.shape == found.shape else float("inf")


@dataclass(frozen=True)
class _Search:
    ours: Graph
    theirs: Graph
    pairs: Matching
    observer: _Observer
    truth: _Observer
    runtime: str
    precision: str

    def run(self, compared: Sequence[int], column: Sequence[float | None]) -> FirstDifference:
        floor = ROUNDINGS * UNIT_ROUNDOFF[self.precision]
        sound, start = floor, -1
        steps = [(index, error) for index, error in zip(compared, column, strict=True) if error is not None]
        for index, error in steps:
            if not error <= JUMP * sound:
                return self._inside(start + 1, index, floor)
            sound, start = max(sound, error), index
        # Several outputs, or a fault that a block's other branch dilutes: every node is looked at.
        return self._inside(0, len(self.ours.nodes) - 1, floor)

    def _inside(self, first: int, last: int, floor: float) -> FirstDifference:
        """Names the first node between two indices, both included, whose output is far worse than its inputs."""
        nodes = range(first, last + 1)
        ours = self.observer.values(
            name
            for node in self.ours.nodes[first : last + 1]
            for name in (*node.input, *node.output)
            if name in self.ours.dynamic
        )
        partners = [self.theirs.nodes[self.pairs.gold[i]] for i in nodes if i in self.pairs.gold]
        theirs = self.truth.values(
            name for node in partners for name in (*node.input, *node.output) if name in self.theirs.dynamic
        )
        best: tuple[float, FirstDifference] | None = None
        for i in nodes:
            if i not in self.pairs.gold:
                continue
            node, partner = self.ours.nodes[i], self.theirs.nodes[self.pairs.gold[i]]
            after = _error(theirs.get(partner.output[0]), ours.get(node.output[0]))
            slots = [
                (slot, _error(theirs.get(b), ours.get(a)))
                for slot, (a, b) in enumerate(zip(node.input, partner.input, strict=False))
                if a in self.ours.dynamic
            ]
            before = max((error for _, error in slots if error is not None), default=0.0)
            rewired = self._rewired(node, partner, [slot for slot, error in slots if error and error > JUMP * floor])
            if rewired is not None:
                return rewired
            if after is None:
                continue
            ratio = after / max(before, floor)
            if not ratio <= JUMP:
                return self._finding(node, partner, before, after, True)
            if best is None or ratio > best[0]:
                best = (ratio, self._finding(node, partner, before, after, False))
        if best is None or best[0] <= LEAST_STEP:
            why = (
                "no single node stands out with its intermediate values as outputs: the error grows step by step, or "
                "lies in what the runtime fuses when nobody looks"
            )
            return self._named(None, (0.0, 0.0), "", why, sure=False)
        return best[1]

    def _rewired(self, node: Any, partner: Any, slots: Sequence[int]) -> FirstDifference | None:
        """A node that reads from elsewhere than gold's does: what lies between is missing or new."""
        if self.theirs is self.ours or not self.pairs.by_name:
            return None
        for slot in slots:
            mine, golden = self._maker(self.ours, node.input[slot]), self._maker(self.theirs, partner.input[slot])
            if mine is None or golden is None or name_of(mine) == name_of(golden):
                continue
            names = {name_of(n) for n in self.ours.nodes}
            missing = name_of(golden) not in names
            named = golden if missing else mine
            cause = (
                f"Gold has it before {name_of(node)}, and this model has not: it goes on from {name_of(mine)}."
                if missing
                else f"Gold has {name_of(golden)} in this place."
            )
            error = _error(
                self.truth.values([partner.input[slot]]).get(partner.input[slot]),
                self.observer.values([node.input[slot]]).get(node.input[slot]),
            )
            why = "Sure: the two graphs are wired differently, and all before it agrees."
            return self._named(named, (0.0, float("inf") if error is None else error), cause, why)
        return None

    @staticmethod
    def _maker(graph: Graph, tensor: str) -> Any:
        return next((node for node in graph.nodes if tensor in node.output), None)

    def _finding(self, node: Any, partner: Any, before: float, after: float, clear: bool) -> FirstDifference:
        sure = clear and self.pairs.by_name
        if sure:
            why = "Sure: its inputs agree with gold, and its name is in both graphs."
        elif clear:
            why = "Likely: its inputs agree with gold, but nodes were matched by the order of operators, not by name."
        else:
            why = "Unsure: no output is far worse than its inputs; this is the steepest step."
        cause = describe_difference(self.ours, node, self.theirs, partner)
        return self._named(node, (before, after), cause, why, sure=sure)

    def _named(
        self, node: Any, errors: tuple[float, float], cause: str, why: str, *, sure: bool = True
    ) -> FirstDifference:
        return FirstDifference(
            runtime=self.runtime,
            node=None if node is None else name_of(node),
            op_type="" if node is None else node.op_type,
            stage="" if node is None else stage_of(name_of(node)),
            input_error=errors[0],
            output_error=errors[1],
            cause=cause,
            sure=sure,
            why=why,
        )


_SAME_WEIGHT = 1e-5
"""Relative difference up to which two weights count as equal: folding a batch norm in another order moves them by a
few float32 roundings, 1e-7 each."""


def describe_difference(ours: Graph, node: Any, theirs: Graph, partner: Any) -> str:
    """Says in words how a node's attributes and weights differ from its partner's."""
    import onnx
    from onnx import numpy_helper

    mine = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    golden = {a.name: onnx.helper.get_attribute_value(a) for a in partner.attribute}
    differences = [
        f"Its attribute {name} is {mine.get(name)}, gold's {golden.get(name)}."
        for name in sorted(mine.keys() | golden.keys())
        if str(mine.get(name)) != str(golden.get(name))
    ]
    kinds = ["input", "weight", "bias"] if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") else []
    for slot, (a, b) in enumerate(zip(node.input, partner.input, strict=False)):
        if a not in ours.initializers or b not in theirs.initializers:
            continue
        kind = kinds[slot] if slot < len(kinds) else f"input {slot}"
        left, right = (numpy_helper.to_array(g.initializers[n]) for g, n in ((ours, a), (theirs, b)))
        if left.shape != right.shape:
            differences.append(f"Its {kind} has shape {list(left.shape)}, gold's {list(right.shape)}.")
            continue
        transposed = any(x.name == "transB" and x.i for x in node.attribute)
        axis = 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and slot == 1 and not transposed) else 0
        differences += _describe_weight(kind, left.astype(np.float64), right.astype(np.float64), axis)
    if differences:
        return " ".join(differences)
    return "Its attributes and weights are gold's: the runtime computes it otherwise."


def _describe_weight(kind: str, left: NDArray[Any], right: NDArray[Any], axis: int) -> list[str]:
    if left.ndim == 0:
        left, right = left[None], right[None]
    axis = min(axis, left.ndim - 1)
    a = np.moveaxis(left, axis, 0).reshape(left.shape[axis], -1)
    b = np.moveaxis(right, axis, 0).reshape(a.shape)
    with np.errstate(all="ignore"):
        scale = np.maximum(np.linalg.norm(b, axis=1), np.linalg.norm(b) / np.sqrt(len(b)))
        differ = np.flatnonzero(~(np.linalg.norm(a - b, axis=1) <= _SAME_WEIGHT * scale))
        if not differ.size:
            return []
        first = int(differ[0])
        ratio = float(a[first] @ b[first] / (b[first] @ b[first])) if b[first].any() else float("nan")
        straight = np.linalg.norm(a[first] - ratio * b[first]) <= 1e-3 * np.linalg.norm(a[first])
    which = f"channel {first}" if differ.size == 1 else f"the first is channel {first}"
    how = f", ratio {ratio:.4g}" if straight and np.isfinite(ratio) else ", not by a common factor"
    if a.shape[1] == 1 and not np.isfinite(ratio):
        how = f", {float(a[first, 0]):.3g} in place of {float(b[first, 0]):.3g}"
    return [f"Its {kind} differs from the gold's in {differ.size} of {len(a)} output channels ({which}{how})."]


def draw(found: Localisation, title: str, path: Path) -> None:
    """Draws the error per layer: a line per runtime over the depth of the network; raises ``FileProblem``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none"}):
        figure = Figure(figsize=(max(7.0, 0.16 * len(found.layers)), 4.5), layout="constrained")
        axes = figure.subplots()
        places = range(len(found.layers))
        for name in found.layers[0].errors if found.layers else ():
            shown = [
                (place, error)
                for place, layer in enumerate(found.layers)
                if (error := layer.errors[name]) is not None and np.isfinite(error) and error > 0
            ]
            axes.plot([x for x, _ in shown], [y for _, y in shown], marker="o", markersize=3, label=name)
        nodes = [layer.node for layer in found.layers]
        named = sorted({finding.node for finding in found.findings if finding.node})
        axes.set_yscale("log")
        axes.set_xticks(list(places), nodes, rotation=90, fontsize=6)
        axes.set_ylabel("relative RMSE against float64")
        axes.set_title(f"{title}\nfirst difference: {', '.join(named)}" if named else title)
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
        kind = path.suffix.removeprefix(".").lower() or "png"
        with files.atomic_file(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=120)
