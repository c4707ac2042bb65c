"""``report``: one page of any mix of results, seen in a real browser at the width of a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.saved_results import document, named, noisy, row

from resnet_onnx.cli.main import main
from resnet_onnx.report import charts
from resnet_onnx.report.charts import Bar
from resnet_onnx.report.page import Section, write_page
from resnet_onnx.results.commands import Finding

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def saved_body(kind: str, result: dict[str, Any], command: list[str]) -> dict[str, Any]:
    base = document(row(noisy(1)))
    return {
        "schema": 1, "kind": kind, "made": "2026-11-23T20:00:00Z", "tool": "resnet-onnx 0.1.0", "command": command,
        "environment": base["environment"], "artifacts": {"onnx_sha256": "c" * 64}, "result": result,
    }  # fmt: skip


def bench() -> dict[str, Any]:
    error = {"kind": "out-of-memory", "message": "8 GiB are not there", "fix": None}
    return document(
        row(noisy(1), batch=8),
        row(noisy(2, level_ns=8e5), batch=1),
        row(noisy(3, level_ns=3e6), runtime="openvino", batch=8, stable=False, unstable_reason="other programs <b>"),
        row(noisy(4), batch=64, error=error, images_per_second=None, images_per_second_ci95=None, stable=False),
    )


def parity(*, error: float | None = 3e-7) -> dict[str, Any]:
    passed = error is not None and error <= 1e-6
    first = {"runtime": "torch", "relative_rmse": 2e-7, "budget": 1e-6, "top1_agreement": 1.0, "passed": True}
    second = {"runtime": "ort-cpu", "relative_rmse": error, "budget": 1e-6, "top1_agreement": 0.5, "passed": passed}
    result = {
        "model": "net", "precision": "fp32", "passed": passed, "gold": "torch float64", "pictures": 22,
        "results": [{**first, "reason": "near"}, {**second, "reason": "ort-cpu is far from gold"}],
        "budgets": {"logits": {"reason": "4 roundings in each of 30 layers"}},
    }  # fmt: skip
    return saved_body("parity", result, ["parity", "a file.onnx"])


def evaluate() -> dict[str, Any]:
    known = {"top5": None, "images": 300, "images_per_second": 1698.4, "skipped": []}
    result = {
        "model": "net", "precision": "fp32", "data": "digits",
        "results": [{"runtime": "ort-cpu", "top1": 0.98, **known}, {"runtime": "torch", "top1": 0.99, **known}],
    }  # fmt: skip
    return saved_body("evaluate", result, ["evaluate", "net.onnx", "--data", "digits"])


def convert(**changes: Any) -> dict[str, Any]:
    result = {
        "model": "net", "precision": "int8", "method": "mse", "agreement": 0.984, "agreement_images": 2000,
        "size_ratio": 0.27, "sqnr_db": 27.31, "kept_fp32": [{"node": "fc", "reason": "asked for"}],
        "gate": {
            "kind": "top1", "top1": 0.8, "drop_points": 0.12, "drop_ci95": [-0.1, 0.34], "max_drop_points": 1.0,
        },
        "weights": [{"layer": "stem", "sqnr_db": 31.0}, {"layer": "layer1.0", "sqnr_db": 22.0}],
        "speed": {"batch": 8, "runtimes": {"ort-cpu": {"speedup": 2.6, "images_per_second": 1234.5}}},
        **changes,
    }  # fmt: skip
    return saved_body("convert", result, ["convert", "net.onnx", "--to", "int8"])


def made(folder: Path, *documents: dict[str, Any]) -> str:
    names = []
    for index, found in enumerate(documents):
        names.append(str(folder / f"{index}.json"))
        Path(names[-1]).write_text(json.dumps(found))
    assert main(["report", *names, "--out", str(folder / "page.html"), "--quiet"]) == 0
    return (folder / "page.html").read_text()


class Outline(HTMLParser):
    """Headings, tables, and every address that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self._into: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._into = self.tables[-1][-1]
            self._into.append("")
        elif tag in ("h1", "h2"):
            self._into = self.headings
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "h1", "h2"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def test_the_page_has_every_number_and_needs_nothing_else(tmp_path: Path) -> None:
    page = made(tmp_path, evaluate(), bench(), parity())
    found = Outline(page)
    assert found.headings == [
        "net: speed, parity and accuracy", "How fast is it? net fp32", "Does every runtime compute the same? net fp32",
        "How often is it right? net fp32", "What this page was made from", "Environment", "Make these numbers again",
    ]  # fmt: skip
    speed, same, right, made_from = found.tables
    assert [cells[:3] for cells in speed[1:]] == [
        ["ort-cpu", "1", "1,251"], ["openvino", "8", "2,666"], ["ort-cpu", "8", "2,001"], ["ort-cpu", "64", "–"],
    ]  # fmt: skip
    assert [cells[-1] for cells in speed[1:]] == ["yes", "no ~", "yes", "failed"]
    assert same[1:] == [
        ["torch", "2.0e-07", "1.0e-06", "20 %", "100.0 %", "pass"],
        ["ort-cpu", "3.0e-07", "1.0e-06", "30 %", "50.0 %", "pass"],
    ]
    # Wilson's interval of 294 and 297 of 300, from its formula.
    assert [cells[:3] for cells in right[1:]] == [
        ["ort-cpu", "98.00", "95.7 – 99.1"], ["torch", "99.00", "97.1 – 99.7"],
    ]  # fmt: skip
    assert [cells[0] for cells in made_from[1:]] == ["evaluate", "bench", "parity"]
    assert [address for address in found.addresses if not address.startswith(("#", "data:"))] == []
    assert not re.search(r"url\((?!#|'?data:)|@import|fetch\(", page)
    assert "resnet-onnx parity &#39;a file.onnx&#39;</pre>" in page
    assert "other programs &lt;b&gt;" in page
    assert page.count("<svg") == 5
    assert len(page) < 300_000


