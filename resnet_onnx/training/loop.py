"""The training loop: epochs, the best and the last checkpoint, and going on after a stop.

Every random choice derives from the seed and the epoch (order, augmentation) or from a generator whose state is in
the checkpoint (dropout), and the learning rate from the step; so a run that was killed and resumed on one thread ends
with the same bits as one that never stopped.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.data.batches import Skipped, default_workers
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.models.build import build
from resnet_onnx.models.catalog import CatalogEntry
from resnet_onnx.models.configs import NetworkConfig, config_to_json, with_classes
from resnet_onnx.models.preprocessing import Preprocessing
from resnet_onnx.training.augmentation import Normaliser, Share, augment, colour_shift, mix, pad_colour, seed_for
from resnet_onnx.training.checkpoint import BEST, LAST, RECORD, Checkpoint, read_checkpoint, write_checkpoint
from resnet_onnx.training.distributed import ALONE, Peers
from resnet_onnx.training.feeds import Feed, open_feed
from resnet_onnx.training.freezing import freeze
from resnet_onnx.training.history import history_csv
from resnet_onnx.training.recipes import Recipe
from resnet_onnx.training.splits import TrainingData, names_sha256
from runtimes import files
from runtimes.errors import (
    BadData,
    BadWeights,
    CheckFailed,
    FileProblem,
    OutOfMemory,
    RuntimeUnavailable,
    ToolkitError,
    UsageError,
    is_out_of_memory,
)

HISTORY = "history.csv"
"""The figures of every epoch, in the folder of the run."""
EVALUATION_BATCH = 256
"""Most pictures that a network is asked about at once."""
EVALUATION_PIXELS = 2**20
"""Most pixels of them together, so that validation needs no more memory than training: VGG-16's first two layers take
0.5 GiB for so many."""
FEW_PICTURES = 4096
"""Up to here, decoding in this process is faster than starting workers."""

Stage = Literal["checking", "loading", "training", "validating", "testing"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands; given to the callback at every step.

    Attributes:
        stage: What is being done.
        epoch: From 1.
        epochs: Of the whole training.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        done: Steps done in the whole training.
        total: Steps of the whole training.
        loss: Of the last step that was looked at, or None.
        top1: Accuracy on this epoch's pictures so far, augmented and while training, 0 to 1; or None.
        images_per_second: Of this epoch so far, or None.
        finished: The epoch's figures, once, when it is over.
    """

    stage: Stage
    epoch: int
    epochs: int
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 0
    loss: float | None = None
    top1: float | None = None
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
            ``validation_loss``, ``validation_top1`` (or None), ``steps``, ``seconds`` and ``images_per_second`` of the
            training pass, ``input_seconds`` of it that were spent waiting for pictures and changing them, and
            ``learning_rate`` of its last step.
        best: ``epoch``, and ``top1`` on the validation pictures (None where nothing is held out).
        test_top1: Of the best checkpoint on the test split, computed after the choice; None without a test split.
        images_per_second: Training pictures by seconds over all epochs, without validation.
        resumed_from: The epoch after which this call went on, or None for a fresh start.
        skipped: Pictures that were left out because they can't be decoded.
    """

    checkpoint: Path
    last: Path
    recipe: Recipe
    epochs: list[dict[str, Any]]
    best: dict[str, Any]
    test_top1: float | None
    images_per_second: float
    resumed_from: int | None
    skipped: tuple[Skipped, ...] = ()


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
    peers: Peers = ALONE,
    batch_per_process: int | None = None,
    skip_bad: int = 0,
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
        peers: The processes that train together; ``recipe.batch_size`` is divided among them, which
            changes the training only where docs/training.md says so. Only the first one writes. Restarted ones resume.
        batch_per_process: Pictures that each process takes in a step, instead of its part of the recipe's batch; the
            learning rate is then scaled with the whole batch.
        skip_bad: So many pictures may be left out because they can't be decoded; all are decoded once to find them.

    Raises:
        BadData: Too few pictures.
        BadPicture: A picture can't be decoded.
        BadWeights: The checkpoint to resume from is damaged, or `initial_state` does not fit.
        UsageError: `out` holds another training, or the same one and `resume` was not asked for; or the recipe does
            not fit the network, the device or the number of processes.
        Unavailable: Another process of the training died.
        FileProblem: `out` can't be written, or another process is training there.
        CheckFailed: The loss is no longer finite. The last good checkpoint is kept.
        OutOfMemory: A step, or a look at the validation pictures, does not fit into memory.
        RuntimeUnavailable: No such device; or ``compile`` is on and torch can't compile here.
    """
    if batch_per_process is not None:
        recipe = recipe.with_batch(batch_per_process * peers.count)
    chosen = peers.agree(lambda: _checked_device(recipe, entry, device, peers))
    report = progress or (lambda _: None)
    with peers.connected(chosen), _limits_told(recipe), limited_threads(threads), contextlib.ExitStack() as stack:
        peers.share(lambda: stack.enter_context(_claimed(out)))
        skipped: tuple[Skipped, ...] = ()
        if skip_bad:
            report(Progress(stage="checking", epoch=0, epochs=recipe.epochs))
            unreadable = peers.share(
                lambda: data.unreadable(entry.preprocessing, loading_workers(workers, len(data.train)))
            )
            data, skipped = peers.agree(functools.partial(data.without, unreadable, at_most=skip_bad))
        labels, test_set = data.train.classes, data.test
        data = peers.agree(functools.partial(data.with_validation, recipe.validation, seed))
        kept, held_out = data.train, data.validation
        if len(kept) < 2 * peers.count:
            raise peers.together(
                BadData(
                    f"{kept.name}: {len(kept)} of its pictures are left to train on, and batch norm needs at least "
                    f"{2 * peers.count}, two a process",
                    fix="add pictures" + (", or start fewer processes" if peers.count > 1 else ""),
                )
            )
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

        def look_back() -> Checkpoint | None:
            # What a restarted process finds there, it may have begun itself.
            found = _earlier_run(out, identity, recipe, resume=resume or peers.has_begun(str(out)))
            peers.begin(str(out))
            return found

        before = peers.share(look_back)
        recipe = _resolved(recipe, before, chosen)

        def open_(dataset: PictureSet, changes: Recipe | None) -> Feed:
            report(Progress(stage="loading", epoch=before.epoch if before else 0, epochs=recipe.epochs))
            asked = loading_workers(workers, len(dataset), beside=peers.local_count)
            feed = peers.agree(
                lambda: open_feed(dataset, entry.preprocessing, chosen, recipe=changes, seed=seed, workers=asked)
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
            peers=peers,
            pictures=len(kept),
        )
        if before is None or before.epoch < run.epochs:
            train_feed = open_(kept, recipe)
            validation_feed = None if held_out is None else open_(held_out, None)
            run.go(train_feed, validation_feed, before, initial_state)
        else:
            run.take_over(before)
        test_top1 = None
        if test_set is not None:
            test_top1 = run.test(names_sha256(test_set), lambda: open_(test_set, None))
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
        skipped=skipped,
    )


