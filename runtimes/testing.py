"""The contract suite: what every runtime promises, as tests that every adapter runs, ours and yours.

Subclass ``RuntimeContract`` in a test file; pytest does the rest::

    class TestMyRuntime(RuntimeContract):
        runtime = MyRuntime

An adapter that opens ONNX files needs nothing more. Another one overrides ``source`` to say how a ``Case`` reaches it.
The suite is about plumbing: names, dtypes, shapes, ownership, closing. Its tolerances are generous on purpose; whether
a runtime computes the right function to the last bit is the business of a parity check.

Needs pytest, and onnx for the adapters that open ONNX files.
"""

# ruff: noqa: D102 (the names of the tests say what they say)
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from runtimes.base import Prepared, Runtime
from runtimes.errors import BadFeeds, RunFailed, RuntimeClosed, ToolkitError, UnsupportedModel, UsageError
from runtimes.fake import FakeProgram
from runtimes.spec import Dimension, Feeds, ModelForm, ModelSource, RuntimeOptions, Scope, TensorSpec

SCOPES: tuple[Scope, ...] = ("device", "end-to-end")
BATCHES = (1, 7, 257)
"""One, an odd number, and more than any vector width or default profile."""

_OPSET, _IR_VERSION = 18, 9


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny model: as an ONNX graph, and as a NumPy function that says what is right.

    Attributes:
        name: Of the case; also names its file.
        compute: The truth, from arrays by input name to arrays by output name.
        nodes: ``(operator, inputs, outputs, attributes)`` in order.
        constants: Initialisers by name.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compute: Callable[[Feeds], Mapping[str, NDArray[Any]]]
    nodes: tuple[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]], ...]
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def feeds(self, batch: int = 3, *, seed: int = 0) -> dict[str, NDArray[Any]]:
        """Returns random inputs; a dimension called ``batch`` has the extent `batch`."""
        random = np.random.default_rng(seed)
        arrays = {}
        for spec in self.inputs:
            shape = spec.concrete(batch=batch)
            drawn = random.standard_normal(shape) if spec.dtype.kind == "f" else random.integers(0, 100, shape)
            arrays[spec.name] = np.asarray(drawn).astype(spec.dtype)
        return arrays

    def write(self, folder: Path) -> Path:
        """Writes the ONNX file into `folder` and returns its path."""
        import onnx
        from onnx import helper, numpy_helper

        def value(spec: TensorSpec) -> Any:
            return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype), spec.shape)

        nodes = [
            helper.make_node(operator, inputs, outputs, name=f"{operator.lower()}{index}", **attributes)
            for index, (operator, inputs, outputs, attributes) in enumerate(self.nodes)
        ]
        graph = helper.make_graph(
            nodes,
            self.name,
            [value(spec) for spec in self.inputs],
            [value(spec) for spec in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        path = folder / f"{self.name}.onnx"
        onnx.save(model, path)
        return path


def _spec(name: str, dtype: type[np.generic], *shape: Dimension) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


def _plain_cases() -> Iterator[Case]:
    f32 = np.float32
    weight = np.linspace(-1, 1, 15, dtype=f32).reshape(5, 3, 1, 1)
    bias = np.linspace(0, 1, 5, dtype=f32)
    yield Case(
        name="convolution",
        inputs=(_spec("x", f32, "batch", 3, 4, 4),),
        outputs=(_spec("y", f32, "batch", 5, 4, 4),),
        compute=lambda f: {"y": np.einsum("nchw,kc->nkhw", f["x"], weight[:, :, 0, 0]) + bias[:, None, None]},
        nodes=(("Conv", ["x", "weight", "bias"], ["y"], {}),),
        constants={"weight": weight, "bias": bias},
    )
    # Neither inputs nor outputs are in alphabetical order, and neither may be swapped unnoticed.
    yield Case(
        name="several",
        inputs=(_spec("minuend", f32, "batch", 4), _spec("amount", f32, "batch", 4)),
        outputs=(_spec("sum", f32, "batch", 4), _spec("difference", f32, "batch", 4)),
        compute=lambda f: {"sum": f["minuend"] + f["amount"], "difference": f["minuend"] - f["amount"]},
        nodes=(("Add", ["minuend", "amount"], ["sum"], {}), ("Sub", ["minuend", "amount"], ["difference"], {})),
    )
    yield Case(
        name="fixed",
        inputs=(_spec("x", f32, 2, 3),),
        outputs=(_spec("y", f32, 2, 3),),
        compute=lambda f: {"y": f["x"] * f["x"]},
        nodes=(("Mul", ["x", "x"], ["y"], {}),),
    )
    yield Case(
        name="integers",
        inputs=(_spec("x", np.int64, "batch", 4),),
        outputs=(_spec("y", np.int64, "batch", 4),),
        compute=lambda f: {"y": f["x"] + f["x"]},
        nodes=(("Add", ["x", "x"], ["y"], {}),),
    )
    yield Case(
        name="bytes",
        inputs=(_spec("x", np.uint8, "batch", 4, 4, 3),),
        outputs=(_spec("y", f32, "batch", 4, 4, 3),),
        compute=lambda f: {"y": f["x"].astype(f32) * f32(0.5)},
        nodes=(("Cast", ["x"], ["wide"], {"to": 1}), ("Mul", ["wide", "scale"], ["y"], {})),
        constants={"scale": np.array(0.5, f32)},
    )
    yield Case(
        name="half",
        inputs=(_spec("x", np.float16, "batch", 4),),
        outputs=(_spec("y", np.float16, "batch", 4),),
        compute=lambda f: {"y": f["x"] + f["x"]},
        nodes=(("Add", ["x", "x"], ["y"], {}),),
    )


def _odd_cases() -> Iterator[Case]:
    f32 = np.float32
    yield Case(
        name="scalars",
        inputs=(_spec("x", f32, "batch", 4), _spec("gain", f32)),
        outputs=(_spec("y", f32, "batch", 4), _spec("total", f32)),
        compute=lambda f: {"y": f["x"] * f["gain"], "total": np.sum(f["x"] * f["gain"])},
        nodes=(("Mul", ["x", "gain"], ["y"], {}), ("ReduceSum", ["y"], ["total"], {"keepdims": 0})),
    )
    # What comes out is what went in, or is kept by the model: nothing of either may be handed to the caller.
    yield Case(
        name="passing",
        inputs=(_spec("x", f32, "batch", 4),),
        outputs=(_spec("y", f32, "batch", 4), _spec("kept", f32, 3)),
        compute=lambda f: {"y": f["x"], "kept": np.array([1, 2, 3], f32)},
        nodes=(("Identity", ["x"], ["y"], {}), ("Identity", ["stored"], ["kept"], {})),
        constants={"stored": np.array([1, 2, 3], f32)},
    )
    # Opens with any extents, runs only where columns and rows are equal.
    yield Case(
        name="fragile",
        inputs=(_spec("x", f32, "batch", "columns"), _spec("z", f32, "rows", 2)),
        outputs=(_spec("y", f32, "batch", 2),),
        compute=lambda f: {"y": f["x"] @ f["z"]},
        nodes=(("MatMul", ["x", "z"], ["y"], {}),),
    )


CASES: Mapping[str, Case] = MappingProxyType({case.name: case for case in (*_plain_cases(), *_odd_cases())})
"""The models of the suite by name."""


def fake_program(case: str) -> FakeProgram:
    """Returns a case as a Python function: the factory ``runtimes.testing:fake_program``."""
    chosen = CASES[case]
    return FakeProgram(inputs=chosen.inputs, outputs=chosen.outputs, function=chosen.compute)


def assert_matches(results: Feeds, case: Case, feeds: Feeds, outputs: Sequence[TensorSpec]) -> None:
    """Asserts names in order, dtypes and shapes as `outputs` say, and values near what the case computes."""
    truth = case.compute(feeds)
    assert list(results) == [spec.name for spec in outputs] == [spec.name for spec in case.outputs]
    for spec in outputs:
        found, right = results[spec.name], np.asarray(truth[spec.name])
        assert isinstance(found, np.ndarray), f"'{spec.name}' is a {type(found).__name__}, expected an array"
        assert found.dtype == spec.dtype, f"'{spec.name}' is {found.dtype}, its spec says {spec.dtype}"
        assert found.shape == right.shape, f"'{spec.name}' has shape {found.shape}, expected {right.shape}"
        if right.dtype.kind == "f":
            np.testing.assert_allclose(
                found.astype(np.float64), right.astype(np.float64), rtol=1e-2, atol=1e-2, err_msg=spec.name
            )
        else:
            np.testing.assert_array_equal(found, right, err_msg=spec.name)


def _run_prepared(runtime: Runtime, feeds: Feeds) -> dict[str, NDArray[Any]]:
    with runtime.prepare(feeds) as prepared:
        prepared.enqueue()
        return prepared.outputs()


class RuntimeContract:
    """The promises of ``runtimes.base`` as tests; a subclass names the adapter in ``runtime``.

    Attributes:
        runtime: The adapter class.
        device: Device to open on; None is the runtime's default.
        unsupported: Reasons by case name, for what the library truly lacks; such a case is skipped with the reason.
    """

    runtime: ClassVar[type[Runtime]]
    device: ClassVar[str | None] = None
    unsupported: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def source(self, case: Case, folder: Path) -> ModelSource:
        """Returns how the case reaches the adapter: by default as an ONNX file written into `folder`."""
        return ModelSource(path=case.write(folder), label=case.name)

    # ---- plumbing of the suite ----

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path) -> None:
        answer = self.runtime.probe(self.device)
        if not answer.available:
            pytest.skip(f"{self.runtime.name} can't run here: {answer.reason}")
        self._folder = tmp_path

    def _open(self, case: str, options: RuntimeOptions | None = None) -> Runtime:
        if case in self.unsupported:
            pytest.skip(self.unsupported[case])
        source = self.source(CASES[case], self._folder)
        device = self.runtime.resolve_device(self.device)
        return self.runtime(source, device=device, options=options or RuntimeOptions(threads=1))

    @contextmanager
    def _opened(self, name: str, batch: int = 3) -> Iterator[tuple[Runtime, Case, dict[str, NDArray[Any]]]]:
        with self._open(name) as runtime:
            yield runtime, CASES[name], CASES[name].feeds(batch)

    # ---- what an opened runtime says of itself ----

    def test_it_says_what_it_is(self) -> None:
        with self._open("convolution") as runtime:
            assert runtime.name == self.runtime.name
            assert runtime.name
            assert runtime.version[0].isdigit(), runtime.version
            assert runtime.device == self.runtime.resolve_device(self.device)

    def test_its_declarations_are_of_things_that_exist(self) -> None:
        assert self.runtime.title
        assert self.runtime.opens
        assert set(self.runtime.opens) <= set(get_args(ModelForm))
        assert self.runtime.uses <= {field.name for field in fields(RuntimeOptions)}
        assert self.runtime.precisions

    def test_probe_agrees(self) -> None:
        answer = self.runtime.probe(self.device)
        assert (answer.name, answer.available, answer.reason) == (self.runtime.name, True, None)
        assert answer.devices
        assert answer.version
        assert answer.version[0].isdigit()

    @pytest.mark.parametrize("case", CASES)
    def test_inputs_and_outputs_are_the_models_own(self, case: str) -> None:
        with self._open(case) as runtime:
            wanted = CASES[case]
            assert runtime.inputs == wanted.inputs
            assert [spec.name for spec in runtime.outputs] == [spec.name for spec in wanted.outputs]
            for found, right in zip(runtime.outputs, wanted.outputs, strict=True):
                assert len(found.shape) == len(right.shape)
                # Symbolic dimensions of outputs are named by the library; fixed ones are facts.
                assert [d for d in found.shape if isinstance(d, int)] == [d for d in right.shape if isinstance(d, int)]

    def test_placement_names_provider_and_device(self) -> None:
        with self._open("convolution") as runtime:
            rows = runtime.placement()
            assert rows
            assert all(row.node and row.provider for row in rows)
            assert {row.device for row in rows} == {runtime.device}

    def test_options_are_recorded_as_they_were_set(self) -> None:
        with self._open("convolution", RuntimeOptions(threads=1)) as runtime:
            assert runtime.recorded, "nothing was recorded"
            assert json.loads(json.dumps(dict(runtime.recorded))) == dict(runtime.recorded)
            if "threads" in self.runtime.uses:
                assert runtime.recorded["threads"] == 1

    @pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "", "CPU"])
    def test_a_misspelt_device_is_refused(self, device: str) -> None:
        with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
            self.runtime.resolve_device(device)

    # ---- results ----

    @pytest.mark.parametrize("case", [name for name in CASES if name != "fixed"])
    @pytest.mark.parametrize("batch", BATCHES)
    def test_run_computes_every_output(self, case: str, batch: int) -> None:
        with self._opened(case, batch) as (runtime, chosen, feeds):
            assert_matches(runtime.run(feeds), chosen, feeds, runtime.outputs)

    def test_batches_may_change_from_run_to_run(self) -> None:
        with self._opened("convolution") as (runtime, case, _):
            for seed, batch in enumerate((2, 5, 1, 5)):
                feeds = case.feeds(batch, seed=seed)
                assert_matches(runtime.run(feeds), case, feeds, runtime.outputs)

    def test_a_fixed_batch_runs_and_no_other(self) -> None:
        with self._opened("fixed") as (runtime, case, feeds):
            assert_matches(runtime.run(feeds), case, feeds, runtime.outputs)
            with pytest.raises(BadFeeds, match=r"given shape \[3, 3\], expected \[2, 3\]"):
                runtime.run({"x": np.zeros((3, 3), np.float32)})

    def test_the_order_of_feeds_does_not_matter(self) -> None:
        with self._opened("several") as (runtime, case, feeds):
            assert_matches(runtime.run(dict(reversed(feeds.items()))), case, feeds, runtime.outputs)

    def test_nan_and_infinity_pass_through(self) -> None:
        with self._opened("convolution", 2) as (runtime, _, feeds):
            feeds["x"][0, 1, 2, 3] = np.nan
            feeds["x"][1, 0, 0, 0] = np.inf
            found = runtime.run(feeds)["y"]
            assert np.isnan(found[0, :, 2, 3]).all(), "the NaN was lost"
            assert not np.isfinite(found[1, :, 0, 0]).any(), "the infinity was lost"
            planted = np.zeros(found.shape, bool)
            planted[0, :, 2, 3] = planted[1, :, 0, 0] = True
            assert np.isfinite(found[~planted]).all(), "it reached places that it does not belong to"

    @pytest.mark.parametrize("case", ["convolution", "several", "passing", "scalars"])
    def test_results_belong_to_the_caller(self, case: str) -> None:
        with self._opened(case) as (runtime, chosen, feeds):
            first = runtime.run(feeds)
            before = {name: array.copy() for name, array in feeds.items()}
            for array in first.values():
                array.fill(99)
            for name, array in feeds.items():
                np.testing.assert_array_equal(array, before[name], "writing to a result changed the feeds")
            again = runtime.run(feeds)
            assert_matches(again, chosen, feeds, runtime.outputs)
            kept = {name: array.copy() for name, array in again.items()}
            runtime.run(chosen.feeds(seed=1))
            for array in feeds.values():
                array.fill(0)
        for name, array in again.items():
            np.testing.assert_array_equal(array, kept[name], "a later run, the feeds or close() changed a result")

    def test_run_leaves_the_feeds_alone(self) -> None:
        with self._opened("several") as (runtime, case, feeds):
            runtime.run(feeds)
            for name, array in case.feeds().items():
                np.testing.assert_array_equal(feeds[name], array)

    def test_strided_and_read_only_feeds_are_taken(self) -> None:
        with self._opened("several") as (runtime, case, feeds):
            expected = {name: array.copy() for name, array in feeds.items()}
            feeds["minuend"] = np.asfortranarray(feeds["minuend"])
            wide = np.zeros((3, 8), np.float32)
            wide[:, ::2] = feeds["amount"]
            feeds["amount"] = wide[:, ::2]
            for array in feeds.values():
                array.flags.writeable = False
            assert_matches(runtime.run(feeds), case, expected, runtime.outputs)
            for scope in SCOPES:
                with runtime.prepare(feeds, scope=scope) as prepared:
                    prepared.enqueue()
                    assert_matches(prepared.outputs(), case, expected, runtime.outputs)

    def test_a_run_that_fails_says_so_and_the_next_one_works(self) -> None:
        with self._opened("fragile", 2) as (runtime, case, feeds):
            misfits = {"x": np.ones((1, 3), np.float32), "z": np.ones((4, 2), np.float32)}
            for attempt in (runtime.run, partial(_run_prepared, runtime), runtime.run):
                assert_matches(runtime.run(feeds), case, feeds, runtime.outputs)
                with pytest.raises(RunFailed, match=runtime.name):
                    attempt(misfits)
                assert_matches(runtime.run(feeds), case, feeds, runtime.outputs)

    # ---- feeds ----

    def _refused(self, case: str, feeds: Feeds, *expected: str) -> None:
        with self._open(case) as runtime:
            for attempt in (runtime.run, runtime.prepare):
                with pytest.raises(BadFeeds) as caught:
                    attempt(feeds)
                for text in (runtime.name, *expected):
                    assert text in caught.value.message

    def test_missing_unknown_and_wrong_inputs_are_told_against_the_right_ones(self) -> None:
        feeds = CASES["several"].feeds()
        del feeds["amount"]
        self._refused("several", feeds, "missing amount", "minuend: float32[batch, 4]", "amount: float32[batch, 4]")
        x = CASES["convolution"].feeds()["x"]
        self._refused("convolution", {"x": x, "z": x}, "unknown z", "x: float32[batch, 3, 4, 4]")
        self._refused("convolution", {"x": x.astype(np.float64)}, "'x'", "given float64", "expected float32")

    @pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 4, 4), (2, 3, 4, 4, 1), (2, 3, 8, 8), ()])
    def test_a_wrong_shape_is_told_against_the_right_one(self, shape: tuple[int, ...]) -> None:
        feeds = {"x": np.zeros(shape, np.float32)}
        self._refused("convolution", feeds, f"given shape {list(shape)}", "expected [batch, 3, 4, 4]")

    def test_one_symbolic_dimension_has_one_extent(self) -> None:
        feeds = {"minuend": np.zeros((3, 4), np.float32), "amount": np.zeros((2, 4), np.float32)}
        self._refused("several", feeds, "'batch'", "3 in input 'minuend'", "2 in input 'amount'")

    def test_an_empty_batch_is_refused(self) -> None:
        self._refused("convolution", {"x": np.zeros((0, 3, 4, 4), np.float32)}, "no elements", "'batch'")

    # ---- prepared runs ----

    @pytest.mark.parametrize("case", list(CASES))
    @pytest.mark.parametrize("scope", SCOPES)
    def test_prepared_equals_run(self, case: str, scope: Scope) -> None:
        with self._opened(case, 7) as (runtime, _, feeds):
            right = runtime.run(feeds)
            with runtime.prepare(feeds, scope=scope) as prepared:
                assert prepared.scope == scope
                for _ in range(3):
                    prepared.enqueue()
                prepared.synchronize()
                found = prepared.outputs()
            assert list(found) == list(right)
            for name, array in right.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("scope", SCOPES)
    def test_prepared_runs_are_independent(self, scope: Scope) -> None:
        with self._opened("several") as (runtime, case, _):
            feeds = [case.feeds(batch, seed=batch) for batch in (2, 5)]
            one, two = (runtime.prepare(f, scope=scope) for f in feeds)
            for _ in range(3):
                one.enqueue()
                two.enqueue()
            other = case.feeds(4, seed=9)
            assert_matches(runtime.run(other), case, other, runtime.outputs)
            assert_matches(one.outputs(), case, feeds[0], runtime.outputs)
            one.close()
            two.enqueue()
            two.synchronize()
            two.synchronize()
            assert_matches(two.outputs(), case, feeds[1], runtime.outputs)
            two.close()

    @pytest.mark.parametrize("streams", [1, 2, None])
    @pytest.mark.parametrize("scope", SCOPES)
    def test_prepared_runs_may_run_at_the_same_time(self, scope: Scope, streams: int | None) -> None:
        case = CASES["convolution"]
        with self._open("convolution", RuntimeOptions(threads=2, streams=streams)) as runtime:
            assert runtime.streams == streams or (streams is None and runtime.streams >= 1)
            if "threads" in self.runtime.uses:
                assert runtime.recorded["threads"] == 2, "all streams share them"
            feeds = [case.feeds(batch, seed=batch) for batch in (3, 5)]
            lanes = [runtime.prepare(f, scope=scope) for f in feeds]

            def run(lane: Prepared) -> list[dict[str, NDArray[Any]]]:
                found = []
                for _ in range(20):
                    lane.enqueue()
                    lane.synchronize()
                    found.append(lane.outputs())
                return found

            with ThreadPoolExecutor(len(lanes)) as threads:
                for results, given in zip(threads.map(run, lanes), feeds, strict=True):
                    for result in results:
                        assert_matches(result, case, given, runtime.outputs)

    def test_a_profile_has_every_layer_once_or_is_refused(self) -> None:
        with self._opened("convolution") as (runtime, case, feeds):
            try:
                layers = runtime.profile(feeds, runs=3)
            except UnsupportedModel as refused:
                if runtime.name not in refused.message:
                    raise
                return
            assert layers
            assert len({layer.name for layer in layers}) == len(layers)
            assert all(layer.name and layer.operator and 0 <= layer.seconds < 10 for layer in layers)
            assert sum(layer.seconds for layer in layers) > 0
            with pytest.raises(UsageError, match="runs must be at least 1"):
                runtime.profile(feeds, runs=0)
            assert_matches(runtime.run(feeds), case, case.feeds(), runtime.outputs)

    @pytest.mark.parametrize("scope", SCOPES)
    def test_prepared_outputs_belong_to_the_caller(self, scope: Scope) -> None:
        with self._opened("passing") as (runtime, case, feeds):
            with runtime.prepare(feeds, scope=scope) as prepared:
                prepared.enqueue()
                for array in prepared.outputs().values():
                    array.fill(99)
                assert_matches(prepared.outputs(), case, case.feeds(), runtime.outputs)
                prepared.enqueue()
                assert_matches(prepared.outputs(), case, case.feeds(), runtime.outputs)
            assert_matches(runtime.run(feeds), case, case.feeds(), runtime.outputs)

    # ---- closing ----

    def test_closing_twice_is_fine(self) -> None:
        runtime = self._open("convolution")
        prepared = runtime.prepare(CASES["convolution"].feeds())
        for close in (prepared.close, prepared.close, runtime.close, runtime.close):
            close()

    def test_use_after_close_names_itself(self) -> None:
        feeds = CASES["convolution"].feeds()
        with self._open("convolution") as runtime:
            pass
        for attempt in (lambda: runtime.run(feeds), lambda: runtime.prepare(feeds), runtime.placement):
            with pytest.raises(RuntimeClosed, match=f"^{runtime.name}: this runtime was closed"):
                attempt()
        with pytest.raises(RuntimeClosed), runtime:
            pytest.fail("a closed runtime was entered again")

    @pytest.mark.parametrize("scope", SCOPES)
    @pytest.mark.parametrize("closed", ["prepared", "runtime"])
    def test_a_prepared_run_is_closed_with_its_runtime_or_by_itself(self, scope: Scope, closed: str) -> None:
        runtime = self._open("convolution")
        prepared = runtime.prepare(CASES["convolution"].feeds(), scope=scope)
        prepared.enqueue()
        (prepared if closed == "prepared" else runtime).close()
        for attempt in (prepared.enqueue, prepared.synchronize, prepared.outputs):
            with pytest.raises(RuntimeClosed, match="prepared run was closed"):
                attempt()
        prepared.close()
        runtime.close()

    def test_leaving_the_block_closes_also_after_an_error(self) -> None:
        with pytest.raises(ZeroDivisionError), self._open("convolution") as runtime:
            _ = 1 / 0
        with pytest.raises(RuntimeClosed):
            runtime.run(CASES["convolution"].feeds())

    # ---- sources ----

    def test_a_source_in_the_wrong_form_is_a_plain_error(self) -> None:
        nowhere = self._folder / "nowhere.onnx"
        device = self.runtime.resolve_device(self.device)
        with pytest.raises(ToolkitError) as caught:
            self.runtime(ModelSource(path=nowhere), device=device, options=RuntimeOptions())
        assert str(nowhere) in str(caught.value)