@pytest.mark.parametrize(("error", "shown"), [(2e-5, "20×"), (None, "not finite")])
def test_a_failure_is_the_verdict(tmp_path: Path, error: float | None, shown: str) -> None:
    page = made(tmp_path, bench(), parity(error=error))
    assert '<p class="verdict bad">net fp32: not the same function on ort-cpu (22 inputs).</p>' in page
    assert f"<td>{shown}</td>" in page
    assert "<li>ort-cpu is far from gold</li>" in page


def test_what_cannot_be_trusted_or_told_apart_says_so(tmp_path: Path) -> None:
    slower = row(noisy(2, level_ns=3e7, count=3), runtime="torch", images_per_second_ci95=None)
    slower["latency_ms"]["min"] = 29.0
    page = made(tmp_path, document(row(noisy(1)), slower))
    assert "not told apart" not in page  # its fastest run is slower than ours at their slowest
    slower["latency_ms"]["min"] = 3.9
    assert "not told apart from torch · batch 8." in made(tmp_path, document(row(noisy(1)), slower))
    near = document(
        row(noisy(1)), row(noisy(2), runtime="openvino", images_per_second_ci95=[1990, 2010], images_per_second=2000)
    )
    page = made(tmp_path, near)
    assert "not told apart from " in page
    doubtful = document(row(noisy(1), stable=False, unstable_reason="other programs used 1.0 of 2 cores"))
    page = made(tmp_path, doubtful)
    assert '<p class="verdict doubt">' in page
    assert "1 of 1 rows are not stable" in page
    assert "<li>ort-cpu · batch 8: other programs used 1.0 of 2 cores</li>" in page


def test_precisions_of_a_model_stand_side_by_side(tmp_path: Path) -> None:
    torch = row(noisy(1), runtime="torch")
    fast = row(noisy(2, level_ns=1e6), precision="int8")
    found = Outline(made(tmp_path, document(torch), document(fast, precision="int8")))
    assert [heading for heading in found.headings if heading.startswith("How fast")] == ["How fast is it? net"]
    assert [column.strip() for column in found.tables[0][0]] == [
        "runtime", "precision", "batch", "img/s", "± 95 %", "p50 ms", "p90 ms", "p99 ms", "share of peak", "vs torch",
        "stable",
    ]  # fmt: skip
    assert [(cells[0], cells[1], cells[9]) for cells in found.tables[0][1:]] == [
        ("ort-cpu", "int8", "4.00×"), ("torch", "fp32", "1.00×"),
    ]  # fmt: skip
    assert "ort-cpu int8 · batch 8 is fastest with 8,004 images per second, 4.0× the best of torch." in made(
        tmp_path, document(torch), document(fast, precision="int8")
    )


