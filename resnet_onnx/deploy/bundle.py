"""Writes a bundle: the file that the runtime loads, how it was set, how pictures are prepared, and the evidence."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.deploy import readme, runner
from resnet_onnx.deploy.model_files import ModelFiles, write_model
from resnet_onnx.deploy.proof import ProofPictures, data_proof, sample_proof, write_proof
from resnet_onnx.deploy.reference import reference_file
from resnet_onnx.parity import record
from resnet_onnx.results.bundle import (
    Bundle,
    BundledModel,
    BundleResult,
    Figures,
    Limit,
    PicturePreparation,
    ReferenceRecord,
    Settings,
    Tensor,
)
from resnet_onnx.results.convert import Convert
from resnet_onnx.results.document import Artifacts, Document, Environment, FileRecord, Saved
from resnet_onnx.results.evaluate import Evaluate
from resnet_onnx.results.parity import Parity
from resnet_onnx.results.writing import typed, write
from resnet_onnx.version import __version__
from resnet_onnx.workflow.feeds import need_picture_input, need_preprocessing
from resnet_onnx.workflow.opening import source
from resnet_onnx.workflow.parity import ParityPlan, ProvenPictures, prove_pictures
from resnet_onnx.workflow.request import UNTUNED, Model
from runtimes import files, onnx_gate, registry
from runtimes.environment import describe_machine
from runtimes.errors import BadModel, CheckFailed, RuntimeUnavailable, UsageError
from runtimes.spec import RuntimeOptions, TensorSpec

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """What a bundle is written from; everything measured was measured before.

    Attributes:
        model: The form that runs, after a change of precision.
        original: The network before it; the same model where nothing changed.
        options: Streams, threads and the like, as measured.
        device: Of the runtime; None is its own default.
        figures: Its speed, as ``measure_against_reference`` finds it, or as a race confirmed it.
        parity: Kept under ``proof/``, as the other documents are; the proof's own pictures are judged in any case.
        results: Further documents kept under ``proof/``, by file name (``optimize.json``).
        pictures: The proof's: ``samples``, or ``data`` for the first of `data`, or ``none`` for tensors alone.
        data: Pictures of the user's, where `pictures` is ``data``.
        license: Of the weights; None takes the one that their source states, where it does.
        report: Writes ``report.html``; None writes the one that ``report`` makes of the documents.
        notes: What the user should know.
    """

    model: Model
    original: Model
    runtime: str
    batch: int
    options: RuntimeOptions = UNTUNED
    device: str | None = None
    figures: Figures
    parity: Parity | None = None
    conversion: Convert | None = None
    accuracy: Evaluate | None = None
    limits: tuple[Limit, ...] = ()
    results: Mapping[str, Document] = field(default_factory=dict)
    pictures: str = "samples"
    data: str | None = None
    license: str | None = None
    report: Callable[[Path], None] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch must be at least 1, not {self.batch}")
        if self.pictures not in ("samples", "data", "none"):
            raise UsageError(f"proof pictures are samples, data or none, not '{self.pictures}'")
        if self.pictures == "data" and self.data is None:
            raise UsageError("--proof-pictures data needs pictures", fix="name them: --data D")

    @property
    def known_license(self) -> str | None:
        """The license of the weights: as the user names it, or as the source of the original's weights states it."""
        network = self.original.network
        return self.license or (None if network is None else network.weights_license)


MANIFEST, SEAL = "bundle.json", "bundle.sha256"


def write_bundle(contents: BundleContents, out: Path, *, progress: Progress = lambda _: None) -> BundleResult:
    """Writes a bundle into `out`, whole or not at all; a bundle that is there is replaced.

    The same contents give the same bytes.

    Raises:
        UsageError: `out` is there and not a bundle, or the runtime can't be deployed without this program.
        CheckFailed: The runtime does not compute what gold does on the proof's pictures.
        FileProblem: The folder can't be written.
    """
    check_target(out)
    runner.need_standalone(contents.runtime)
    watch = Stopwatch()
    progress("proof: pictures, gold and parity")
    pictures, proven = _prove(contents, progress)
    prepared_s = watch.seconds
    progress(f"writing {out}")
    with files.atomic_folder(out) as folder:
        manifest = _write(contents, folder, pictures, proven)
        digest = _seal(folder, manifest)
    outcome = proven.report.outcomes[0]
    return BundleResult(
        path=str(out),
        sha256=digest,
        runtime=contents.runtime,
        precision=contents.model.precision,
        files=manifest.files,
        size_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        figures=contents.figures,
        relative_rmse=outcome.relative_rmse,
        budget=outcome.budget,
        prepared_s=prepared_s,
        written_s=watch.seconds - prepared_s,
        notes=manifest.notes,
    )


