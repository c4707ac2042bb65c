"""Loaders of labelled pictures as bytes: from memory where the pictures are small, else through worker processes."""

from __future__ import annotations

import abc
import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from resnet_onnx.data.batches import Batches, default_workers, prepared_picture
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.data.pictures import decode
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training.augmentation import augmented_picture, seed_for
from resnet_onnx.training.device import to_device
from resnet_onnx.training.recipes import Recipe
from runtimes.errors import ToolkitError, Unavailable, reason

IN_MEMORY_BYTES = 2 * 2**30
"""Prepared pictures up to this size are kept in memory; CIFAR-10 has 0.15 GiB."""

FEW_PICTURES = 4096
"""Up to here, decoding in this process is faster than starting workers."""

LOADING_BATCH = 256

_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Workers come from a clean server process: a fork of this one would inherit the locks of its threads."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Pictures uint8 [batch, channel, height, width] and class indices int64 [batch], on the training's device."""


class Loader(abc.ABC):
    """Yields the pictures of a data set in any order, batch by batch, with labels int64 [pictures], on one device."""

    def __init__(self, labels: NDArray[np.int64], side: int, device: torch.device) -> None:
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
        self.side = side
        self.device = device

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def batches(self, order: torch.Tensor, batch_size: int, *, epoch: int) -> Iterator[Batch]:
        """Yields the pictures of `order`, `batch_size` at a time; the last batch may be smaller.

        Args:
            order: int64 indices into the data set, on the CPU.
            batch_size: Pictures in a batch.
            epoch: Decides random crops, where this loader makes them.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Ends worker processes and releases the pictures."""


@final
class MemoryLoader(Loader):
    """All pictures as one tensor of bytes, on the training's device."""

    def __init__(self, pictures: torch.Tensor, labels: NDArray[np.int64], device: torch.device) -> None:
        super().__init__(labels, pictures.shape[-1], device)
        self.pictures = pictures.to(device)

    def batches(self, order: torch.Tensor, batch_size: int, *, epoch: int) -> Iterator[Batch]:
        """Yields batches, as ``Loader.batches`` describes."""
        for index in torch.split(to_device(order, self.device), batch_size):
            yield self.pictures[index], self.labels[index]

    def close(self) -> None:
        """Releases the pictures."""
        self.pictures = self.pictures[:0]


@final
class StreamLoader(Loader):
    """Pictures that worker processes read, decode and scale again in every epoch."""

    def __init__(
        self,
        dataset: PictureSet,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        recipe: Recipe | None,
        seed: int,
        workers: int,
    ) -> None:
        super().__init__(dataset.labels, preprocessing.image_size, device)
        self._order = _EpochSampler()
        self._loader = DataLoader(
            _PictureDataset(dataset, preprocessing, recipe, seed),
            batch_sampler=self._order,
            generator=torch.Generator(),  # else it draws from the generator whose state a checkpoint keeps
            num_workers=workers,
            multiprocessing_context=_START if workers else None,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def batches(self, order: torch.Tensor, batch_size: int, *, epoch: int) -> Iterator[Batch]:
        """Yields batches, as ``Loader.batches`` describes."""
        parts = torch.split(order, batch_size) if len(order) else ()
        self._order.batches = [[(epoch, i) for i in part.tolist()] for part in parts]
        with _dead_workers_reported():
            loaded = iter(self._loader)
        while True:
            with _dead_workers_reported():
                item = next(loaded, None)
            if item is None:
                return
            pictures, index, problem = item
            if problem is not None:
                raise problem
            yield pictures.to(self.device, non_blocking=True), self.labels[index.to(self.device, non_blocking=True)]

    def close(self) -> None:
        """Ends worker processes."""
        self._loader = None  # type: ignore[assignment]  # torch ends them when nothing refers to the loader


@contextlib.contextmanager
def _dead_workers_reported() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no class of its own for it
        if "DataLoader worker" not in str(error):
            raise
        raise Unavailable(
            f"a worker process that loads pictures died ({reason(error)})",
            fix="it may have run out of memory: use fewer workers (0 loads in this process)",
        ) from error


class _EpochSampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """The batches of the coming epoch; each key carries the epoch to workers that outlive it."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


_Loaded = tuple[torch.Tensor, int] | ToolkitError


class _PictureDataset(Dataset[_Loaded]):
    def __init__(self, dataset: PictureSet, preprocessing: Preprocessing, recipe: Recipe | None, seed: int) -> None:
        self._dataset, self._preprocessing = dataset, preprocessing
        self._recipe, self._seed = recipe, seed

    def __getitem__(self, key: tuple[int, int]) -> _Loaded:
        epoch, index = key
        # An exception raised in a worker would reach the training as another one, with a traceback in its message.
        try:
            if self._recipe is None:
                prepared = prepared_picture(self._dataset, index, self._preprocessing)
                return torch.from_numpy(np.ascontiguousarray(prepared.transpose(2, 0, 1))), index
            item = self._dataset.read(index)
            picture = decode(item.data, item.name) if isinstance(item.data, bytes) else item.data
        except ToolkitError as error:
            return error
        seed = seed_for(self._seed, "crop", epoch, index)
        return augmented_picture(picture, self._preprocessing, self._recipe, seed), index


def _collate(items: Sequence[_Loaded]) -> tuple[torch.Tensor, torch.Tensor, ToolkitError | None]:
    good = []
    for item in items:
        if isinstance(item, ToolkitError):
            return torch.empty(0), torch.empty(0, dtype=torch.int64), item
        good.append(item)
    return torch.stack([picture for picture, _ in good]), torch.tensor([index for _, index in good]), None


def loading_workers(requested: int | None, pictures: int, *, trainings: int = 1) -> int:
    """Returns how many processes load a data set: as many as requested, or, for None, as its size is worth.

    So many `trainings`, this process included, load pictures on this machine at the same time.
    """
    if requested is not None:
        return requested
    return 0 if pictures <= FEW_PICTURES else max(1, default_workers() // trainings)


def open_loader(
    dataset: PictureSet,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    recipe: Recipe | None,
    seed: int,
    workers: int,
) -> Loader:
    """Opens a data set for training: prepared pictures that fit are kept in memory, others are streamed.

    The recipe decides what changes in a picture while it is loaded; None where every picture is only scaled and cropped
    at the centre. With 0 workers, this process loads.

    Raises:
        BadPicture: A picture can't be decoded.
    """
    size = preprocessing.image_size
    changing = recipe if recipe is not None and recipe.changes_loading else None
    if changing is not None or len(dataset) * 3 * size * size > IN_MEMORY_BYTES:
        return StreamLoader(dataset, preprocessing, device, recipe=changing, seed=seed, workers=workers)
    pictures = torch.empty((len(dataset), 3, size, size), dtype=torch.uint8)
    with Batches(dataset, preprocessing, batch_size=LOADING_BATCH, workers=workers) as loaded:
        for batch in loaded:
            pictures[torch.from_numpy(batch.indices)] = torch.from_numpy(batch.pictures).permute(0, 3, 1, 2)
    return MemoryLoader(pictures, dataset.labels, device)
