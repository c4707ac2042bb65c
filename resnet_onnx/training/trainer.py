"""A training run as a value: its epochs, its figures so far, and its two checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from resnet_onnx.bench.clock import Stopwatch
from resnet_onnx.data.datasets import PictureSet
from resnet_onnx.models.build import build
from resnet_onnx.training.augmentation import BatchAugmentation, Normaliser, Shard, seed_for
from resnet_onnx.training.checkpoint import BEST, LAST, Checkpoint, CheckpointContent, read_checkpoint, write_checkpoint
from resnet_onnx.training.distributed import ProcessGroup
from resnet_onnx.training.history import EpochRow, ValidatedBest, history_csv
from resnet_onnx.training.loaders import Loader, loading_workers, open_loader
from resnet_onnx.training.plan import Progress, Stage, TrainingPlan
from resnet_onnx.training.recipes import Recipe
from resnet_onnx.training.resume import rng_states, set_rng_states
from resnet_onnx.training.splits import names_sha256
from resnet_onnx.training.step import TrainState, load_weights
from resnet_onnx.training.validation import evaluate
from runtimes import files
from runtimes.errors import BadWeights, CheckFailed, ToolkitError

HISTORY = "history.csv"
"""The figures of every epoch, in the folder of the run."""


class Trainer:
    """Trains, validates and saves; the order in which it does so is ``loop.train``.

    Args:
        plan: Of the training, with its validation pictures held out and its recipe resolved.
        identity: Of the training, as ``run_identity`` returns it.
        device: Where it trains.
        group: The processes that train together.
        report: Called at every step.

    Attributes:
        history: The figures of the epochs so far.
        best: The best of them; its epoch is 0 before the first.
        epochs: Of the whole training.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        *,
        identity: Mapping[str, Any],
        device: torch.device,
        group: ProcessGroup,
        report: Callable[[Progress], None],
    ) -> None:
        self.plan, self.recipe, self.identity = plan, plan.recipe, identity
        self.device, self.group, self.report = device, group, report
        pictures = len(plan.data.train)
        self.local_batch_size = min(plan.recipe.batch_size, pictures) // group.world_size
        self.batch_size = self.local_batch_size * group.world_size
        self.steps_per_epoch = pictures // self.batch_size
        self.total_steps = plan.recipe.total_steps(self.steps_per_epoch)
        self.epochs = plan.recipe.total_epochs(self.steps_per_epoch)
        self.normaliser = Normaliser(plan.entry.preprocessing, device)
        self.history: list[EpochRow] = []
        self.best: ValidatedBest = {"epoch": 0, "top1": None, "loss": None}

    def load_progress(self, checkpoint: Checkpoint) -> None:
        """Loads history and best epoch from a checkpoint, and makes sure that ``best`` holds the epoch it names."""
        self.history = [cast(EpochRow, dict(row)) for row in checkpoint.progress["history"]]
        self.best = cast(ValidatedBest, dict(checkpoint.progress["best"]))
        self.group.broadcast(lambda: self._repair_best(checkpoint))

    def _repair_best(self, checkpoint: Checkpoint) -> None:
        best, epoch = self.plan.out / BEST, self.best["epoch"]
        if epoch == checkpoint.epoch:
            # The last kill may have hit between the two writes of that epoch.
            with contextlib.suppress(BadWeights):
                if read_checkpoint(best).epoch == epoch:
                    return
            write_checkpoint(best, self._content(checkpoint.module_state(), epoch))
            return
        found = read_checkpoint(best)
        if found.epoch != epoch:
            raise BadWeights(
                f"{best} is of epoch {found.epoch}, but the best epoch of this run is {epoch}",
                fix=f"put the right folder back, or train anew into another folder than {self.plan.out}",
            )

    def open_loader(self, dataset: PictureSet, recipe: Recipe | None) -> Loader:
        """Opens pictures on every rank; `recipe` is None where they are not to be augmented."""
        self.report(Progress(stage="loading", epoch=len(self.history), epochs=self.epochs))
        workers = loading_workers(self.plan.workers, len(dataset), trainings=self.group.local_world_size)
        preprocessing, seed = self.plan.entry.preprocessing, self.plan.seed
        return self.group.on_all_ranks(
            lambda: open_loader(dataset, preprocessing, self.device, recipe=recipe, seed=seed, workers=workers)
        )

    def initial_state(self, checkpoint: Checkpoint | None) -> TrainState:
        """Returns the state to train from, of a checkpoint where there is one; seeds torch's generators."""
        state = self.group.on_all_ranks(self._new_state)
        if checkpoint is not None:
            weights, rest = self.group.broadcast(lambda: (checkpoint.module_state(), checkpoint.optimizer_state()))
            state.load_state_dict(weights, rest)
            set_rng_states(self.group.broadcast(checkpoint.rng_state), self.plan.seed, self.device, self.group)
        elif not self.group.is_main:
            torch.manual_seed(seed_for(self.plan.seed, "dropout", self.group.rank))
        state.wrap()
        return state

    def _new_state(self) -> TrainState:
        torch.manual_seed(seed_for(self.plan.seed, "weights"))
        module = build(self.plan.config, stochastic_depth=self.recipe.stochastic_depth)
        if self.plan.initial_state is not None:
            load_weights(module, self.plan.initial_state)
        return TrainState(module, self.recipe, self.device, self.group)

    def train_epoch(self, state: TrainState, loader: Loader) -> EpochRow:
        """Trains the next epoch and returns its figures, those of validation still None.

        Raises:
            CheckFailed: The loss is no longer finite.
        """
        epoch, device = len(self.history), self.device
        first_step = epoch * self.steps_per_epoch
        steps = min(self.steps_per_epoch, self.total_steps - first_step)
        shard = Shard(first=self.group.rank * self.local_batch_size, total=self.batch_size)
        generator = torch.Generator().manual_seed(seed_for(self.plan.seed, "epoch", epoch))
        # A rest smaller than a batch waits for another epoch's order: batch norm's statistics of a few are poor.
        order = torch.randperm(len(loader), generator=generator)[: steps * self.batch_size]
        own = order.view(steps, self.batch_size)[:, shard.first : shard.first + self.local_batch_size].reshape(-1)
        augmentation = BatchAugmentation(self.recipe, self.normaliser, len(self.plan.labels), generator, shard)
        drops = self._plateaus()
        read_every = 1 if device.type == "cpu" else 25  # reading a loss makes a GPU wait
        correct = torch.zeros((), dtype=torch.int64, device=device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        rate = input_seconds = 0.0
        state.train_mode()
        watch = Stopwatch()
        batches = loader.batches(own, self.local_batch_size, epoch=epoch)
        for step in range(steps):
            waiting = Stopwatch()
            pictures, labels = next(batches)
            inputs, targets = augmentation(pictures, labels, mix_seed=seed_for(self.plan.seed, "mix", epoch, step))
            input_seconds += waiting.seconds
            rate = self.recipe.learning_rate_at(first_step + step, self.total_steps, drops=drops)
            loss, logits = state.step(inputs, targets, rate)
            correct += (logits.argmax(1) == labels).sum()
            loss_sum += loss
            if step % read_every == 0 or step == steps - 1:
                self._report_step(step + 1, steps, loss, correct, watch)
        seconds = watch.seconds
        next(batches, None)  # lets the loader end its epoch
        self.group.all_reduce(correct, loss_sum)
        return {
            "epoch": epoch + 1,
            "steps": steps,
            "train_loss": float(loss_sum) / steps / self.group.world_size,
            "train_top1": int(correct) / (steps * self.batch_size),
            "seconds": seconds,
            "images_per_second": steps * self.batch_size / seconds,
            "input_seconds": input_seconds,
            "learning_rate": rate,
            "validation_loss": None,
            "validation_top1": None,
        }

    def _plateaus(self) -> int:
        if self.recipe.schedule != "plateau":
            return 0
        top1s = ((row["validation_top1"], row["train_top1"]) for row in self.history)
        return self.recipe.plateaus([1.0 - (train if held_out is None else held_out) for held_out, train in top1s])

    def _report_step(self, step: int, steps: int, loss: torch.Tensor, correct: torch.Tensor, watch: Stopwatch) -> None:
        """Reads the loss of a step, which must be finite, and reports where the epoch stands."""
        epoch = len(self.history)
        self.group.all_reduce(loss)
        value = float(loss) / self.group.world_size
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", step)
        standing = replace(
            self._progress("training", epoch + 1),
            step=step,
            steps=steps,
            done=epoch * self.steps_per_epoch + step,
            loss=value,
            top1=int(correct) / (step * self.local_batch_size),
            images_per_second=step * self.batch_size / watch.seconds,
        )
        self.report(standing)

    def validate(self, state: TrainState, loader: Loader | None, row: EpochRow) -> None:
        """Adds loss and accuracy on the validation pictures to the figures of an epoch.

        Raises:
            CheckFailed: A loss, a weight or a running statistic is no longer finite.
        """
        state.end_epoch()
        if not math.isfinite(row["train_loss"]):  # of a step whose loss was not read
            raise self._diverged(f"the mean loss is {row['train_loss']}", row["steps"])
        module, loss = state.evaluated, None
        if loader is not None:
            self.report(self._progress("validating", row["epoch"]))
            row["validation_top1"], loss = evaluate(module, loader, self.normaliser, group=self.group)
            row["validation_loss"] = loss
        if not all(bool(value.isfinite().all()) for value in module.state_dict().values()):
            raise self._diverged("a weight is no longer finite", row["steps"])
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}", row["steps"])

    def finish_epoch(self, state: TrainState, row: EpochRow) -> None:
        """Writes ``last``, ``best`` where this epoch is better than all before, and the history."""
        self.history.append(row)
        top1, loss, best = row["validation_top1"], row["validation_loss"], self.best
        better = not best["epoch"] or top1 is None or (top1, -(loss or 0)) > (best["top1"] or 0, -(best["loss"] or 0))
        if better:
            self.best = {"epoch": row["epoch"], "top1": top1, "loss": loss}
        generators = rng_states(self.device, self.group)
        self.group.broadcast(lambda: self._save(state, generators, better=better))
        self.report(self._progress("training", row["epoch"], finished=cast(EpochRow, dict(row))))

    def _save(self, state: TrainState, generators: Mapping[str, torch.Tensor], *, better: bool) -> None:
        content = self._content(state.evaluated.state_dict(), len(self.history))
        resumable = replace(content, optimizer_state=state.state_dict(), rng_state=generators)
        write_checkpoint(self.plan.out / LAST, resumable)
        if better:
            write_checkpoint(self.plan.out / BEST, content)
        files.write_text(self.plan.out / HISTORY, history_csv(self.history))

    def test(self, pictures: PictureSet) -> float:
        """Returns the best checkpoint's accuracy on the test split, and keeps it in that checkpoint.

        An accuracy that is kept there already counts for the same pictures only.
        """
        fingerprint = names_sha256(pictures)
        best, weights = self.group.broadcast(self._read_best)
        known = best.metrics.get("test_top1")
        if known is not None and best.progress.get("test_pictures") == fingerprint:
            return float(known)
        with contextlib.closing(self.open_loader(pictures, None)) as loader:
            self.report(self._progress("testing", best.epoch))
            module = build(self.plan.config)
            load_weights(module, weights)
            top1, _ = evaluate(module.to(self.device), loader, self.normaliser, group=self.group)
        content = self._content(weights, best.epoch)
        tested = replace(
            content,
            metrics={**content.metrics, "test_top1": top1},
            progress={**content.progress, "test_pictures": fingerprint},
        )
        self.group.broadcast(lambda: write_checkpoint(self.plan.out / BEST, tested))
        return top1

    def _read_best(self) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
        best = read_checkpoint(self.plan.out / BEST)
        return best, best.module_state()

    def _content(self, weights: Mapping[str, torch.Tensor], epoch: int) -> CheckpointContent:
        return CheckpointContent(
            name=self.plan.entry.name,
            config=self.plan.config,
            preprocessing=self.plan.entry.preprocessing,
            labels=self.plan.labels,
            module_state=weights,
            recipe=self.recipe.to_json(),
            weights_license=self.plan.weights_license,
            epoch=epoch,
            metrics=dict(self.history[epoch - 1]),
            progress={
                "identity": dict(self.identity),
                "history": self.history,
                "best": self.best,
                "device": str(self.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
        )

    def _progress(self, stage: Stage, epoch: int, finished: EpochRow | None = None) -> Progress:
        done = self.total_steps if stage == "testing" else min(self.total_steps, epoch * self.steps_per_epoch)
        return Progress(
            stage=stage, epoch=epoch, epochs=self.epochs, done=done, total=self.total_steps, finished=finished
        )

    def _diverged(self, what: str, step: int) -> ToolkitError:
        epoch = len(self.history)
        kept = f"the last good checkpoint is {self.plan.out / LAST} (epoch {epoch})"
        diverged = CheckFailed(
            f"the training diverged: {what} in epoch {epoch + 1}, step {step}; "
            f"{kept if epoch else 'no epoch was finished'}",
            fix=f"lower the learning rate (its peak was {self.recipe.learning_rate:g}) or use precision fp32",
        )
        return self.group.as_common(diverged)