def loading_workers(asked: int | None, pictures: int, *, beside: int = 1) -> int:
    """Returns how many processes load a data set: as many as were asked for, or what its size is worth.

    Args:
        asked: By the user; None chooses.
        pictures: Of the data set.
        beside: How many trainings of this machine, this one included, load pictures at the same time.
    """
    if asked is not None:
        return asked
    return 0 if pictures <= FEW_PICTURES else max(1, default_workers() // beside)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that bf16 is faster than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


@torch.inference_mode()
def answers(
    module: nn.Module, feed: Feed, normaliser: Normaliser, *, peers: Peers = ALONE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Asks a network about a feed, in fp32, not augmented, batch norm in its final state.

    Returns:
        Whether it is right, bool [pictures] in the order of the feed, and the sum of the cross-entropies, float64 [].
        Of several processes, each gets every n-th picture, beginning with its rank.
    """
    module.eval()
    right = []
    loss = torch.zeros((), dtype=torch.float64, device=feed.device)
    at_once = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // feed.side**2))
    for pictures, labels in feed.batches(torch.arange(len(feed))[peers.rank :: peers.count], at_once, epoch=0):
        logits = module(normaliser(pictures))
        right.append(logits.argmax(1) == labels)
        loss += F.cross_entropy(logits, labels, reduction="sum")
    return torch.cat(right) if right else torch.zeros(0, dtype=torch.bool, device=feed.device), loss


def measure(module: nn.Module, feed: Feed, normaliser: Normaliser, *, peers: Peers = ALONE) -> tuple[float, float]:
    """Returns top-1 accuracy and mean cross-entropy over a feed, in fp32, not augmented; peers share the work."""
    right, loss = answers(module, feed, normaliser, peers=peers)
    count = right.sum()
    peers.sum(count, loss)
    return int(count) / len(feed), float(loss) / len(feed)


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
        peers: Peers,
        pictures: int,
    ) -> None:
        self.name, self.config, self.preprocessing, self.labels = name, config, preprocessing, labels
        self.recipe, self.out, self.seed, self.identity = recipe, out, seed, identity
        self.device, self.report, self.after_epoch, self.peers = device, report, after_epoch, peers
        whole = min(recipe.batch_size, pictures)
        self.part = whole // peers.count  # of each process
        self.batch_size = self.part * peers.count
        self.steps_per_epoch = pictures // self.batch_size
        self.total = recipe.total_steps(self.steps_per_epoch)
        self.epochs = -(-self.total // self.steps_per_epoch)
        self.normaliser = Normaliser(preprocessing, device)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def take_over(self, checkpoint: Checkpoint) -> None:
        """Takes history and best epoch from a checkpoint, and sees that the best checkpoint is the one it means."""
        self.history = [dict(row) for row in checkpoint.progress["history"]]
        self.best = dict(checkpoint.progress["best"])
        self.peers.share(lambda: self._settle_best(checkpoint))

    def _settle_best(self, checkpoint: Checkpoint) -> None:
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
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            learner = self.peers.agree(lambda: self._learner(initial_state))
            if before is not None:
                self.take_over(before)
                learner.restore(*self.peers.share(lambda: (before.module_state(), before.optimizer_state())))
                self._set_rng(self.peers.share(before.rng_state))
            elif not self.peers.first:
                torch.manual_seed(seed_for(self.seed, "dropout", self.peers.rank))
            learner.connect()
            for epoch in range(len(self.history), self.epochs):
                self._epoch(epoch, learner, train_feed, validation_feed)

    def _learner(self, initial_state: Mapping[str, torch.Tensor] | None) -> _Learner:
        torch.manual_seed(seed_for(self.seed, "weights"))
        module = build(self.config)
        if initial_state is not None:
            _fill(module, initial_state)
        return _Learner(module, self.recipe, self.device, self.peers)

    def _epoch(self, epoch: int, learner: _Learner, train_feed: Feed, validation_feed: Feed | None) -> None:
        row = self._train_epoch(epoch, learner, train_feed)
        learner.end_epoch()
        if not math.isfinite(row["train_loss"]):  # of a step that was not looked at
            raise self._diverged(f"the mean loss is {row['train_loss']}", epoch, row["steps"])
        module = learner.result
        top1 = loss = None
        done = min(self.total, (epoch + 1) * self.steps_per_epoch)
        if validation_feed is not None:
            self.report(Progress(stage="validating", epoch=epoch + 1, epochs=self.epochs, done=done, total=self.total))
            top1, loss = measure(module, validation_feed, self.normaliser, peers=self.peers)
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
        rng_states = self.peers.gather(self._rng())
        rng = {f"{name}.{rank}" if rank else name: s for rank, one in enumerate(rng_states) for name, s in one.items()}
        self.peers.share(lambda: self._save(epoch + 1, learner, rng, best=better))
        self.report(
            Progress(
                stage="training",
                epoch=epoch + 1,
                epochs=self.epochs,
                done=done,
                total=self.total,
                finished=dict(row),
            )
        )

    def _save(self, epoch: int, learner: _Learner, rng: Mapping[str, torch.Tensor], *, best: bool) -> None:
        state = learner.result.state_dict()
        self._write(self.out / LAST, state, epoch, optimizer_state=learner.state(), rng_state=rng)
        if best:
            self._write(self.out / BEST, state, epoch)
        files.write_text(self.out / HISTORY, history_csv(self.history))

    def _train_epoch(self, epoch: int, learner: _Learner, feed: Feed) -> dict[str, Any]:
        recipe, device = self.recipe, self.device
        before = epoch * self.steps_per_epoch
        steps = min(self.steps_per_epoch, self.total - before)
        share = Share(first=self.peers.rank * self.part, total=self.batch_size)
        generator = torch.Generator().manual_seed(seed_for(self.seed, "epoch", epoch))
        # A rest smaller than a batch waits for another epoch's order: batch norm's statistics of a few are poor.
        order = torch.randperm(len(feed), generator=generator)[: steps * self.batch_size]
        own = order.view(steps, self.batch_size)[:, share.first : share.first + self.part].reshape(-1)
        fill = pad_colour(recipe, self.normaliser)
        drops = recipe.plateaus([_error(row) for row in self.history]) if recipe.schedule == "plateau" else 0
        look_every = 1 if device.type == "cpu" else 25  # to look at a loss makes a GPU wait
        right = torch.zeros((), dtype=torch.int64, device=device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        rate = input_seconds = 0.0
        learner.train_mode()
        watch = Stopwatch()
        batches = feed.batches(own, self.part, epoch=epoch)
        for step in range(steps):
            waiting = Stopwatch()
            pictures, labels = next(batches)
            inputs = self.normaliser(augment(pictures, recipe, fill, generator, share))
            if recipe.colour:
                inputs += colour_shift(inputs, recipe, generator, share) * self.normaliser.per_white
            targets = labels
            if recipe.mixup or recipe.cutmix:
                seed = seed_for(self.seed, "mix", epoch, step)
                inputs, targets = mix(inputs, labels, classes=len(self.labels), recipe=recipe, seed=seed)
            input_seconds += waiting.seconds
            rate = recipe.learning_rate_at(before + step, self.total, drops=drops)
            loss, logits = learner.step(inputs, targets, rate)
            right += (logits.argmax(1) == labels).sum()
            loss_sum += loss
            if step % look_every == 0 or step == steps - 1:
                self.peers.sum(loss)
                value = float(loss) / self.peers.count
                if not math.isfinite(value):
                    raise self._diverged(f"the loss is {value}", epoch, step + 1)
                self.report(
                    Progress(
                        stage="training",
                        epoch=epoch + 1,
                        epochs=self.epochs,
                        step=step + 1,
                        steps=steps,
                        done=before + step + 1,
                        total=self.total,
                        loss=value,
                        top1=int(right) / ((step + 1) * self.part),
                        images_per_second=(step + 1) * self.batch_size / watch.seconds,
                    )
                )
        seconds = watch.seconds
        next(batches, None)  # lets the feed end its epoch
        self.peers.sum(right, loss_sum)
        return {
            "epoch": epoch + 1,
            "steps": steps,
            "train_loss": float(loss_sum) / steps / self.peers.count,
            "train_top1": int(right) / (steps * self.batch_size),
            "seconds": seconds,
            "images_per_second": steps * self.batch_size / seconds,
            "input_seconds": input_seconds,
            "learning_rate": rate,
        }

    def test(self, pictures: str, open_test: Callable[[], Feed]) -> float:
        """Returns the best checkpoint's accuracy on the test split, and keeps it in that checkpoint.

        Args:
            pictures: SHA-256 that identifies them: an accuracy that is kept already counts for the same ones only.
            open_test: Opens them.
        """
        best, state = self.peers.share(lambda: self._best())
        known = best.metrics.get("test_top1")
        if known is not None and best.progress.get("test_pictures") == pictures:
            return float(known)
        feed = open_test()
        self.report(Progress(stage="testing", epoch=best.epoch, epochs=self.epochs, done=self.total, total=self.total))
        module = build(self.config)
        _fill(module, state)
        top1, _ = measure(module.to(self.device), feed, self.normaliser, peers=self.peers)
        self.peers.share(lambda: self._write(self.out / BEST, state, best.epoch, tested=(top1, pictures)))
        return top1

    def _best(self) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
        best = read_checkpoint(self.out / BEST)
        return best, best.module_state()

    def _diverged(self, what: str, epoch: int, step: int) -> ToolkitError:
        kept = f"the last good checkpoint is {self.out / LAST} (epoch {epoch})" if epoch else "no epoch was finished"
        diverged = CheckFailed(
            f"the training diverged: {what} in epoch {epoch + 1}, step {step}; {kept}",
            fix=f"lower the learning rate (its peak was {self.recipe.learning_rate:g}) or use precision fp32",
        )
        return self.peers.together(diverged)

    def _write(
        self,
        folder: Path,
        state: Mapping[str, torch.Tensor],
        epoch: int,
        *,
        optimizer_state: Mapping[str, Any] | None = None,
        rng_state: Mapping[str, torch.Tensor] | None = None,
        tested: tuple[float, str] | None = None,
    ) -> None:
        metrics = dict(self.history[epoch - 1])
        progress = {
            "identity": dict(self.identity),
            "history": self.history,
            "best": self.best,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        if tested is not None:
            metrics["test_top1"], progress["test_pictures"] = tested
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
            progress=progress,
            optimizer_state=optimizer_state,
            rng_state=rng_state,
        )

    def _rng(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_rng(self, states: Mapping[str, torch.Tensor]) -> None:
        suffix = f".{self.peers.rank}" if self.peers.rank else ""
        if f"cpu{suffix}" not in states:  # there were fewer processes before
            torch.manual_seed(seed_for(self.seed, "dropout", self.peers.rank))
            return
        torch.set_rng_state(states[f"cpu{suffix}"])
        if self.device.type == "cuda" and f"cuda{suffix}" in states:
            torch.cuda.set_rng_state(states[f"cuda{suffix}"], self.device)


class _Learner:
    """A network with its optimizer, and what stands between them: frozen layers, averages, precision, peers."""

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device, peers: Peers) -> None:
        self.recipe, self.device, self.peers = recipe, device, peers
        if recipe.sync_batch_norm:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self.layout = torch.channels_last if recipe.layout == "channels-last" else torch.contiguous_format
        self.module = module.to(device).to(memory_format=self.layout)
        self.frozen = freeze(module, recipe.freeze)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained}]
        if not recipe.decay_norms:
            groups = [
                {"params": [p for p in trained if p.ndim > 1]},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ]
        self.optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
        self.average = None if not recipe.ema else AveragedModel(module, multi_avg_fn=_moving_average(recipe.ema))
        self.forward = self.module

    def restore(self, result: Mapping[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Takes over the state of an earlier run: the module that it came to, and what ``state`` returned."""
        trained = state.pop("trained_weights", None)
        scaler = state.pop("scaler", None)
        steps = state.pop("averaged_steps", 0)
        if self.average is not None and trained is not None:
            _fill(self.average.module, result)
            self.average.n_averaged.fill_(steps)
        _fill(self.module, result if trained is None else trained)
        self.optimizer.load_state_dict(state)
        if scaler:
            self.scaler.load_state_dict(scaler)

    def state(self) -> dict[str, Any]:
        """Returns what ``restore`` needs beside the module that this one has come to."""
        state: dict[str, Any] = dict(self.optimizer.state_dict())
        if self.average is not None:
            state["trained_weights"] = self.module.state_dict()
            state["averaged_steps"] = int(self.average.n_averaged)
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def connect(self) -> None:
        """Puts the processes and the compiler around the network, once its weights are there."""
        self.forward = self.peers.wrap(self.module)
        if self.recipe.compile == "on":
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    @property
    def result(self) -> nn.Module:
        """The network to validate and to keep: the moving average, where there is one."""
        if self.average is None:
            return self.module
        averaged: nn.Module = self.average.module
        return averaged

    def train_mode(self) -> None:
        """Batch norm computes its statistics, except where it is frozen."""
        self.forward.train()
        for part in self.frozen:
            part.eval()

    def step(self, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss and the logits [batch, class] of one step, both without gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None):
            logits = self.forward(inputs.contiguous(memory_format=self.layout))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return loss.detach(), logits.detach()

    def end_epoch(self) -> None:
        """Gives all processes the same statistics of batch norm."""
        self.peers.average_statistics(self.module)
        if self.average is not None:
            self.peers.average_statistics(self.average.module)


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Returns an exponential average whose decay is min(decay, (1 + steps) / (10 + steps)), so that it starts quickly.

    It is that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """

    def update(averaged: Any, current: Any, steps: Any) -> None:
        count = int(steps)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return update


def _error(row: Mapping[str, Any]) -> float:
    held = row["validation_top1"]
    return 1.0 - float(row["train_top1"] if held is None else held)


def _checked_device(recipe: Recipe, entry: CatalogEntry, name: str | None, peers: Peers) -> torch.device:
    """Returns the device of a name; refuses what recipe, network, device and number of processes can't do together."""
    device = peers.device(name)
    count = peers.count
    if recipe.batch_size % count:
        fitting = recipe.batch_size // count * count or count
        raise UsageError(
            f"a batch of {recipe.batch_size} can't be divided evenly among {count} processes",
            fix=f"a batch of {fitting} or {fitting + count}",
        )
    if recipe.batch_size < 2 * count:
        raise UsageError(
            f"a batch of {recipe.batch_size} leaves each of {count} processes one picture, and batch norm needs two",
            fix=f"a batch of at least {2 * count}",
        )
    if recipe.sync_batch_norm and (device.type == "cpu" or count == 1):
        why = "torch's SyncBatchNorm has no CPU form" if device.type == "cpu" else "there is one process only"
        raise UsageError(
            f"batch norm can't be synchronised between processes here: {why}",
            fix="leave out sync_batch_norm; each process then uses the statistics of its own pictures",
        )
    if recipe.precision == "fp16" and device.type == "cpu":
        raise RuntimeUnavailable(
            "precision fp16 trains on GPUs only; this training is on a CPU", fix="use bf16, fp32 or auto"
        )
    if recipe.crop == "scaled" and recipe.shorter_side[0] < entry.image_size:
        raise UsageError(
            f"recipe: shorter_side begins at {recipe.shorter_side[0]} pixels, below the network's {entry.image_size}",
            fix=f"--set shorter_side={entry.image_size},{max(recipe.shorter_side[1], entry.image_size)}",
        )
    return device


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


def _resolved(recipe: Recipe, before: Checkpoint | None, device: torch.device) -> Recipe:
    """Decides what the recipe leaves open; a resumed run goes on as it was."""
    decided = {
        "precision": "bf16" if computes_bf16(device) else "fp32",
        "layout": "channels-last",
        "compile": "off",
    }
    if before is not None:
        decided |= {name: before.recipe[name] for name in decided if name in before.recipe}
    return recipe.override(**{name: value for name, value in decided.items() if getattr(recipe, name) == "auto"})


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
        if name in asked and name != "source" and asked[name] not in (value, "auto")
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
def _limits_told(recipe: Recipe) -> Iterator[None]:
    """Says plainly what torch raises for lack of memory, and where it can't compile."""
    try:
        yield
    except RuntimeError as error:  # torch's CPU allocator has no class of its own, its others derive from it
        text = " ".join(str(error).split())
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"the training does not fit into memory: {text[:200]}",
                fix=f"a smaller batch than {recipe.batch_size} (--batch), or smaller pictures (--image-size)",
            ) from error
        if recipe.compile == "on" and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise RuntimeUnavailable(
                f"torch can't compile the network here: {text[:200]}",
                fix="install a C++ compiler (g++), or leave out compile=on",
            ) from error
        raise


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Lets torch use so many CPU threads for as long as the block runs; None leaves its setting."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