def test_many_models_begin_with_one_table_of_all(tmp_path: Path) -> None:
    models = [
        named(f"net{n}", row(noisy(n), runtime="torch"), row(noisy(n, level_ns=1e6 * n), stable=n > 1))
        for n in (1, 2, 3, 8)
    ]
    page = made(tmp_path, *models)
    found = Outline(page)
    assert found.headings[:2] == ["4 models: speed", "All models at a glance"]
    assert found.tables[0][0] == ["model", "torch fp32", "ort-cpu fp32"]
    assert [cells[0] for cells in found.tables[0][1:]] == ["net1", "net2", "net3", "net8"]
    assert ["★" in cells[2] for cells in found.tables[0][1:]] == [True, True, True, False]
    assert ["★" in cells[1] for cells in found.tables[0][1:]] == [False, False, False, True]
    assert '<p class="verdict doubt">Fastest on 4 models: ort-cpu fp32 on 3 and torch fp32 on 1.</p>' in page
    assert "1 of 8 rows are not stable" in page


def test_only_the_file_that_was_proven_counts_as_proven(tmp_path: Path) -> None:
    proof = parity()
    for digest, proven in (("a" * 64, True), ("c" * 64, False)):
        proof["artifacts"] = {"onnx_sha256": digest}
        page = made(tmp_path, document(row(noisy(1))), proof)
        assert ("and computes the same function." in page) is proven


def test_a_file_with_the_weights_of_a_proven_one_is_not_proven(tmp_path: Path) -> None:
    proof = parity()
    proof["artifacts"] = {"onnx_sha256": "c" * 64, "weights_sha256": "b" * 64}
    assert "and computes the same function." not in made(tmp_path, document(row(noisy(1))), proof)
    proof["artifacts"] = {"onnx_sha256": None, "weights_sha256": "b" * 64}
    assert "and computes the same function." not in made(tmp_path, document(row(noisy(1))), proof)
    assert "and computes the same function." in made(tmp_path, document(row(noisy(1)), sha256=None), proof)


def test_precisions_of_one_network_stand_together_whatever_their_files_are_called(tmp_path: Path) -> None:
    wide = named("net", row(noisy(1)))
    narrow = named("small", row(noisy(2, level_ns=2e6), precision="int8"), precision="int8", sha256="d" * 64)
    assert made(tmp_path, wide, narrow).count("<h2>How fast is it?") == 2
    narrow["model"]["weights_sha256"] = wide["model"]["weights_sha256"]
    assert made(tmp_path, wide, narrow).count("<h2>How fast is it?") == 1


def test_two_machines_or_two_times_are_not_mixed(tmp_path: Path) -> None:
    def pair(torch_ns: float, ort_ns: float) -> dict[str, Any]:
        return document(row(noisy(1, level_ns=torch_ns), runtime="torch"), row(noisy(2, level_ns=ort_ns)))

    fast, slow = pair(4e6, 2e6), pair(8e6, 2e6)
    slow["made"] = "2026-11-24T20:00:00Z"
    page = made(tmp_path, fast, slow)
    headings = [text for text in Outline(page).headings if text.startswith("How fast")]
    assert headings == [f"How fast is it? net ({one['made']}) fp32" for one in (fast, slow)]
    tables = [table for table in Outline(page).tables if "vs torch" in table[0]]
    ratios = [[cells[table[0].index("vs torch")] for cells in table[1:]] for table in tables]
    assert [[float(ratio.rstrip("×")) for ratio in one] for one in ratios] == [
        pytest.approx([2, 1], abs=0.02), pytest.approx([4, 1], abs=0.04),
    ]  # fmt: skip
    slow["environment"] = {**slow["environment"], "cpu": {"model": "Another", "usable_cores": 2}}
    headings = [text for text in Outline(made(tmp_path, fast, slow)).headings if text.startswith("How fast")]
    assert headings == ["How fast is it? net (CPU, 2 cores) fp32", "How fast is it? net (Another, 2 cores) fp32"]
    small = document(row(noisy(3)), inputs=["input: float32[batch, 3, 16, 16]"])
    headings = [text for text in Outline(made(tmp_path, fast, small)).headings if text.startswith("How fast")]
    assert [text for text in headings if "3, 32, 32" in text] == headings[:1]
    assert [text for text in headings if "3, 16, 16" in text] == headings[1:]
    whole = (
        document(row(noisy(1), batch=1)),
        document(row(noisy(1), batch=2)),
        document(row(noisy(1), precision="int8")),
    )
    assert [text for text in Outline(made(tmp_path, *whole)).headings if text.startswith("How fast")] == [
        "How fast is it? net"
    ]


