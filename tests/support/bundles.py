"""Bundles for tests: written without measuring, changed, and sealed again as somebody who deploys would do it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnet_onnx.deploy.bundle import BundleContents, write_bundle
from resnet_onnx.results.bundle import BundleResult, Figures
from resnet_onnx.workflow import Model, Request, resolve
from runtimes.spec import RuntimeOptions

LABELS = tuple(f"thing {index}" for index in range(10))
PROMISED = Figures(over_reference=1.5, over_reference_ci95=(1.4, 1.6), images_per_second=100.0)


def network(seed: int = 0) -> Model:
    """Returns a small network with random weights and labels."""
    return replace(resolve(Request(model="cifar-resnet20", seed=seed)), labels=LABELS)


def write(
    model: Model, out: Path, *, runtime: str = "ort-cpu", figures: Figures = PROMISED, **how: Any
) -> BundleResult:
    """Writes a bundle whose speed is as said."""
    options = RuntimeOptions(threads=how.pop("threads", 1), streams=how.pop("streams", 1))
    contents = {"model": model, "original": model, "batch": 4, **how}
    return write_bundle(BundleContents(runtime=runtime, options=options, figures=figures, **contents), out)


def about(folder: Path) -> dict[str, Any]:
    """Returns what ``bundle.json`` says."""
    found: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return found


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes ``bundle.json``, and seals the bundle again."""
    values = about(folder)
    change(values)
    (folder / "bundle.json").write_text(json.dumps(values), encoding="utf-8")
    reseal(folder)


def reseal(folder: Path) -> None:
    """Makes every hash right again, so that none of them tells."""
    values = about(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    own = ("bundle.json", "bundle.sha256")
    values["files"] = [
        {"path": name, "sha256": digest, "size_bytes": (folder / name).stat().st_size}
        for name, digest in hashes.items()
        if name not in own
    ]
    (folder / "bundle.json").write_text(json.dumps(values), encoding="utf-8")
    hashes["bundle.json"] = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items()) if name != "bundle.sha256"]
    (folder / "bundle.sha256").write_text("".join(lines), encoding="utf-8")


def alone(folder: Path, code: str, *arguments: str, python: str = sys.executable) -> str:
    """Runs code beside a bundle's files, in a process that does not find this project; returns what it prints."""
    away = ("PYTHONPATH", "PYTHONHOME")
    variables = {name: value for name, value in os.environ.items() if name not in away}
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [python, "-c", f"import sys; sys.path[0] = {str(folder)!r}; {code}", *arguments],
        capture_output=True, text=True, env=variables, cwd=folder.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
