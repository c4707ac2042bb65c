"""The ONNX form of a model: the user's own file, or an export that was verified before it was kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resnet_onnx.models.network import Network, file_stem
from resnet_onnx.results.convert import Export, InputForm, Verified
from resnet_onnx.version import __version__
from resnet_onnx.workflow.feeds import feeds_of
from resnet_onnx.workflow.request import INPUT_NAME, METADATA_PREFIX, OUTPUT_NAME, Model, OnnxForm, need_network
from resnet_onnx.workflow.torch_form import wrapped
from resnet_onnx.workflow.weights import digest, library_versions
from runtimes import files, onnx_gate
from runtimes.environment import package_version
from runtimes.errors import BadModel, UsageError
from runtimes.registry import DEFAULT_RUNTIME, open_runtime
from runtimes.spec import Feeds, ModelSource


def export(model: Model, path: Path) -> Export:
    """Exports a model's torch form, verified before it is kept.

    Raises:
        CheckFailed: The file does not compute what torch computes; nothing was written.
        FileProblem: The file can't be written.
    """
    from converters import torch_export
    from resnet_onnx.parity.budget import SAME_FUNCTION

    network = need_network(model)
    form = model.form
    import torch

    options = torch_export.ExportOptions(
        input_names=(INPUT_NAME,),
        output_names=(OUTPUT_NAME,),
        batch=form.batch,
        opset=form.opset or torch_export.DEFAULT_OPSET,
    )
    keep_weights(network)  # first: where the cache can't be written, nothing else is either
    module = wrapped(network, form)
    batches = [torch.from_numpy(feeds[INPUT_NAME]) for feeds in _verification_feeds(model)]
    verification = torch_export.write_verified(
        path,
        module,
        (batches[1],),
        options,
        check=torch_export.Check(
            batches=[(batch,) for batch in batches],
            evaluate=_evaluate_on_ort,
            runtime=DEFAULT_RUNTIME,
            bound=SAME_FUNCTION,
        ),
        metadata=network_metadata(network, replace(form, opset=options.opset)),
        manifest={"made_by": f"resnet-onnx {__version__}", "network": network.name},
    )
    checked = onnx_gate.check_onnx(path)
    return Export(
        path=str(path),
        sha256=checked.sha256,
        precision="fp32",
        verified=Verified(
            batches=verification.batches, relative_rmse=verification.relative_rmse, runtime=verification.runtime
        ),
        size_bytes=checked.size_bytes,
        opset=checked.opset,
        model=network.name,
        weights=network.weights_source,
        weights_sha256=network.weights_sha256,
        weights_license=network.weights_license,
        input=InputForm(
            input=form.input,
            layout=form.layout,
            batch=form.batch or "dynamic",
            image_size=network.preprocessing.image_size,
        ),
    )


def keep_weights(network: Network) -> None:
    """Keeps the source weights in the cache, so that torch and the gold can be rebuilt from the ONNX file alone."""
    import shutil

    if files.find_by_content("weights", ".safetensors", network.weights_sha256) is None:

        def copy(path: Path) -> None:
            shutil.copyfile(network.weights, path)

        files.store_by_content("weights", ".safetensors", copy)


def _verification_feeds(model: Model) -> list[Feeds]:
    """Batches of 1, an odd number and a large one; with a fixed batch, three different ones of it."""
    from resnet_onnx.data.samples import sample_pictures

    network = need_network(model)
    small = network.preprocessing.image_size < 64
    sizes = (model.form.batch,) * 3 if model.form.batch else (1, 3, 64 if small else 8)
    return [feeds_of(model, sample_pictures(n, network.preprocessing, seed=seed)) for seed, n in enumerate(sizes)]


def _evaluate_on_ort(path: Path, feeds: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]]:
    with open_runtime(DEFAULT_RUNTIME, ModelSource(path=path)) as runtime:
        return [runtime.run(batch) for batch in feeds]


def network_metadata(network: Network, form: OnnxForm) -> dict[str, str]:
    """Returns what a file says of the network in it: architecture, preprocessing, labels, form and tools."""
    tools = {name: package_version(name) for name in ("torch", "onnx", "onnxscript")} | library_versions(network.config)
    return {
        METADATA_PREFIX + "network": json.dumps(network.to_json(), ensure_ascii=False),
        METADATA_PREFIX + "form": json.dumps(form.to_json()),
        METADATA_PREFIX + "tools": json.dumps({"resnet-onnx": __version__, "opset": form.opset, **tools}),
        "precision": "fp32",
    }


def onnx_path(model: Model) -> Path:
    """Returns the model as an ONNX file: the user's own, or an export in the cache, made once."""
    if model.onnx is not None:
        return model.onnx
    if model.engine is not None and model.network is None:
        raise UsageError(
            f"{model.engine} is an engine, and the network in it is needed too",
            fix="name the ONNX file that it was built from in place of the engine",
        )
    from filelock import FileLock

    from converters.torch_export import DEFAULT_OPSET

    network = need_network(model)
    form = replace(model.form, opset=model.form.opset or DEFAULT_OPSET)
    key = digest(
        {
            "network": {**network.to_json(), "weights_source": ""},
            "form": form.to_json(),
            "opset": form.opset,
            "tools": [package_version("torch"), package_version("onnxscript"), __version__],
            **library_versions(network.config),
        }
    )
    folder = files.cache_dir("onnx", key)
    path = folder / f"{file_stem(network.name)}.onnx"
    with FileLock(str(folder / "lock")):
        if not (path.is_file() and onnx_gate.manifest_path(path).is_file() and _still_sound(path)):
            export(replace(model, form=form), path)
    return path


def graph_path(model: Model) -> Path | None:
    """Returns the model as an ONNX file, or None for an engine whose network is not at hand."""
    return None if model.engine is not None and model.network is None else onnx_path(model)


def _still_sound(path: Path) -> bool:
    try:
        onnx_gate.check_onnx(path)
    except BadModel:
        return False
    return True