def test_a_gpus_clock_of_the_moment_makes_no_other_machine(tmp_path: Path) -> None:
    def on(name: str, clock: int, **changes: Any) -> dict[str, Any]:
        found = document(row(noisy(1)), **changes)
        gpu = {"driver": "580", "reason": None, "gpus": [{"name": name, "clock_mhz": clock, "temperature_c": clock}]}
        return {**found, "environment": {**found["environment"], "gpu": gpu}}

    def headings(*found: dict[str, Any]) -> list[str]:
        return [text for text in Outline(made(tmp_path, *found)).headings if text.startswith("How fast")]

    later = on("H100", 30)
    later["results"] = [row(noisy(1), batch=1)]
    assert headings(on("H100", 20), later) == ["How fast is it? net fp32"]
    assert headings(on("H100", 20), on("H200", 20)) == [
        f"How fast is it? net (CPU, 2 cores, {gpu}, driver 580) fp32" for gpu in ("H100", "H200")
    ]


def test_a_benchmark_and_a_check_of_the_same_network_are_put_together(tmp_path: Path) -> None:
    """The real commands, by a name of the catalog: both are about the file that is exported on the way."""
    model, common = "cifar-resnet8", ["--runtime", "ort-cpu", "--quiet", "--save"]
    assert main(["bench", model, "--batch", "1", "--duration", "0.1", *common, str(tmp_path / "b.json")]) == 0
    assert main(["parity", model, *common, str(tmp_path / "p.json")]) == 0
    names = [str(tmp_path / name) for name in ("b.json", "p.json")]
    assert main(["report", *names, "--out", str(tmp_path / "page.html"), "--quiet"]) == 0
    assert "and computes the same function." in (tmp_path / "page.html").read_text()


def test_a_row_that_was_not_measured_to_its_end_is_never_the_fastest(tmp_path: Path) -> None:
    error = {"kind": "run-failed", "message": "the process died", "fix": None}
    page = made(tmp_path, document(row(noisy(1), stable=False, error=error, batch=64), row(noisy(2))))
    assert "ort-cpu · batch 8 is fastest" in page


def test_a_parity_result_without_budgets_is_shown(tmp_path: Path) -> None:
    proof = parity()
    proof["result"]["budgets"] = None
    assert "the same function" in made(tmp_path, proof)


def test_threads_offline_and_harness_are_told_apart(tmp_path: Path) -> None:
    said = {"scenario": "Offline", "valid": False, "reason": "too short", "latency_ms": {}}
    found = document(
        row(noisy(1), threads=1), row(noisy(2), threads=2), row(noisy(3), scenario="offline", threads=2),
        row(noisy(4), harness=said, threads=2),
    )  # fmt: skip
    page = made(tmp_path, found)
    assert [cells[2] for cells in Outline(page).tables[0][1:]] == ["1", "2", "2", "2"]
    assert "LoadGen Offline: INVALID by MLPerf LoadGen: too short" in page


def test_the_roofline_shows_the_limit_that_the_share_is_of(tmp_path: Path) -> None:
    share = {"fraction": 0.4, "limit_fraction": 0.4, "achieved_gflops": 100.0, "bound": "compute"}
    found = document(row(noisy(1), roofline={**share, "peak_gflops": 250.0, "operations_per_byte": 30.0}))
    assert "operations per byte" not in made(tmp_path, found)  # no peaks, no roof
    found["environment"]["peaks"] = {"2": {"gflops": {"fp32": 250.0}, "bandwidth_gbs": 20.0, "undisturbed": True}}
    page = made(tmp_path, found)
    assert page.count("operations per byte moved") == 1
    assert page.count("fp32 peak") == 1
    assert "the lines are too low" not in page
    found["environment"]["peaks"]["2"]["undisturbed"] = False
    assert "the lines are too low" in made(tmp_path, found)
    found["environment"]["peaks"]["2"]["gflops"] = {"fp32": 251.0}  # not the one the share was computed with
    assert "operations per byte" not in made(tmp_path, found)


