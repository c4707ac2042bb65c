"""``bench --csv`` and ``--markdown``: the table of the terminal for other programs."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from support.saved_results import document, noisy, row

from resnet_onnx.cli.bench import _table
from resnet_onnx.cli.main import main
from resnet_onnx.report import columns
from resnet_onnx.report.assemble import write_report
from resnet_onnx.results import tables
from resnet_onnx.results.bench import Bench
from resnet_onnx.results.writing import typed


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_every_row_with_units_and_leaves_what_is_unknown_empty() -> None:
    lost = {"kind": "out-of-memory", "message": 'a "batch", too large\nby far', "fix": None}
    found = document(
        row(noisy(1), images_per_second=2000.5, images_per_second_ci95=[1990.0, 2010.0], includes=["decode"]),
        row(noisy(2), batch=64, error=lost, images_per_second=None, images_per_second_ci95=None, stable=False),
    )
    first, second = rows_of(columns.bench_csv(typed(Bench, found).results))
    assert (first["model"], first["runtime"], first["batch"], first["includes"]) == ("net", "ort-cpu", "8", "decode")
    assert [first[f"images_per_s{end}"] for end in ("", "_low95", "_high95")] == ["2000.5", "1990.0", "2010.0"]
    assert float(first["p50_ms"]) == found["results"][0]["latency_ms"]["p50"]
    assert (first["p90_ms"], first["error"], first["includes"]) == ("", "", "decode")
    assert (second["images_per_s"], second["images_per_s_low95"], second["stable"]) == ("", "", "False")
    assert second["error"] == 'a "batch", too large\nby far'
    assert None not in first  # no cell beyond the headings


def test_a_new_column_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the terminal's table and Markdown, on the page and in the CSV."""
    spread = columns.Column(
        heading="p99 ÷ p50",
        cell=lambda row, table: f"{(row.latency_ms.p99 or 0) / (row.latency_ms.p50 or 1):.1f}",
        csv={"p99_over_p50": lambda row: (row.latency_ms.p99 or 0) / (row.latency_ms.p50 or 1)},
    )
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, spread))
    found = typed(Bench, document(row(noisy(1), latency_ms={"p50": 2.0, "p90": 2.5, "p99": 3.0})))
    headings, cells = _table(found.results)
    assert (headings[-1], cells[0][-1]) == ("p99 ÷ p50", "1.5")
    assert rows_of(columns.bench_csv(found.results))[0]["p99_over_p50"] == "1.5"
    write_report(tmp_path / "page.html", [found])
    assert '<th scope="col">p99 ÷ p50</th>' in (tmp_path / "page.html").read_text()


def test_markdown_keeps_its_form_whatever_the_cells_say() -> None:
    text = tables.markdown(
        ["runtime", "img/s"], [["a|b ~", "1"], ["<b>*x*", "2\n3"]], above=["**net**", "a_CPU"], below=["  ~ why"],
        command=["resnet-onnx", "bench", "a file.onnx"],
    )  # fmt: skip
    assert text.splitlines() == [
        "**net**", "", r"a\_CPU", "", "| runtime | img/s |", "| :--- | ---: |", r"| a\|b \~ | 1 |",
        r"| \<b\>\*x\* | 2 3 |", "", r"- \~ why", "", "```", "resnet-onnx bench 'a file.onnx'", "```",
    ]  # fmt: skip


def test_bench_writes_both_with_the_rows_that_it_prints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["cifar-resnet20", "--runtime", "ort-cpu", "--batch", "1,2", "--duration", "0.2", "--quiet"]
    sheet, page, saved = tmp_path / "new" / "b.csv", tmp_path / "b.md", tmp_path / "b.json"
    files = ["--csv", str(sheet), "--markdown", str(page), "--save", str(saved)]
    assert main(["bench", *arguments, *files]) == 0
    shown = [line.split() for line in capfd.readouterr().out.splitlines() if line.startswith(" ort-cpu")]
    kept = json.loads(saved.read_text())["results"]
    found = rows_of(sheet.read_text())
    assert [(cells["runtime"], cells["batch"]) for cells in found] == [("ort-cpu", "1"), ("ort-cpu", "2")]
    assert [float(cells["images_per_s"]) for cells in found] == [one["images_per_second"] for one in kept]
    table = [
        re.sub(r"[|\\]", " ", line).split() for line in page.read_text().splitlines() if line.startswith("| ort-cpu")
    ]
    assert table == shown
    assert len(shown) == 2


@pytest.mark.parametrize("option", ["--save", "--csv", "--markdown"])
def test_a_place_that_can_not_be_written_is_said_before_anything_is_measured(
    option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "b.txt"
    # A model that does not exist would be the next thing to be told.
    assert main(["bench", "none.onnx", "--runtime", "ort-cpu", option, str(place)]) == 2
    assert f"'{place}' can't be written: {tmp_path / 'file'} is a file, expected a folder" in capfd.readouterr().err