def check_target(out: Path) -> None:
    """Raises ``UsageError`` where a bundle can't take a place: something else is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file() or not (out / SEAL).is_file():
        raise UsageError(f"--out {out} is there and is not a bundle", fix="name a folder that is not there, or empty")


def _prove(contents: BundleContents, progress: Progress) -> tuple[ProofPictures, ProvenPictures]:
    """Judges the runtime on the proof's pictures; raises ``CheckFailed`` where it does not pass."""
    model = contents.model
    preprocessing = need_preprocessing(model)
    need_picture_input(model)
    model.scores.settled()
    if contents.pictures == "data":
        pictures = data_proof(cast(str, contents.data), preprocessing)
    else:
        pictures = sample_proof(preprocessing)
    plan = ParityPlan(runtimes=(contents.runtime,), device=contents.device, options=contents.options)
    changed = contents.original is not model and contents.original.precision != model.precision
    proven = prove_pictures(
        model, plan, pictures.prepared, original=contents.original if changed else None, progress=progress
    )
    if not proven.report.passed:
        raise CheckFailed(
            f"{model.name} on {contents.runtime} does not compute what gold does, and no bundle is written: "
            f"{proven.report.outcomes[0].reason}",
            fix=f"look closer: resnet-onnx parity MODEL --runtimes {contents.runtime} --localize",
        )
    return pictures, proven


def _write(contents: BundleContents, folder: Path, pictures: ProofPictures, proven: ProvenPictures) -> Bundle:
    """Writes everything but the seal into a folder; returns what ``bundle.json`` says."""
    model, preprocessing = contents.model, need_preprocessing(contents.model)
    found = source(
        model, contents.runtime, device=contents.device, options=contents.options, batches=(contents.batch,)
    ).path
    if found is None:
        raise BadModel(f"runtime '{contents.runtime}' loads {model.name} from no file")
    placed = write_model(model, found, folder)
    labels = list(model.labels or (f"class {index}" for index in range(proven.gold.shape[1])))
    if len(labels) != proven.gold.shape[1]:
        raise UsageError(
            f"{model.name} has {proven.gold.shape[1]} outputs and {len(labels)} labels", fix="--labels FILE"
        )
    picture_input = need_picture_input(model)
    write_proof(
        folder / "proof",
        pictures,
        proven,
        model_input=picture_input,
        preprocessing=preprocessing,
        labels=labels,
        with_files=contents.pictures != "none",
    )
    documents = _documents(contents, proven)
    for name, document in sorted(documents.items()):
        write(folder / "proof" / name, document)
    runner.write_runner(contents.runtime, folder)
    packages = runner.packages(contents.runtime)
    runner.write_requirements(folder, packages)
    manifest = Bundle(
        tool=f"resnet-onnx {__version__}",
        runtime=contents.runtime,
        precision=model.precision,
        model=_about_model(contents, placed),
        settings=_settings(contents, proven),
        preprocessing=PicturePreparation(
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
            crop=preprocessing.image_size,
            mean=cast(tuple[float, float, float], tuple(preprocessing.mean)),
            std=cast(tuple[float, float, float], tuple(preprocessing.std)),
            layout=picture_input.layout,
            dtype=_element(picture_input.spec),
        ),
        labels=labels,
        files=[],
        limits=contents.limits,
        figures=contents.figures,
        reference=_reference(contents, folder),
        machine=_machine(),
        packages=packages,
        notes=_notes(contents),
    )
    readme.write_readme(folder, manifest)
    if contents.report is not None:
        contents.report(folder / "report.html")
    else:
        readme.write_report_page(folder, manifest, [_saved(contents, document) for document in documents.values()])
    return replace(manifest, files=_records(folder))


def _documents(contents: BundleContents, proven: ProvenPictures) -> dict[str, Document]:
    """Returns the documents that are kept under ``proof/``, by file name."""
    own = record.document(proven.report, model=contents.model.name, precision=contents.model.precision)
    given = {"evaluate.json": contents.accuracy, "convert.json": contents.conversion, "parity.json": contents.parity}
    return {
        "proof-parity.json" if contents.parity is not None else "parity.json": own,
        **{name: document for name, document in given.items() if document is not None},
        **contents.results,
    }