def test_a_conversion_says_what_it_costs_and_where(tmp_path: Path) -> None:
    page = made(tmp_path, convert())
    assert (
        "net in int8: 98.4 % of 2,000 decisions as in fp32, top-1 down 0.12 points (95 % interval of the drop −0.10 to "
        "0.34), the file has 27 % of the size, 2.6× as fast on ort-cpu."
    ) in page
    found = Outline(page)
    assert found.headings[:2] == ["net: precision", "What does int8 cost? net"]
    assert found.tables[0][1] == ["int8", "mse", "98.40 %", "80.00", "0.12", "−0.10 to 0.34", "27.3", "27 %"]
    assert "<li>Kept in fp32: fc.</li>" in page
    assert "<li>ort-cpu: 1,230 images per second, 2.60× fp32.</li>" in page
    assert page.index("layer1.0") < page.index(">stem<")  # what loses most stands first


def test_a_conversion_without_labels_is_told_by_its_noise(tmp_path: Path) -> None:
    gate = {"kind": "sqnr", "least_sqnr_db": 20.0}
    page = made(tmp_path, convert(gate=gate, precision="bf16", method=None, weights=[], kept_fp32=[], speed=None))
    assert "as in fp32, signal over noise of the outputs 27.3 dB, the file has" in page
    assert "Needed: 20 dB at the outputs" in page
    assert page.count("<svg") == 0
    alike = made(tmp_path, convert(gate=gate, sqnr_db=None, weights=[{"layer": "x", "sqnr_db": None}]))
    assert "as in fp32, the file has" in alike
    assert alike.count("<svg") == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agreement": "much"}, "Expected `float`, got `str` - at `$.result.agreement`"),
        ({"gate": {"kind": "luck"}}, "Invalid value 'luck' - at `$.result.gate.kind`"),
        (
            {"gate": {**convert()["result"]["gate"], "drop_ci95": [0.2, 0.1]}},
            "Expected `drop_ci95` to be two numbers, the lower first, got [0.2, 0.1] - at `$.result.gate`",
        ),
        ({"weights": [{"layer": "stem"}]}, "missing required field `sqnr_db` - at `$.result.weights[0]`"),
        ({"weights": 3}, "Expected `array | null`, got `int` - at `$.result.weights`"),
        ({"weights": ["stem"]}, "Expected `object`, got `str` - at `$.result.weights[0]`"),
        (
            {"speed": {"runtimes": {"ort-cpu": {}}}},
            "missing required field `speedup` - at `$.result.speed.runtimes[...]`",
        ),
    ],
)
def test_a_damaged_conversion_names_the_field(
    changes: dict[str, Any], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(json.dumps(convert(**changes)))
    assert main(["report", str(tmp_path / "c.json"), "--out", str(tmp_path / "p.html")]) == 2
    assert said in capfd.readouterr().err


def test_the_same_results_make_the_same_page(tmp_path: Path) -> None:
    assert made(tmp_path, bench(), parity(), evaluate()) == made(tmp_path, bench(), parity(), evaluate())


def test_names_in_files_are_text_and_nothing_more(tmp_path: Path) -> None:
    name = "$x_{$ <script>alert(1)</script> & \U0001f600 " + "w" * 300
    wild = document(row(noisy(1), runtime=name, model=name), row(noisy(2), model=name), name=name, description=name)
    page = made(tmp_path, wild)
    assert "<script>alert" not in page
    assert page.count("<script>") == 1


def test_pictures_share_no_names_and_take_the_pages_colour() -> None:
    one = charts.bars([Bar(label="a", value=1.0, doubtful=True, text="1")], unit="u", palette={})
    other = charts.bars([Bar(label="a", value=2.0, doubtful=True, text="2")], unit="u", palette={})
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    for svg, own in zip((one, other), names, strict=True):
        assert set(re.findall(r"#([\w.-]+)\)", svg)) <= own
        assert "currentColor" in svg
        assert "#010203" not in svg


def test_json_says_where_the_page_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.json").write_text(json.dumps(bench()))
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(tmp_path / "b.json"), str(tmp_path / "b.json"), "--out", str(out), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["path"], found["passed"]) == (str(out), True)
    assert [one["kind"] for one in found["results"]] == ["bench"]
    assert found["findings"][0]["text"].startswith("net fp32: openvino · batch 8 is fastest")
    assert out.is_file()


