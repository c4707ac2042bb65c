"""Makes the README's table of all models, runtimes and precisions, and the picture of the report page beside it.

python docs/make_results.py --readme        (a quiet machine; about ten minutes on two cores)

Each measurement is a file of its own in the folder of results: a second start goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from resnet_onnx.cli.main import COMMANDS
from resnet_onnx.report import speed
from resnet_onnx.results import tables
from resnet_onnx.results.reading import read_bench
from runtimes import files, registry

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "plain34")
PRECISIONS = ("fp32", "int8", "bf16")
RUNTIMES, WHOLE_NUMBERS = "torch,ort-cpu,openvino", "ort-cpu,openvino"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_BEGIN, _END = "<!-- results: docs/make_results.py -->", "<!-- end of results -->"
_BEFORE = "\n## What runs where\n"
_INT8 = ("--method", "mse", "--count", "64")
"""The weights are random and only the speed is of interest, but the gate wants 20 dB, which min-max ranges miss."""
_KEPT = dict.fromkeys(("resnet101", "resnet152"), ("--keep-fp32", "conv1"))
"""The first layer of the deepest, whose rounding all others carry on; one and a half percent of the work."""


def tool(*arguments: str | Path) -> int:
    """Runs one command of the program; what it says goes to the terminal."""
    words = [str(argument) for argument in arguments]
    print("$ resnet-onnx", *words, flush=True)
    return subprocess.run([sys.executable, "-m", "resnet_onnx", *words], check=False).returncode


def measure(folder: Path, model: str, precision: str, *, seconds: float) -> bool:
    """Measures one model in one precision, unless its result is there; returns whether there is one now."""
    saved = folder / f"{model}-{precision}.json"
    if saved.is_file():
        return True
    subject: str | Path = model
    if precision != "fp32":
        if "convert" not in COMMANDS:
            print(f"left out: {model} {precision} (this version has no convert)")
            return False
        subject = folder / "models" / precision / f"{model}.onnx"
        if not subject.is_file():
            ranges = (*_INT8, *_KEPT.get(model, ())) if precision == "int8" else ()
            if tool("convert", model, "--to", precision, *ranges, "--output", subject) != 0:
                print(f"left out: {model} {precision} (convert refused it)")
                return False
    # A runtime that lacks the precision is a row with its reason; the others are saved all the same.
    compiled = ",torch-compile" if registry.probe("torch-compile").available else ""
    names = WHOLE_NUMBERS if precision == "int8" else RUNTIMES + compiled
    tool("bench", subject, "--runtime", names, "--batch", "1,8", "--duration", f"{seconds:g}", "--save",
         saved)  # fmt: skip
    return saved.is_file()


def table(paths: list[Path]) -> str:
    """Returns the table of all results as Markdown, with the machine above it."""
    documents = [read_bench(path) for path in paths]
    sections = speed.overview(speed.by_model(documents), {})
    if not sections:
        raise SystemExit("a table of all models needs two models at least")
    (found,) = sections
    cpu, libraries = documents[0].environment.cpu, documents[0].environment.libraries
    versions = [f"{name} {libraries[name]}" for name in ("torch", "onnxruntime-gpu", "onnxruntime", "openvino")
                if libraries.get(name)]  # fmt: skip
    return tables.markdown(
        found.columns,
        found.rows,
        above=[found.text, " · ".join([f"{cpu.model}, {cpu.usable_cores} cores", *versions])],
        command=["python", "docs/make_results.py", "--readme"],
    )


def with_results(readme: str, text: str) -> str:
    """Returns the README with the table in its place: between the marks, or before the list of runtimes."""
    block = f"{_BEGIN}\n{text}\n![The report page of these results](docs/report.png)\n{_END}"
    if _BEGIN in readme:
        return re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", lambda _: block, readme, flags=re.S)
    if _BEFORE not in readme:
        raise SystemExit(f"the README has no {_BEFORE.strip()!r}, before which the table goes")
    return readme.replace(_BEFORE, f"\n## All models\n\n{block}\n{_BEFORE}", 1)


def picture(page: Path, out: Path) -> bool:
    """Draws the top of the page with a headless browser; returns False where there is none."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print("no picture: no Chromium or Chrome was found (apt-get install chromium)")
        return False
    with tempfile.TemporaryDirectory() as profile, files.atomic_file(out) as temporary:
        drawn = Path(profile) / "page.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,1500",
             f"--user-data-dir={profile}/profile", f"--screenshot={drawn}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        # Flat colours: a palette keeps the file small, and one that covers the extremes keeps every runtime's own.
        flat = Image.open(drawn).convert("RGB").quantize(200, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        flat.save(temporary, format="PNG", optimize=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "results", help="folder that keeps each result")
    parser.add_argument("--models", default=",".join(MODELS), help="a comma list")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="a comma list")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time of a row, at most")
    parser.add_argument("--minutes", type=float, default=10.0, help="when to begin nothing more; start again to go on")
    parser.add_argument("--readme", action="store_true", help="put table and picture into README.md and docs/")
    chosen = parser.parse_args()

    folder: Path = chosen.results
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * chosen.minutes
    wanted = [(model, precision) for precision in chosen.precisions.split(",") for model in chosen.models.split(",")]
    late = []
    for model, precision in wanted:
        if time.monotonic() < end or (folder / f"{model}-{precision}.json").is_file():
            measure(folder, model, precision, seconds=chosen.seconds)
        else:
            late.append(f"{model} {precision}")
    order = {f"{model}-{precision}": place for place, (model, precision) in enumerate(wanted)}
    paths = sorted((path for path in folder.glob("*.json") if path.stem in order), key=lambda path: order[path.stem])
    if not paths:
        raise SystemExit("nothing could be measured")
    page = folder / "report.html"
    tool("report", *paths, "--out", page)
    text = table(paths)
    print(text)
    if chosen.readme:
        picture(page, ROOT / "docs" / "report.png")
        files.write_text(ROOT / "README.md", with_results((ROOT / "README.md").read_text(), text))
    else:
        picture(page, folder / "report.png")
    if late:
        print(f"not yet measured, start again to go on: {', '.join(late)}")


if __name__ == "__main__":
    main()
