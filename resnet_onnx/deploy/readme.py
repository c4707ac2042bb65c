"""What a bundle says for people: README.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_onnx.bench.statistics import rounded
from resnet_onnx.report.assemble import write_report
from resnet_onnx.report.page import Section
from resnet_onnx.results.bundle import Bundle, Figures
from resnet_onnx.results.document import Saved

_README = """# {model}, {precision}, on {runtime}

{speed}

    pip install -r requirements.txt
    python run.py photo.jpg                 # labels with probabilities
    python verify.py                        # does it still compute and run here what it did where it was made?
    sha256sum -c bundle.sha256              # is every file as it was written?

A service makes one classifier and keeps it:

    from run import Classifier

    classifier = Classifier()
    classifier("photo.jpg")                 # a path, a file's bytes, a Pillow image or a uint8 array [height, width, 3]
    classifier.batch([first, second])       # several pictures, {batch} a run{streams}

| file | what it is |
|---|---|
| `{file}` | what {runtime} loads{portable} |
| `bundle.json` | settings, preprocessing, labels, figures, the hash of every other file |
| `run.py`, `engine.py`, `picture_tensor.py` | from a picture to labels; they need `requirements.txt`{torch} |
| `verify.py` | the checks of `resnet-onnx verify`, with the same requirements |
| `proof/` | pictures, their tensors, what float64 makes of them, what may differ, and the saved results |
| `report.html` | all of it as one page |

Measured on {machine}, with {packages}. The settings are those that were measured: {threads} over
{stream_count}. Fewer cores are told by `verify.py`; `Classifier(threads=N)` takes another number.
{notes}"""


def write_readme(folder: Path, manifest: Bundle) -> None:
    """Writes ``README.md``."""
    settings = manifest.settings
    several = settings.streams > 1
    lowered = manifest.model.form == "lowered onnx"
    beside = (
        "" if manifest.model.portable in (None, manifest.model.file) else "; `portable.onnx` is what it was made from"
    )
    text = _README.format(
        model=_safe(manifest.model.name),
        precision=manifest.precision,
        runtime=manifest.runtime,
        speed=speed_sentence(manifest.figures),
        batch=settings.batch,
        streams=f", {settings.streams} runs at a time" if several else "",
        file=manifest.model.file,
        portable=beside + (", and `weights.bin` belongs to both" if lowered else ""),
        torch="" if "torch" in manifest.packages else " and no torch",
        machine=_safe(manifest.machine.cpu.model),
        packages=", ".join(f"{name} {version}" for name, version in manifest.packages.items()),
        threads=f"{settings.threads} CPU thread{'s' if settings.threads != 1 else ''}"
        if settings.threads
        else "the GPU",
        stream_count=f"{settings.streams} streams" if several else "1 stream",
        notes="".join(f"\n- {_safe(note)}" for note in manifest.notes) + ("\n" if manifest.notes else ""),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def speed_sentence(figures: Figures) -> str:
    """Returns what was measured in a sentence."""
    if figures.images_per_second is None:
        return "Its speed was not measured."
    ends = figures.images_per_second_ci95
    between = "" if ends is None else f" ({rounded(ends[0], 3)}–{rounded(ends[1], 3)})"
    text = f"{rounded(figures.images_per_second, 3)} images per second{between}"
    if figures.over_reference is not None:
        text += f", {figures.over_reference:.2f} × its reference: float32 on the same library with one thread"
    return text + "."


def write_report_page(folder: Path, manifest: Bundle, documents: Sequence[Saved[Any]]) -> None:
    """Writes ``report.html``."""
    figures, settings = manifest.figures, manifest.settings
    latency = figures.latency_ms
    facts = [
        (
            "runtime",
            f"{manifest.runtime}, batch {settings.batch}, streams {settings.streams}, threads {settings.threads}",
        ),
        ("over the reference", "–" if figures.over_reference is None else f"{figures.over_reference:.2f} ×"),
        ("p50, p99", "–" if latency is None else f"{latency.p50:.2f} ms, {_milliseconds(latency.p99)}"),
        ("library", ", ".join(f"{name} {version}" for name, version in manifest.packages.items())),
    ]
    write_report(
        folder / "report.html",
        [each for each in documents if each.kind in ("parity", "evaluate", "convert")],
        title=f"{manifest.model.name} {manifest.precision} on {manifest.runtime}: a bundle",
        sections=[Section(heading="How fast is it?", text=speed_sentence(figures), facts=facts, notes=manifest.notes)],
    )


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ms"


def _safe(text: str) -> str:
    """Returns a name without what Markdown or a terminal would take for more."""
    return "".join(each if each.isprintable() and each not in "`<>|*_[]\\" else " " for each in text)