def test_a_mistake_is_one_message_and_the_old_page_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad, out = tmp_path / "b.json", tmp_path / "bad.json", tmp_path / "page.html"
    good.write_text(json.dumps(bench()))
    out.write_text("old")
    for text in ("", "{}", json.dumps({**parity(), "result": {}}), json.dumps({**evaluate(), "schema": 9})):
        bad.write_text(text)
        assert main(["report", str(good), str(bad), "--out", str(out)]) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"error: {bad}: ")
        assert "Traceback" not in error
    assert main(["report", str(good), "--out", str(good)]) == 2
    assert "would be overwritten" in capfd.readouterr().err
    assert main(["report", "--out", str(out)]) == 2
    assert json.loads(good.read_text()) == bench()
    assert out.read_text() == "old"


PROBE = """
<script>
const shown = () => [...document.querySelector("tbody").rows].map(row => row.cells[2].textContent);
const click = () => { document.querySelectorAll("th button")[2].click(); return shown(); };
const all = [document.documentElement, ...document.querySelectorAll("body *")];
const result = {
  page: document.documentElement.scrollWidth, window: innerWidth, before: shown(), up: click(), down: click(),
  sorted: document.querySelector("th[aria-sort]").getAttribute("aria-sort"),
  buttons: document.querySelectorAll("th button").length,
  letters: Math.min(...[...document.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height)),
  ink: getComputedStyle(document.querySelector("svg text")).fill, text: getComputedStyle(document.body).color,
};
parent.document.title = "PROBE" + JSON.stringify(result) + "EBORP";
</script>
</body>"""


def seen(page: Path, width: int, *options: str) -> dict[str, Any]:
    assert BROWSER is not None
    # A browser's own window refuses to be as narrow as a phone; a frame does not.
    inner = html.escape(page.read_text().replace("</body>", PROBE))
    probe = page.with_name("probe.html")
    probe.write_text(
        '<link rel="icon" href="data:,">'
        f'<iframe width="{width}" height="900" frameborder="0" srcdoc="{inner}"></iframe>'
    )
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
         f"--user-data-dir={page.parent / 'profile'}", "--window-size=1300,1000", *options, "--dump-dom",
         f"file://{probe}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    match = re.search(r"PROBE(\{.*?\})EBORP", done.stdout)
    assert match is not None, done.stdout[:500]
    found: dict[str, Any] = json.loads(match[1].replace("&amp;", "&"))
    return found


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome (apt-get install chromium)")
def test_a_browser_shows_it_on_a_phone_and_sorts_its_tables(tmp_path: Path) -> None:
    made(tmp_path, bench(), parity(), evaluate())
    found = seen(tmp_path / "page.html", 390)
    assert found["window"] == 390
    assert found["page"] <= 390
    assert found["before"] == ["1,251", "2,666", "2,001", "–"]
    assert found["up"] == ["1,251", "2,001", "2,666", "–"]
    assert found["down"] == ["2,666", "2,001", "1,251", "–"]
    assert found["sorted"] == "descending"
    assert found["buttons"] == 9 + 6 + 6 + 5
    assert found["letters"] >= 9  # pixels, the smallest in any picture
    assert found["ink"] == found["text"] == "rgb(0, 0, 0)"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome (apt-get install chromium)")
def test_a_browser_in_the_dark_draws_in_the_light_colour_of_the_text(tmp_path: Path) -> None:
    made(tmp_path, bench())
    found = seen(tmp_path / "page.html", 1200, "--blink-settings=preferredColorScheme=0")
    assert found["ink"] == found["text"] == "rgb(255, 255, 255)"


def test_the_demos_page_still_takes_a_picture_and_a_plain_verdict(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG")
    section = Section(heading="What it predicts", picture=picture, caption="Held-out digits")
    write_page(
        tmp_path / "p.html", title="demo", findings=[Finding(state="good", text="as promised")], sections=[section]
    )
    page = (tmp_path / "p.html").read_text()
    assert '<p class="verdict good">as promised</p>' in page
    assert "data:image/png;base64,iVBORw==" in page
