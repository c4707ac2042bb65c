"""``docs/make_results.py``: the README's table of all models, made from files that a second start finds again."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from support.saved_results import named, noisy, row

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_results.py"))


def saved(folder: Path, model: str, level_ns: float, **changes: Any) -> Path:
    path = folder / f"{model}.json"
    path.write_text(json.dumps(named(model, row(noisy(1, level_ns=level_ns), **changes))))
    return path


def test_the_table_has_a_row_for_each_model_and_the_machine_above(script: dict[str, Any], tmp_path: Path) -> None:
    text = script["table"]([saved(tmp_path, "a", 4e6), saved(tmp_path, "b", 8e6, runtime="torch", stable=False)])
    assert "CPU, 2 cores · torch 2.15.0 · onnxruntime 1.31.1" in text
    assert "| model | torch fp32 | ort-cpu fp32 |\n| :--- | ---: | ---: |\n" in text
    assert "| a | – | 2,000 ★ |\n| b | 1,000 ★ \\~ | – |\n" in text
    with pytest.raises(SystemExit, match="two models"):
        script["table"]([saved(tmp_path, "a", 4e6)])


def test_the_readme_gets_the_table_once(script: dict[str, Any]) -> None:
    first = script["with_results"]("# net\n\n## What runs where\n\nall\n", "| one |\n")
    assert first.index("| one |") < first.index("docs/report.png") < first.index("## What runs where")
    second = script["with_results"](first, "| two |\n")
    assert second == first.replace("| one |", "| two |")
    with pytest.raises(SystemExit, match="What runs where"):
        script["with_results"]("# another", "| one |")


def test_what_is_there_is_not_measured_again(script: dict[str, Any], tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def tool(*arguments: Any) -> int:
        asked.append(arguments)
        if arguments[0] == "bench":
            Path(arguments[-1]).write_text("{}")
        return 0

    script["measure"].__globals__["tool"] = tool
    assert [script["measure"](tmp_path, "net", "fp32", seconds=0.5) for _ in range(2)] == [True, True]
    assert [arguments[0] for arguments in asked] == ["bench"]
    assert asked[0][1:3] == ("net", "--runtime")
    assert (tmp_path / "net-fp32.json").is_file()
