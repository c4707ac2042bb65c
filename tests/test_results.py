"""Documents: what earlier versions saved is still read, and what is written is read back."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.saved_results import SCHEMA_1, document, noisy, row

from resnet_onnx.cli.main import main
from resnet_onnx.results.bench import Bench, Latency
from resnet_onnx.results.commands import Recipes
from resnet_onnx.results.document import Document, ErrorDocument, ErrorRecord
from resnet_onnx.results.reading import KINDS, read, read_bench
from resnet_onnx.results.writing import encode, typed, write


def without(value: Any, *names: str) -> Any:
    """Leaves out keys wherever they are."""
    if isinstance(value, dict):
        return {key: without(item, *names) for key, item in value.items() if key not in names}
    return [without(item, *names) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_of_schema_1_is_read_and_written_as_it_was(kind: str) -> None:
    path = SCHEMA_1 / f"{kind}.json"
    found = read(path)
    assert found.kind == kind
    again, before = encode(found).decode(), json.loads(path.read_text())
    assert json.loads(again) == before
    assert list(json.loads(again)) == list(before), "the order of the fields is the same too"


def test_results_of_schema_1_are_compared_and_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bench = str(SCHEMA_1 / "bench.json")
    assert main(["compare", bench, bench, "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["rows"]) == 4
    files = [str(SCHEMA_1 / f"{kind}.json") for kind in KINDS]
    assert main(["report", *files, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for heading in ("How fast is it?", "Does every runtime compute the same?", "How often is it right?", "cost?"):
        assert heading in page


def test_fields_that_earlier_versions_did_not_write_may_be_absent(tmp_path: Path) -> None:
    newer = ("threads", "scenario", "harness", "includes", "pace_us", "p99.9", "best", "pareto", "layers", "gpu")
    before = without(json.loads((SCHEMA_1 / "bench.json").read_text()), *newer)
    (tmp_path / "old.json").write_text(json.dumps(before))
    found = read_bench(tmp_path / "old.json")
    first = found.results[0]
    assert (first.cpu_threads, first.scenario, first.loadgen, first.disturbance.pace_us) == (None, None, "", None)
    assert first.latency_ms.p99_9 is None
    assert main(["compare", str(tmp_path / "old.json"), str(SCHEMA_1 / "bench.json")]) == 0


def test_unknown_fields_are_ignored() -> None:
    assert typed(Bench, {**document(row(noisy(1))), "colour": "red"}).model.name == "net"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    found = typed(Bench, document(row(noisy(1), threads=2, latency_ms={"p50": 1.0, "p90": None, "p99": 2.0})))
    write(tmp_path / "new" / "r.json", found)
    assert encode(read_bench(tmp_path / "new" / "r.json")) == encode(found)


def test_nan_is_null_and_what_is_unset_is_absent() -> None:
    found = typed(Bench, document(row(noisy(1))))
    latency = Latency(p50=float("nan"), p90=float("inf"), p99=1.0, p99_9=2.0)
    written = json.loads(encode(replace(found, results=[replace(found.results[0], latency_ms=latency)])))["results"][0]
    assert [written["latency_ms"][name] for name in ("p50", "p90", "p99", "p99.9")] == [None, None, 1, 2]
    assert "threads" not in written


def test_values_of_numpy_and_paths_are_written_as_plain_ones() -> None:
    given = {
        "float": np.float32(0.5),
        "half": np.float16(1.5),
        "bfloat": ml_dtypes.bfloat16(2),
        "int": np.int64(3),
        "bool": np.bool_(True),
        "nan": math.nan,
        "inf": [math.inf, -math.inf, np.float32("nan")],
        "array": np.array([[1.0, np.nan]]),
        "path": Path("a/b"),
        "tuple": (1, (2,)),
        "set": {4},
        "none": None,
        5: "key",
    }
    (found,) = json.loads(encode(Recipes(recipes=[given])))["recipes"]  # type: ignore[list-item]
    assert found == {
        "float": 0.5,
        "half": 1.5,
        "bfloat": 2.0,
        "int": 3,
        "bool": True,
        "nan": None,
        "inf": [None, None, None],
        "array": [[1.0, None]],
        "path": "a/b",
        "tuple": [1, [2]],
        "set": [4],
        "none": None,
        "5": "key",
    }


def test_names_of_any_bytes_are_written() -> None:
    found = ErrorDocument(error=ErrorRecord(kind="file", message="caf\udce9.onnx: no such file"))
    assert json.loads(encode(found)) == {
        "schema": 1, "kind": "error", "error": {"kind": "file", "message": "caf?.onnx: no such file", "fix": None},
    }  # fmt: skip


def test_the_json_schema_in_the_docs_is_of_these_types() -> None:
    script = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "make_schemas.py"))
    assert (script["FILE"]).read_text(encoding="utf-8") == script["text"](), "python docs/make_schemas.py"
    printed = {form for form in _below(Document) if "kind" in vars(form)}
    assert set(script["PRINTED"]) == printed, "the schema has every document"


def _below(form: type[Document]) -> set[type[Document]]:
    return {form, *(below for child in form.__subclasses__() for below in _below(child))}
