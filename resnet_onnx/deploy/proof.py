"""The proof in a bundle: pictures as bytes and as tensors, what gold says of them, and what an output may differ by."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_onnx.data.batches import prepared_picture
from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.data.feeds import PictureInput
from resnet_onnx.data.formats import HEAD_BYTES, format_of
from resnet_onnx.data.pictures import decode
from resnet_onnx.data.samples import photo_files
from resnet_onnx.data.transforms import prepare
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.parity.budget import MARGIN_MULTIPLE
from resnet_onnx.results.bundle import Proof, ProofBudget
from resnet_onnx.results.writing import write
from resnet_onnx.workflow.parity import ProvenPictures

PICTURES = 32
_SMALLEST, _LARGEST = 1.05, 1.5
"""Sides of a sample picture as multiples of the length that it is scaled to: it is scaled down, and cropped."""

_QUALITY = 92
_ODD_ONES = {3: "grey", 9: "turned", 14: "alpha", 20: "palette", 27: "png"}
"""Places of pictures that are not a plain JPEG: what a decoder does of its own accord then shows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProofPictures:
    """The pictures of a proof.

    Attributes:
        files: Name and bytes of each.
        prepared: uint8 [picture, image_size, image_size, 3], RGB: decoded, resized, cropped.
    """

    files: Sequence[tuple[str, bytes]]
    prepared: NDArray[np.uint8]


def sample_proof(preprocessing: Preprocessing, count: int = PICTURES) -> ProofPictures:
    """Cuts pictures of many sizes out of scikit-learn's two photos and encodes them; the same ones at each call."""
    random = np.random.default_rng(0)
    files = [_sample(index, preprocessing.resize, random) for index in range(count)]
    return ProofPictures(
        files=files, prepared=np.stack([prepare(decode(data, name), preprocessing) for name, data in files])
    )


def data_proof(data: str, preprocessing: Preprocessing, count: int = PICTURES) -> ProofPictures:
    """Takes pictures of the user's, spread evenly over their test split, as they are.

    Raises:
        BadData: There are none.
        BadPicture: One can't be decoded.
    """
    dataset = open_dataset(data, split="test")
    count = min(count, len(dataset))
    files, prepared = [], []
    for place, index in enumerate(np.arange(count) * len(dataset) // count):
        item = dataset.read(int(index))
        content = item.data if isinstance(item.data, bytes) else _encoded(item.data, "PNG")
        kind = (format_of(content[:HEAD_BYTES]) or "picture").lower().replace("jpeg", "jpg")
        files.append((f"{place:02d}.{kind}", content))
        prepared.append(prepared_picture(dataset, int(index), preprocessing))
    return ProofPictures(files=files, prepared=np.stack(prepared))


def _sample(index: int, length: int, random: np.random.Generator) -> tuple[str, bytes]:
    """Returns name and bytes of one sample picture, larger than `length` pixels on both sides, and not square."""
    from PIL import Image

    with Image.open(photo_files()[index % 2]) as photo:
        width, height = photo.size
        share = random.uniform(0.4, 1.0, 2)
        box_width, box_height = round(width * share[0]), round(height * share[1])
        left, top = (int(random.integers(free + 1)) for free in (width - box_width, height - box_height))
        scale = length * random.uniform(_SMALLEST, _LARGEST) / min(box_width, box_height)
        size = round(box_width * scale), round(box_height * scale)
        box = (left, top, left + box_width, top + box_height)
        cut = photo.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=box)
    kind = _ODD_ONES.get(index, "")
    exif = None
    if kind == "grey":
        cut = cut.convert("L")
    elif kind == "alpha":
        cut.putalpha(128)
    elif kind == "palette":
        cut = cut.quantize(64)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
    name = "png" if kind in ("alpha", "palette", "png") else "jpg"
    stream = io.BytesIO()
    if name == "png":
        cut.save(stream, "PNG")
    else:
        cut.save(stream, "JPEG", quality=_QUALITY, **({} if exif is None else {"exif": exif}))
    return f"{index:02d}.{name}", stream.getvalue()


def _encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def write_proof(
    folder: Path,
    pictures: ProofPictures,
    proven: ProvenPictures,
    *,
    model_input: PictureInput,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    with_files: bool,
) -> Proof:
    """Writes pictures, tensors, gold and budget into a folder, and returns what ``proof.json`` says."""
    folder.mkdir()
    if with_files:
        (folder / "pictures").mkdir()
        for name, content in pictures.files:
            (folder / "pictures" / name).write_bytes(content)
    values = byte_values(model_input, preprocessing)
    levels = np.ascontiguousarray(pictures.prepared.transpose(0, 3, 1, 2))
    np.savez_compressed(folder / "tensors.npz", levels=levels, values=values)
    np.save(folder / "gold.npy", proven.gold)
    outcome = proven.report.outcomes[0]
    decisions = proven.gold.argmax(axis=1)
    original = None if proven.original is None else proven.original.argmax(axis=1)
    budget = next(iter(proven.report.budgets.values()))
    proof = Proof(
        pictures=[f"pictures/{name}" for name, _ in pictures.files] if with_files else [],
        gold=proven.report.gold,
        budget=ProofBudget(
            relative_rmse=outcome.budget,
            picture=outcome.budget * float(np.sqrt(len(proven.gold))),
            reason=budget.reason,
        ),
        decisions=[int(index) for index in decisions],
        labels=[labels[index] for index in decisions],
        labels_sha256=hashlib.sha256("\n".join(labels).encode()).hexdigest(),
        reference_decisions=None if original is None else [int(index) for index in original],
        agreement=None if original is None else float((proven.scores.argmax(axis=1) == original).mean()),
        margin_multiple=MARGIN_MULTIPLE,
    )
    write(folder / "proof.json", proof)
    return proof


def byte_values(model_input: PictureInput, preprocessing: Preprocessing) -> NDArray[np.generic]:
    """Returns what each byte of each channel becomes in the model's input, [3, 256]."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None, None], 3, axis=3)  # [1, 256, 1, 3]
    array = next(iter(model_input.feeds(ramp, preprocessing).values()))
    channels = array if model_input.layout == "NCHW" else array.transpose(0, 3, 1, 2)
    values: NDArray[np.generic] = np.ascontiguousarray(channels.reshape(3, 256))
    return values
