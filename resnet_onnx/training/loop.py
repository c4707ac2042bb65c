"""The training loop: set-up, data, resuming, epochs, test.

Every random choice derives from the seed and the epoch (order, augmentation) or from a generator whose state is in
the checkpoint (dropout), and the learning rate from the step; so a run that was killed and resumed on one thread ends
with the same bits as one that never stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from resnet_onnx.results.document import SkippedPicture
from resnet_onnx.training.checkpoint import BEST, LAST
from resnet_onnx.training.device import failures_explained, limited_threads, select_device
from resnet_onnx.training.distributed import SINGLE_PROCESS, ProcessGroup
from resnet_onnx.training.history import EpochRow
from resnet_onnx.training.loaders import loading_workers
from resnet_onnx.training.plan import Progress, TrainingPlan, TrainingResult
from resnet_onnx.training.resume import checkpoint_to_resume, locked_folder, resolve_recipe, run_identity
from resnet_onnx.training.trainer import Trainer
from runtimes.errors import BadData


def train(
    plan: TrainingPlan,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    after_epoch: Callable[[int, nn.Module], Mapping[str, float]] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainingResult:
    """Trains a network of the catalog on a data set; ``out/last`` after each epoch, ``out/best`` by validation.

    Args:
        plan: Decides everything.
        progress: Called at every step.
        after_epoch: Called with the number of an epoch, from 1, and the network, when it is trained and validated. The
            finite figures that it returns join those of the epoch. It chooses nothing and must not train.
        group: The processes that train together. Only rank 0 writes. Processes that torchrun restarted resume.

    Raises:
        BadData: Too few pictures.
        BadPicture: A picture can't be decoded.
        BadWeights: The checkpoint to resume from is damaged, or ``initial_state`` does not fit.
        UsageError: The folder holds another training, or the same one and the plan does not resume; or the recipe does
            not fit the network, the device or the number of processes.
        Unavailable: Another process of the training died.
        FileProblem: The folder can't be written, or another process is training there.
        CheckFailed: The loss is no longer finite. The last good checkpoint is kept.
        OutOfMemory: A step, or the validation, does not fit into memory.
        RuntimeUnavailable: There is no such device; or ``compile`` is on and torch can't compile here.
    """
    device = group.on_all_ranks(lambda: select_device(plan.recipe, plan.entry, plan.device, group))
    with contextlib.ExitStack() as stack:
        stack.enter_context(group.connected(device))
        stack.enter_context(failures_explained(plan.recipe))
        stack.enter_context(limited_threads(plan.threads))
        group.broadcast(lambda: stack.enter_context(locked_folder(plan.out)))

        plan, skipped = _readable_data(plan, group, progress)
        plan = _split_data(plan, group)

        identity = run_identity(plan)
        checkpoint = group.broadcast(lambda: checkpoint_to_resume(plan, identity, group))
        plan = replace(plan, recipe=resolve_recipe(plan.recipe, checkpoint, device))
        trainer = Trainer(plan, identity=identity, device=device, group=group, report=progress)
        if checkpoint is not None:
            trainer.load_progress(checkpoint)

        if len(trainer.history) < trainer.epochs:
            train_loader = stack.enter_context(contextlib.closing(trainer.open_loader(plan.data.train, plan.recipe)))
            validation_loader = None
            if (held_out := plan.data.validation) is not None:
                validation_loader = stack.enter_context(contextlib.closing(trainer.open_loader(held_out, None)))
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            state = trainer.initial_state(checkpoint)
            for epoch in range(len(trainer.history), trainer.epochs):
                row = trainer.train_epoch(state, train_loader)
                trainer.validate(state, validation_loader, row)
                if after_epoch is not None:
                    row = cast(EpochRow, {**row, **after_epoch(epoch + 1, state.evaluated)})
                trainer.finish_epoch(state, row)

        test_top1 = None if plan.data.test is None else trainer.test(plan.data.test)
    history = trainer.history
    return TrainingResult(
        checkpoint=plan.out / BEST,
        last=plan.out / LAST,
        recipe=plan.recipe,
        epochs=history,
        best={"epoch": trainer.best["epoch"], "top1": trainer.best["top1"]},
        test_top1=test_top1,
        images_per_second=sum(row["images_per_second"] * row["seconds"] for row in history)
        / sum(row["seconds"] for row in history),
        resumed_from=None if checkpoint is None else checkpoint.epoch,
        skipped=skipped,
    )


def _readable_data(
    plan: TrainingPlan, group: ProcessGroup, progress: Callable[[Progress], None]
) -> tuple[TrainingPlan, tuple[SkippedPicture, ...]]:
    """Leaves out pictures that can't be decoded, where the plan allows any."""
    if not plan.skip_bad:
        return plan, ()
    progress(Progress(stage="checking", epoch=0, epochs=plan.recipe.epochs))
    workers = loading_workers(plan.workers, len(plan.data.train))
    unreadable = group.broadcast(lambda: plan.data.unreadable(plan.entry.preprocessing, workers))
    data, skipped = group.on_all_ranks(lambda: plan.data.without(unreadable, at_most=plan.skip_bad))
    return replace(plan, data=data), skipped


def _split_data(plan: TrainingPlan, group: ProcessGroup) -> TrainingPlan:
    """Holds pictures out for validation, where the data has none of its own; enough must be left to train on."""
    data = group.on_all_ranks(lambda: plan.data.with_validation(plan.recipe.validation, plan.seed))
    train, least = data.train, 2 * group.world_size
    if len(train) < least:
        raise group.as_common(
            BadData(
                f"{train.name}: {len(train)} of its pictures are left to train on, and batch norm needs at least "
                f"{least}, two a process",
                fix="add pictures" + (", or start fewer processes" if group.world_size > 1 else ""),
            )
        )
    return replace(plan, data=data)
