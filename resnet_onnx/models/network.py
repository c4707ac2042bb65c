"""A network with its weights, as a value that can be sent to another process and opened there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_onnx.models.configs import NetworkConfig, check_image_size, config_from_json, config_to_json
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_NAME = re.compile(r"(?:(?:timm|torchvision):)?\w[\w.+-]{0,99}")
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)


def file_stem(name: str) -> str:
    """Returns the name of a network as that of a file: not every system has files with a colon in their names."""
    return name.replace(":", "-")


def is_non_commercial(license: str | None) -> bool:
    """Whether a license forbids commercial use by its name (CC-BY-NC-4.0)."""
    return license is not None and _NON_COMMERCIAL.search(license) is not None


@dataclass(frozen=True, kw_only=True)
class Network:
    """An architecture, its weights and how it wants its pictures.

    Attributes:
        name: What messages call it: a catalog name, or the user's own.
        config: The architecture.
        preprocessing: From a picture to the network's input.
        labels: One name per output, or None where nothing is known.
        weights: A safetensors file with exactly the tensors of the architecture.
        weights_sha256: SHA-256 of that file, lower-case hexadecimal.
        weights_source: Where the weights come from, for people: ``random (seed 0)``, a file name …
        trained: Whether predictions mean anything.
        weights_license: License of the weights as their source states it, or None where it does not.
        weights_file_sha256: SHA-256 of the file that the weights were read or downloaded from, or None for others.
    """

    name: str
    config: NetworkConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    weights: Path
    weights_sha256: str
    weights_source: str
    trained: bool
    weights_license: str | None = None
    weights_file_sha256: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):  # files are named after it
            raise UserError(f"{self.name[:60]!r} is not a name of a network: letters, digits, '.', '_', '+' and '-'")
        check_image_size(self.config, self.name, self.preprocessing.image_size)
        if self.labels is not None and len(self.labels) != self.config.num_classes:
            raise UserError(
                f"{self.name} has {self.config.num_classes} outputs, but {len(self.labels)} labels were given"
            )

    def load(self) -> nn.Module:
        """Builds the network and fills in its weights.

        Returns:
            A float32 module on the CPU in eval mode, from [batch, channel, height, width] to [batch, class].

        Raises:
            BadWeights: The file is missing, is not the one that was recorded, or does not fit the architecture.
        """
        from resnet_onnx.models.weights import load_network

        return load_network(self.config, self.weights, sha256=self.weights_sha256)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the path as plain values; ``from_json`` is the inverse."""
        return {
            "name": self.name,
            "config": config_to_json(self.config),
            "preprocessing": self.preprocessing.to_json(),
            "labels": None if self.labels is None else list(self.labels),
            "weights_sha256": self.weights_sha256,
            "weights_source": self.weights_source,
            "trained": self.trained,
            "weights_license": self.weights_license,
            "weights_file_sha256": self.weights_file_sha256,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, weights: Path) -> Network:
        """Rebuilds a network from ``to_json``'s values and the place of its weights.

        Raises:
            UserError: The record is incomplete or contradicts itself.
        """
        try:
            labels = values["labels"]
            return cls(
                name=str(values["name"]),
                config=config_from_json(values["config"]),
                preprocessing=Preprocessing.from_json(values["preprocessing"]),
                labels=None if labels is None else tuple(str(label) for label in labels),
                weights=weights,
                weights_sha256=str(values["weights_sha256"]),
                weights_source=str(values["weights_source"]),
                trained=bool(values["trained"]),
                weights_license=_text(values.get("weights_license")),
                weights_file_sha256=_text(values.get("weights_file_sha256")),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"this is not a network record: {error} is missing or wrong") from error


def _text(value: object) -> str | None:
    return None if value is None else str(value)
