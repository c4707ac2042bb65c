"""How pictures are prepared, and the license, where a weights file, or what lies beside it, states it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes import files
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from resnet_onnx.models.weights_file import WeightsFile

_LARGEST_CONFIG_BYTES = 2**20


def stated_preprocessing(weights: WeightsFile, entry: CatalogEntry) -> tuple[Preprocessing, str] | None:
    """Returns the preprocessing that belongs to a weights file and who states it, or None where nobody does.

    Three places state it: torchvision's own files, which are recognised by the hash in their names; ``config.json``
    beside a file of timm's (``pretrained_cfg``); and the options that timm's training script leaves in a checkpoint.
    """
    if weights.path is None:
        return None
    for found in (_torchvision(weights.path, entry), _timm_config(weights.path), _timm_options(weights.options)):
        if found is not None:
            return found
    return None


def _torchvision(path: Path, entry: CatalogEntry) -> tuple[Preprocessing, str] | None:
    hashed = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if entry.pretrained is None or hashed is None:
        return None
    from torchvision.models import get_model_weights

    for published in get_model_weights(entry.pretrained.builder):
        if str(published.url).endswith(f"/{path.name}") and files.sha256_file(path).startswith(hashed[1]):
            return of_torchvision(published), f"torchvision's {published}"
    return None


def of_torchvision(weights: Any) -> Preprocessing:
    """Returns the transforms of torchvision's weights as ours."""
    preset = weights.transforms()
    return _checked(
        image_size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=preset.mean,
        std=preset.std,
        interpolation=preset.interpolation.value,
    )


def stated_license(weights: WeightsFile) -> str | None:
    """Returns the license of a weights file that timm's ``config.json`` beside it states, or None."""
    stated = None if weights.path is None else _timm_beside(weights.path).get("license")
    return stated if isinstance(stated, str) and stated else None


def _timm_config(path: Path) -> tuple[Preprocessing, str] | None:
    found = of_timm(_timm_beside(path))
    return None if found is None else (found, f"{path.with_name('config.json')}")


def _timm_beside(path: Path) -> Mapping[str, Any]:
    """Returns what timm's ``config.json`` beside a file says of it; nothing where there is none."""
    beside = path.with_name("config.json")
    try:
        if not beside.is_file() or beside.stat().st_size > _LARGEST_CONFIG_BYTES:
            return {}
        stated = json.loads(beside.read_text(encoding="utf-8"))["pretrained_cfg"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # of another program: it does not speak of pictures
    return stated if isinstance(stated, Mapping) else {}


def _timm_options(options: Mapping[str, Any]) -> tuple[Preprocessing, str] | None:
    size, three = options.get("img_size"), options.get("input_size")
    side = size if isinstance(size, int) else three[-1] if isinstance(three, Sequence) and len(three) == 3 else None
    if side is None or "crop_pct" not in options:
        return None
    found = of_timm({**options, "input_size": (3, side, side)})
    return None if found is None else (found, "the checkpoint's own options")


def of_timm(stated: Mapping[str, Any]) -> Preprocessing | None:
    """Returns timm's settings as ours (timm.data.create_transform: the shorter side is size / crop_pct, rounded down).

    None where they are of another kind than a centre crop of three channels, or not complete.
    """
    try:
        side = int(stated["input_size"][-1])
        if stated.get("crop_mode") not in (None, "center") or stated["input_size"][0] != 3:
            return None
        return _checked(
            image_size=side,
            resize=int(side / float(stated["crop_pct"])),
            mean=stated["mean"],
            std=stated["std"],
            interpolation=stated["interpolation"],
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError, UsageError):
        return None


def _checked(*, image_size: int, resize: int, mean: Any, std: Any, interpolation: Any) -> Preprocessing:
    return Preprocessing(
        image_size=image_size,
        resize=max(image_size, resize),
        mean=cast(tuple[float, ...], tuple(map(float, mean))),
        std=cast(tuple[float, ...], tuple(map(float, std))),
        interpolation=interpolation,
    )
