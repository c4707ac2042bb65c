"""Verifies a bundle and executes nothing from it: the checks are ``standalone/verify.py``'s, from our own copies.

The bundle may come from anywhere. Its documents, names, sizes and ONNX files are looked at first; then the checks run
in a child process, so that a library that falls over a file takes nobody along.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from resnet_onnx.deploy import runner
from resnet_onnx.deploy.bundle import MANIFEST, SEAL
from resnet_onnx.deploy.standalone import verify as standalone
from resnet_onnx.results.bundle import Bundle, Check, Proof, VerifiedSpeed, Verify
from resnet_onnx.results.document import SCHEMA, Document
from resnet_onnx.version import __version__
from runtimes import files, onnx_gate, registry
from runtimes.errors import BadData, CheckFailed, RunFailed, UsageError, reason

DocumentT = TypeVar("DocumentT", bound=Document)

_PROOF = "proof/proof.json"
_LARGEST_TEXT = 64 * 2**20
"""Of a document or of the seal, bytes."""

_LARGEST_FILES = 100_000
_NAMES = ("files", "runner", "libraries", "machine", "preprocessing", "labels", "outputs", "decisions", "speed")
_SLACK = 2**20


@dataclass(frozen=True, kw_only=True)
class VerifyPlan:
    """What to ask of a bundle.

    Attributes:
        sha256: What its ``bundle.json`` must have; None pins nothing.
        min_speed: Least share of the promised ratio to the reference; None makes speed a note.
        p99_ms: Most milliseconds of a run of the batch, 99th percentile.
        trust_engine: Whether an engine, which is code, may be opened.
        seconds: Time of the measurement, about.
    """

    sha256: str | None = None
    min_speed: float | None = None
    p99_ms: float | None = None
    trust_engine: bool = False
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.sha256 is not None and not (
            len(self.sha256) == 64 and all(c in "0123456789abcdefABCDEF" for c in self.sha256)
        ):
            raise UsageError(
                f"--sha256 takes 64 hexadecimal digits, not '{self.sha256}'",
                fix=f"they are in the first line of {SEAL}, and bundle prints them",
            )


def verify_bundle(folder: Path, plan: VerifyPlan, *, progress: Callable[[str], None] = lambda _: None) -> Verify:
    """Looks whether a bundle still computes and runs here what it did where it was made.

    Raises:
        BadData: It is not a bundle, or one that was made to do harm: names outside of it, links, sizes.
        BadModel: An ONNX file in it does not pass the gate.
        RunFailed: The process that looked was ended by a signal.
    """
    bundle = _read(folder / MANIFEST, Bundle)
    _read(folder / _PROOF, Proof)
    _check_contained(folder, bundle)
    program = _runner(folder, bundle)
    asked = argparse.Namespace(sha256=plan.sha256, trust_engine=plan.trust_engine)
    progress("hashes")
    missing = [str(row.path) for row in bundle.files if not (folder / str(row.path)).is_file()]
    whole = ("fail", f"{missing[0]} is missing") if missing else standalone.Verification(folder, asked).files()
    if whole[0] == "fail":
        found: dict[str, Any] = {"checks": [{"name": "files", "verdict": "fail", "detail": whole[1]}], "speed": {}}
        skipped = [
            Check(name=name, verdict="skipped", detail="the files are not those that were written")
            for name in _NAMES[2:]
        ]
    else:
        _check_graphs(folder, bundle)
        _check_tensors(folder, bundle)
        progress("preprocessing, outputs, decisions, speed")
        found, skipped = _run(folder, bundle, plan), []
    checks = [Check(**check) for check in found["checks"]]
    checks.insert(1, program)
    speed = {"promised": bundle.figures.over_reference, **found["speed"]}
    return Verify(
        passed=all(check.verdict != "fail" for check in (*checks, *skipped)),
        path=str(folder),
        sha256=files.sha256_file(folder / MANIFEST),
        runtime=bundle.runtime,
        precision=bundle.precision,
        checks=[*checks, *skipped],
        speed=replace(msgspec.convert(speed, VerifiedSpeed)),  # what it lacks has its default
        notes=bundle.notes,
    )


# ---- what can be said without opening anything -----------------------------------------------------------------------


def _read(path: Path, form: type[DocumentT]) -> DocumentT:
    """Reads a document of a bundle; raises ``BadData`` in one sentence."""
    name = path.name
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise BadData(f"{path}: not a regular file, expected the {name} of a bundle")
        if found.st_size > _LARGEST_TEXT:
            raise BadData(f"{path}: {found.st_size / 2**20:.0f} MiB, expected a {name} of at most 64 MiB")
        content = files.read_bounded(path, _LARGEST_TEXT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadData(
            f"{path.parent if name == MANIFEST else path}: not a bundle, there is no {name}",
            fix="make one: resnet-onnx bundle MODEL --runtime R --out DIR",
        ) from error
    except OSError as error:
        raise BadData(f"{path}: can't be read: {error.strerror or error}") from error
    try:
        head = msgspec.json.decode(content, type=dict[str, Any])
        if head.get("kind") != form.kind or head.get("schema") != SCHEMA:
            given = f"kind {head.get('kind')!r:.40}, schema {head.get('schema')!r:.20}"
            raise BadData(f"{path}: of {given}, expected kind '{form.kind}', schema {SCHEMA}")
        return msgspec.json.decode(content, type=form)
    except msgspec.ValidationError as error:
        raise BadData(f"{path}: not a complete {name}: {reason(error)}") from error
    except RecursionError as error:
        raise BadData(f"{path}: nested too deeply") from error
    except ValueError as error:
        raise BadData(f"{path}: not complete JSON: {reason(error)}", fix="copy the bundle again") from error


def _check_contained(folder: Path, bundle: Bundle) -> None:
    """Raises ``BadData`` for a name that leads outside of a bundle, a link, a pipe, or a file larger than it says."""
    for path in _everything(folder):
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            what = "a link" if stat.S_ISLNK(kind) else "a pipe, socket or device"
            raise BadData(f"{path}: {what} in a bundle, expected files and folders", fix="copy the bundle itself")
    names = [str(row.path) for row in bundle.files]
    names += [name for name in (bundle.model.file, bundle.model.portable) if name is not None]
    names += [bundle.reference.file] if bundle.reference is not None else []
    names += [f"proof/{name}" for name in _read(folder / _PROOF, Proof).pictures]
    for name in names:
        inside = PurePosixPath(name)
        if (
            inside.is_absolute()
            or ".." in inside.parts
            or "\\" in name
            or ":" in name
            or not inside.parts
            or "\0" in name
        ):
            raise BadData(f"{folder / MANIFEST}: the file {name!r:.80} lies outside of the bundle")
    for row in bundle.files:
        path = folder / str(row.path)
        if path.is_file() and path.stat().st_size > max(row.size_bytes + _SLACK, _LARGEST_TEXT):
            raise BadData(f"{path}: {path.stat().st_size:,} bytes, and the bundle says {row.size_bytes:,}")
    seal = folder / SEAL
    if seal.exists() and seal.stat().st_size > _LARGEST_TEXT:
        raise BadData(f"{seal}: {seal.stat().st_size:,} bytes are too many for a seal")


def _everything(folder: Path) -> Iterator[Path]:
    count = 0
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in (*folders, *names):
            count += 1
            if count > _LARGEST_FILES:
                raise BadData(f"{folder}: more than {_LARGEST_FILES:,} files, expected a bundle")
            yield Path(parent) / name


def _check_graphs(folder: Path, bundle: Bundle) -> None:
    """Passes every ONNX file through the gate; raises ``BadModel``."""
    reference = bundle.reference.file if bundle.reference is not None else None
    for name in dict.fromkeys(filter(None, (bundle.model.file, bundle.model.portable, reference))):
        if name.endswith(".onnx"):
            onnx_gate.check_onnx(folder / name)


def _check_tensors(folder: Path, bundle: Bundle) -> None:
    """Raises ``BadData`` where the proof's tensors would take more memory than its pictures have."""
    path, side = folder / "proof" / "tensors.npz", bundle.preprocessing.crop
    expected = len(_read(folder / _PROOF, Proof).decisions) * 3 * side * side + _SLACK
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise BadData(f"{path}: not the proof's tensors: {reason(error)}") from error
    if size > expected:
        raise BadData(f"{path}: {size:,} bytes unpacked, and pictures of {side}×{side} need {expected:,}")