def _saved(contents: BundleContents, document: Document) -> Saved[Any]:
    """Wraps a document for the report page, without a moment that would make each bundle another."""
    path = contents.model.onnx
    hashes = {} if path is None else {"onnx_sha256": onnx_gate.check_onnx(path).sha256}
    return Saved(
        made="",
        tool=f"resnet-onnx {__version__}",
        command=["resnet-onnx", "bundle", contents.model.name, "--runtime", contents.runtime],
        environment=_machine(),
        artifacts=Artifacts(**hashes),
        result=document,
    )


def _about_model(contents: BundleContents, placed: ModelFiles) -> BundledModel:
    model, network = contents.model, contents.model.network
    spec = need_picture_input(model).spec
    scores = model.scores.settled()
    return BundledModel(
        name=model.name,
        file=placed.file,
        form=placed.form,
        portable=placed.portable,
        input=_tensor(spec, 0),
        output=_tensor(scores, placed.place_of(scores.name)),
        weights=network.weights_source if network is not None else None,
        weights_sha256=network.weights_sha256 if network is not None else None,
        license=contents.known_license,
    )


def _tensor(spec: TensorSpec, place: int) -> Tensor:
    return Tensor(name=spec.name, dtype=spec.dtype.name, shape=list(spec.shape), place=place)


def _element(spec: TensorSpec) -> Any:
    name = spec.dtype.name
    if name not in ("float32", "float16", "uint8"):
        raise UsageError(
            f"the model takes {name}, which NumPy does not have, so that a bundle can't feed it",
            fix="convert it with resnet-onnx convert, which casts at both ends",
        )
    return name


def _settings(contents: BundleContents, proven: ProvenPictures) -> Settings:
    """Returns how the runtime reported itself to be set, which is how it was measured."""
    recorded = dict(proven.report.outcomes[0].recorded)
    streams = contents.options.streams or int(recorded.get("streams", recorded.get("sessions", 1)))
    return Settings(
        batch=contents.model.form.batch or contents.batch,
        streams=streams,
        threads=recorded.get("threads"),
        spin=recorded.get("spin"),
        precision_hint=recorded.get("inference_precision"),
        device=registry.adapter(contents.runtime).resolve_device(contents.device),
        recorded=recorded,
    )


def _reference(contents: BundleContents, folder: Path) -> ReferenceRecord | None:
    """Copies the reference into the bundle; None where the runtime has none."""
    try:
        path = reference_file(contents.original, contents.runtime, device=contents.device)
    except RuntimeUnavailable:
        return None
    name = "proof/reference.onnx"
    shutil.copyfile(path, folder / name)
    checked = onnx_gate.check_onnx(path)
    first = checked.inputs[0].shape[0]
    return ReferenceRecord(
        file=name,
        input=_tensor(checked.inputs[0], 0),
        output=_tensor(checked.outputs[0], 0),
        batch=first if isinstance(first, int) else 1,
    )


def _machine() -> Environment:
    found = typed(Environment, describe_machine())
    return replace(found, cpu=replace(found.cpu, clock_mhz=None))


def _notes(contents: BundleContents) -> list[str]:
    notes = list(contents.notes)
    if contents.pictures == "data":
        notes.append(
            f"the proof's pictures are from {Path(cast(str, contents.data)).name}: who gets the bundle gets them"
        )
    if contents.figures.over_reference is None:
        notes.append(
            "speed is not promised: it was not measured in turns with the reference, and verify can't compare it"
        )
    if contents.model.trained is False:
        notes.append("the weights are random: good for speed and parity, not for predictions")
    elif contents.known_license is None:
        notes.append("the licence of the weights is not known")
    return notes


def _records(folder: Path) -> list[FileRecord]:
    """Returns every file of a bundle but its manifest and seal, sorted."""
    return [
        FileRecord(
            path=path.relative_to(folder).as_posix(), sha256=files.sha256_file(path), size_bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, SEAL)
    ]


def _seal(folder: Path, manifest: Bundle) -> str:
    """Writes the manifest, and the hash of it and of every other file as ``sha256sum`` does; returns the manifest's."""
    write(folder / MANIFEST, manifest)
    digest = files.sha256_file(folder / MANIFEST)
    rows = [(digest, MANIFEST), *((each.sha256, str(each.path)) for each in manifest.files)]
    files.write_text(folder / SEAL, "".join(f"{found}  {name}\n" for found, name in rows))
    return digest
