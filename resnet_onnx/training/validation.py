"""A network's predictions on labelled pictures, during and after its training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from resnet_onnx.training.augmentation import Normaliser
from resnet_onnx.training.distributed import SINGLE_PROCESS, ProcessGroup
from resnet_onnx.training.loaders import Loader

LARGEST_BATCH = 256
"""Most pictures of one forward pass."""
LARGEST_BATCH_PIXELS = 2**20
"""Most pixels of them together, so that validation needs no more memory than training: VGG-16's first two layers need
0.5 GiB for so many."""


@torch.inference_mode()
def predictions(
    module: nn.Module, loader: Loader, normaliser: Normaliser, *, group: ProcessGroup = SINGLE_PROCESS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a network on all pictures of a loader, in fp32, not augmented, batch norm in evaluation mode.

    Returns:
        Whether each prediction is correct, bool [pictures] in the order of the set, and the sum of the
        cross-entropies, float64 []. Of several processes, each takes every n-th picture, beginning with its rank.
    """
    module.eval()
    correct = []
    loss = torch.zeros((), dtype=torch.float64, device=loader.device)
    batch_size = max(1, min(LARGEST_BATCH, LARGEST_BATCH_PIXELS // loader.side**2))
    own = torch.arange(len(loader))[group.rank :: group.world_size]
    for pictures, labels in loader.batches(own, batch_size, epoch=0):
        logits = module(normaliser(pictures))
        correct.append(logits.argmax(1) == labels)
        loss += F.cross_entropy(logits, labels, reduction="sum")
    return torch.cat(correct) if correct else torch.zeros(0, dtype=torch.bool, device=loader.device), loss


def evaluate(
    module: nn.Module, loader: Loader, normaliser: Normaliser, *, group: ProcessGroup = SINGLE_PROCESS
) -> tuple[float, float]:
    """Returns top-1 accuracy and mean cross-entropy over all pictures of a loader, on every rank."""
    correct, loss = predictions(module, loader, normaliser, group=group)
    count = correct.sum()
    group.all_reduce(count, loss)
    return int(count) / len(loader), float(loss) / len(loader)