def _runner(folder: Path, bundle: Bundle) -> Check:
    """Compares the program in a bundle with ours."""
    if bundle.runtime not in registry.runtimes_that(lambda found: bool(found.standalone)):
        raise BadData(f"{folder / MANIFEST}: no runtime '{bundle.runtime:.40}' that a bundle can be of")
    if bundle.tool != f"resnet-onnx {__version__}":
        return Check(
            name="runner", verdict="note", detail=f"written by {bundle.tool:.60}: its program can't be compared"
        )
    other = [
        name
        for name, path in runner.templates(bundle.runtime).items()
        if not (folder / name).is_file() or files.sha256_file(folder / name) != files.sha256_file(path)
    ]
    if other:
        return Check(name="runner", verdict="fail", detail=f"{', '.join(other)}: not as this program writes it")
    return Check(name="runner", verdict="pass", detail="run.py, engine.py, picture_tensor.py, verify.py as written")


# ---- the checks, from our own copies ---------------------------------------------------------------------------------


def _run(folder: Path, bundle: Bundle, plan: VerifyPlan) -> dict[str, Any]:
    """Runs our own copy of ``verify.py`` on a bundle in a child process; returns what it printed."""
    with tempfile.TemporaryDirectory(prefix="resnet-onnx-") as place:
        runner.write_runner(bundle.runtime, Path(place))
        command = [sys.executable, str(Path(place) / "verify.py"), str(folder.resolve()), "--json"]
        command += ["--seconds", str(plan.seconds)]
        command += [] if plan.sha256 is None else ["--sha256", plan.sha256]
        command += [] if plan.min_speed is None else ["--min-speed", str(plan.min_speed)]
        command += [] if plan.p99_ms is None else ["--p99", str(plan.p99_ms)]
        command += ["--trust-engine"] if plan.trust_engine else []
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, check=False)
    if done.returncode in (0, CheckFailed.exit_code):
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            pass
        else:
            return found
    said = reason(done.stderr) or f"it ended with exit code {done.returncode}"
    raise RunFailed(f"{folder}: the process that opened it on {bundle.runtime} did not come to its end: {said}")
