"""The training loop: epochs, the best and the last checkpoint, and going on after a stop.

Every random choice derives from the seed and the epoch (order, augmentation) or from a generator whose state is in
the checkpoint (dropout), and the learning rate from the step; so a run that was killed and resumed on one thread ends
with the same bits as one that never stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
import torch.nn.functional as F
from torch import nn

from resnet_onnx.data.batches import default_workers
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.models.build import build
from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.configs import NetworkConfig, config_to_json, with_classes
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training.augmentation import Normaliser, augment, pad_colour, seed_for
from resnet_onnx.training.checkpoint import BEST, LAST, RECORD, Checkpoint, read_checkpoint, write_checkpoint
from resnet_onnx.training.feeds import Feed, open_feed
from resnet_onnx.training.recipes import Recipe
from resnet_onnx.training.splits import TrainingData
from runtimes import files
from runtimes.errors import BadWeights, CheckFailed, FileProblem, RuntimeUnavailable, UsageError

EVALUATION_BATCH = 256
FEW_PICTURES = 4096
"""Up to here, decoding in this process is faster than starting workers."""

Stage = Literal["loading", "training", "validating", "testing"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands; given to the callback at every step.

    Attributes:
        stage: What is being done.
        epoch: From 1.
        epochs: Of the whole training.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        loss: Of the last step that was looked at, or None.
        images_per_second: Of this epoch so far, or None.
        finished: The epoch's figures, once, when it is over.
    """

    stage: Stage
    epoch: int
    epochs: int
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    finished: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training came to.

    Attributes:
        checkpoint: Folder of the best epoch by validation accuracy (the last epoch, where nothing is held out).
        last: Folder of the last epoch.
        recipe: As it was used, precision resolved.
        epochs: Per epoch: ``epoch``, ``train_loss``, ``train_top1`` (on augmented pictures, while training),
            ``validation_loss``, ``validation_top1`` (or None), ``seconds`` and ``images_per_second`` of the training
            pass, ``learning_rate`` of its last step.
        best: ``epoch``, and ``top1`` on the validation pictures (None where nothing is held out).
        test_top1: Of the best checkpoint on the test split, computed after the choice; None without a test split.
        images_per_second: Training pictures by seconds over all epochs, without validation.
        resumed_from: The epoch after which this call went on, or None for a fresh start.
    """

    checkpoint: Path
    last: Path
    recipe: Recipe
    epochs: list[dict[str, Any]]
    best: dict[str, Any]
    test_top1: float | None
    images_per_second: float
    resumed_from: int | None


def train(
    entry: CatalogEntry,
    data: TrainingData,
    *,
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    initial_state: Mapping[str, torch.Tensor] | None = None,
    progress: Callable[[Progress], None] | None = None,
    after_epoch: Callable[[int, nn.Module], Mapping[str, Any]] | None = None,
) -> TrainingResult:
    """Trains a network of the catalog on a data set; ``out/last`` after each epoch, ``out/best`` by validation.

    The network has one output per class of the data set, and the class names become its labels.

    Args:
        entry: The network.
        data: The pictures, as ``open_training_data`` gives them. Where they have no validation split,
            ``recipe.validation`` of every class is held out.
        recipe: Every number of the training.
        out: Folder of the run.
        seed: Decides initial weights, held-out pictures, order and augmentation.
        resume: Go on from ``out/last``; start where there is none; return at once where it is complete.
        threads: CPU threads; None leaves torch's setting. One thread makes runs reproducible to the bit.
        workers: Processes that load pictures; None chooses.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one.
        initial_state: State dict to start from, or None for He initialisation.
        progress: Called at every step.
        after_epoch: Called with the number of an epoch, from 1, and the network, when it is trained and validated. The
            finite figures that it returns join those of the epoch. It chooses nothing and must not train.

    Raises:
        BadData: Too few pictures.
        BadPicture: A picture can't be decoded.
        BadWeights: The checkpoint to resume from is damaged, or `initial_state` does not fit.
        UsageError: `out` holds another training, or the same one and `resume` was not asked for.
        FileProblem: `out` can't be written, or another process is training there.
        CheckFailed: The loss is no longer finite. The last good checkpoint is kept.
    """
    chosen = _device(device)
    labels, test_set = data.train.classes, data.test
    data = data.with_validation(recipe.validation, seed)
    kept, held_out = data.train, data.validation
    config = with_classes(entry.config, len(labels))
    identity = {
        "network": entry.name,
        "config": config_to_json(config),
        "preprocessing": entry.preprocessing.to_json(),
        "labels": list(labels),
        "data": data.fingerprint(),
        "seed": seed,
        "initial_weights": "He initialisation" if initial_state is None else _digest_state(initial_state),
    }
    report = progress or (lambda _: None)
    with _claimed(out), _threads(threads), contextlib.ExitStack() as stack:
        before = _earlier_run(out, identity, recipe, resume=resume)
        recipe = _resolved(recipe, before, chosen)

        def open_(dataset: PictureSet, smallest_area: float | None) -> Feed:
            report(Progress(stage="loading", epoch=before.epoch if before else 0, epochs=recipe.epochs))
            asked = (0 if len(dataset) <= FEW_PICTURES else default_workers()) if workers is None else workers
            feed = open_feed(
                dataset, entry.preprocessing, chosen, smallest_area=smallest_area, seed=seed, workers=asked
            )
            stack.callback(feed.close)
            return feed

        run = _Run(
            name=entry.name,
            config=config,
            preprocessing=entry.preprocessing,
            labels=labels,
            recipe=recipe,
            out=out,
            seed=seed,
            identity=identity,
            device=chosen,
            report=report,
            after_epoch=after_epoch,
        )
        if before is None or before.epoch < recipe.epochs:
            train_feed = open_(kept, recipe.smallest_area if recipe.crop == "resized" else None)
            validation_feed = None if held_out is None else open_(held_out, None)
            run.go(train_feed, validation_feed, before, initial_state)
        else:
            run.take_over(before)
        test_top1 = None
        if test_set is not None:
            test_top1 = run.test(lambda: open_(test_set, None))
    return TrainingResult(
        checkpoint=out / BEST,
        last=out / LAST,
        recipe=recipe,
        epochs=run.history,
        best={"epoch": run.best["epoch"], "top1": run.best["top1"]},
        test_top1=test_top1,
        images_per_second=sum(e["images_per_second"] * e["seconds"] for e in run.history)
        / sum(e["seconds"] for e in run.history),
        resumed_from=None if before is None else before.epoch,
    )


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that bf16 is faster than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


@torch.inference_mode()
def measure(module: nn.Module, feed: Feed, normaliser: Normaliser) -> tuple[float, float]:
    """Returns top-1 accuracy and mean cross-entropy over a feed, in fp32, without augmentation."""
    module.eval()
    right = torch.zeros((), dtype=torch.int64, device=feed.device)
    loss = torch.zeros((), dtype=torch.float64, device=feed.device)
    for pictures, labels in feed.batches(torch.arange(len(feed)), EVALUATION_BATCH, epoch=0):
        logits = module(normaliser(pictures))
        right += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    return int(right) / len(feed), float(loss) / len(feed)


class _Run:
    """The state of one training."""

    def __init__(
        self,
        *,
        name: str,
        config: NetworkConfig,
        preprocessing: Preprocessing,
        labels: tuple[str, ...],
        recipe: Recipe,
        out: Path,
        seed: int,
        identity: Mapping[str, Any],
        device: torch.device,
        report: Callable[[Progress], None],
        after_epoch: Callable[[int, nn.Module], Mapping[str, Any]] | None,
    ) -> None:
        self.name, self.config, self.preprocessing, self.labels = name, config, preprocessing, labels
        self.recipe, self.out, self.seed, self.identity = recipe, out, seed, identity
        self.device, self.report, self.after_epoch = device, report, after_epoch
        self.normaliser = Normaliser(preprocessing, device)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def take_over(self, checkpoint: Checkpoint) -> None:
        """Takes history and best epoch from a checkpoint, and sees that the best checkpoint is the one it means."""
        self.history = [dict(row) for row in checkpoint.progress["history"]]
        self.best = dict(checkpoint.progress["best"])
        best = self.out / BEST
        if self.best["epoch"] == checkpoint.epoch:
            # The last kill may have hit between the two writes of that epoch.
            with contextlib.suppress(BadWeights):
                if read_checkpoint(best).epoch == checkpoint.epoch:
                    return
            self._write(best, checkpoint.module_state(), checkpoint.epoch)
            return
        found = read_checkpoint(best)
        if found.epoch != self.best["epoch"]:
            raise BadWeights(
                f"{best} is of epoch {found.epoch}, but the best epoch of this run is {self.best['epoch']}",
                fix=f"put the right folder back, or train anew into another folder than {self.out}",
            )

    def go(
        self,
        train_feed: Feed,
        validation_feed: Feed | None,
        before: Checkpoint | None,
        initial_state: Mapping[str, torch.Tensor] | None,
    ) -> None:
        """Trains the epochs that are still to be done."""
        recipe = self.recipe
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed_for(self.seed, "weights"))
            module = build(self.config)
            if initial_state is not None:
                _fill(module, initial_state)
            module.to(self.device)
            optimizer = torch.optim.SGD(
                module.parameters(),
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.nesterov,
            )
            if before is not None:
                self.take_over(before)
                _fill(module, before.module_state())
                optimizer.load_state_dict(before.optimizer_state())
                self._set_rng(before.rng_state())
            for epoch in range(len(self.history), recipe.epochs):
                self._epoch(epoch, module, optimizer, train_feed, validation_feed)

    def _epoch(
        self,
        epoch: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_feed: Feed,
        validation_feed: Feed | None,
    ) -> None:
        row = self._train_epoch(epoch, module, optimizer, train_feed)
        top1 = loss = None
        if validation_feed is not None:
            self.report(Progress(stage="validating", epoch=epoch + 1, epochs=self.recipe.epochs))
            top1, loss = measure(module, validation_feed, self.normaliser)
        if not all(bool(value.isfinite().all()) for value in module.state_dict().values()):
            raise self._diverged("a weight is no longer finite", epoch, row["steps"])
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}", epoch, row["steps"])
        row |= {"validation_loss": loss, "validation_top1": top1}
        if self.after_epoch is not None:
            row |= self.after_epoch(epoch + 1, module)
        self.history.append(row)
        better = top1 is None or not self.best or (top1, -float(loss or 0)) > (self.best["top1"], -self.best["loss"])
        if better:
            self.best = {"epoch": epoch + 1, "top1": top1, "loss": loss}
        state = module.state_dict()
        self._write(self.out / LAST, state, epoch + 1, optimizer_state=optimizer.state_dict(), rng_state=self._rng())
        if better:
            self._write(self.out / BEST, state, epoch + 1)
        self.report(Progress(stage="training", epoch=epoch + 1, epochs=self.recipe.epochs, finished=dict(row)))

    def _train_epoch(
        self, epoch: int, module: nn.Module, optimizer: torch.optim.Optimizer, feed: Feed
    ) -> dict[str, Any]:
        recipe, device = self.recipe, self.device
        batch_size = min(recipe.batch_size, len(feed))
        steps = len(feed) // batch_size
        generator = torch.Generator().manual_seed(seed_for(self.seed, "epoch", epoch))
        # A rest smaller than a batch waits for another epoch's order: batch norm's statistics of a few are poor.
        order = torch.randperm(len(feed), generator=generator)[: steps * batch_size]
        fill = pad_colour(recipe, self.normaliser)
        look_every = 1 if device.type == "cpu" else 25  # to look at a loss makes a GPU wait
        right = torch.zeros((), dtype=torch.int64, device=device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        rate = 0.0
        module.train()
        start = time.perf_counter()
        for step, (pictures, labels) in enumerate(feed.batches(order, batch_size, epoch=epoch)):
            inputs = self.normaliser(augment(pictures, recipe, fill, generator))
            rate = recipe.learning_rate_at(epoch * steps + step, recipe.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = module(inputs)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            right += (logits.detach().argmax(1) == labels).sum()
            loss_sum += loss.detach()
            if step % look_every == 0 or step == steps - 1:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise self._diverged(f"the loss is {value}", epoch, step + 1)
                self.report(
                    Progress(
                        stage="training",
                        epoch=epoch + 1,
                        epochs=recipe.epochs,
                        step=step + 1,
                        steps=steps,
                        loss=value,
                        images_per_second=(step + 1) * batch_size / (time.perf_counter() - start),
                    )
                )
        seconds = time.perf_counter() - start
        return {
            "epoch": epoch + 1,
            "steps": steps,
            "train_loss": float(loss_sum) / steps,
            "train_top1": int(right) / (steps * batch_size),
            "seconds": seconds,
            "images_per_second": steps * batch_size / seconds,
            "learning_rate": rate,
        }

    def test(self, open_test: Callable[[], Feed]) -> float:
        """Returns the best checkpoint's accuracy on the test split, and keeps it in that checkpoint."""
        best = read_checkpoint(self.out / BEST)
        known = best.metrics.get("test_top1")
        if known is not None:
            return float(known)
        feed = open_test()
        self.report(Progress(stage="testing", epoch=best.epoch, epochs=self.recipe.epochs))
        module = build(self.config)
        state = best.module_state()
        _fill(module, state)
        top1, _ = measure(module.to(self.device), feed, self.normaliser)
        self._write(self.out / BEST, state, best.epoch, test_top1=top1)
        return top1

    def _diverged(self, what: str, epoch: int, step: int) -> CheckFailed:
        kept = f"the last good checkpoint is {self.out / LAST} (epoch {epoch})" if epoch else "no epoch was finished"
        return CheckFailed(
            f"the training diverged: {what} in epoch {epoch + 1}, step {step}; {kept}",
            fix=f"lower the learning rate (its peak was {self.recipe.learning_rate:g}) or use precision fp32",
        )

    def _write(
        self,
        folder: Path,
        state: Mapping[str, torch.Tensor],
        epoch: int,
        *,
        optimizer_state: Mapping[str, Any] | None = None,
        rng_state: Mapping[str, torch.Tensor] | None = None,
        test_top1: float | None = None,
    ) -> None:
        metrics = dict(self.history[epoch - 1])
        if test_top1 is not None:
            metrics["test_top1"] = test_top1
        write_checkpoint(
            folder,
            name=self.name,
            config=self.config,
            preprocessing=self.preprocessing,
            labels=self.labels,
            module_state=state,
            recipe=self.recipe.to_json(),
            epoch=epoch,
            metrics=metrics,
            progress={
                "identity": dict(self.identity),
                "history": self.history,
                "best": self.best,
                "device": str(self.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            optimizer_state=optimizer_state,
            rng_state=rng_state,
        )

    def _rng(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_rng(self, states: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)


def _digest_state(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fill(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise BadWeights(f"the weights do not fit the network: {' '.join(str(error).split())[:300]}") from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device is cpu, cuda or cuda:N, not '{name}'") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device is cpu, cuda or cuda:N, not '{name}'")
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise RuntimeUnavailable(f"device '{name}' is not here: torch sees no such GPU", fix="train with device cpu")
    return device


def _resolved(recipe: Recipe, before: Checkpoint | None, device: torch.device) -> Recipe:
    if recipe.precision != "auto":
        return recipe
    if before is not None:
        return recipe.override(precision=before.recipe["precision"])
    return recipe.override(precision="bf16" if computes_bf16(device) else "fp32")


def _earlier_run(out: Path, identity: Mapping[str, Any], recipe: Recipe, *, resume: bool) -> Checkpoint | None:
    """Returns the checkpoint to go on from, or None where there is none."""
    last = out / LAST
    if not (last / RECORD).exists():
        return None
    if not resume:
        raise UsageError(
            f"{out} holds a training already",
            fix="add --resume to go on with it, or name another folder with --out",
        )
    before = read_checkpoint(last)
    if not before.resumable or not {"identity", "history", "best"} <= set(before.progress):
        raise BadWeights(f"{last} holds weights to use, but no state to resume from", fix="train into another folder")
    asked = recipe.to_json()
    differences = [
        f"recipe {name} was {value!r}, now {asked[name]!r}"
        for name, value in before.recipe.items()
        if name in asked and name != "source" and asked[name] != value and (name, asked[name]) != ("precision", "auto")
    ]
    differences += [
        f"another {name.replace('_', ' ')}"
        + (f" ({value} before, now {identity[name]})" if isinstance(value, str | int) else "")
        for name, value in before.progress["identity"].items()
        if identity.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"can't resume {out}: {'; '.join(differences)}",
            fix="resume with what it was started with, or train into another folder with --out",
        )
    return before


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Makes the run's folder, alone in it, with what a killed run left behind cleared away."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise FileProblem(
            f"another process is training into {out}", fix="wait for it, or name another folder with --out"
        ) from error
    except OSError as error:
        raise FileProblem(
            f"can't write into {out}: {error.strerror or error}", fix="name another folder with --out"
        ) from error
    with lock:
        lock.release()  # `with` has taken it a second time
        for name in (LAST, BEST):
            files.settle_folder(out / name)
            for stale in out.glob(f".{name}.*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
        yield


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
