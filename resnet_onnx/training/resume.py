"""Going on after a stop: the folder of a run, what identifies a training, and the checkpoint that it resumes from."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch

from resnet_onnx.models.configs import config_to_json
from resnet_onnx.training.augmentation import seed_for
from resnet_onnx.training.checkpoint import BEST, LAST, RECORD, Checkpoint, read_checkpoint
from resnet_onnx.training.device import supports_bf16
from resnet_onnx.training.distributed import ProcessGroup
from resnet_onnx.training.plan import TrainingPlan
from resnet_onnx.training.recipes import Recipe
from runtimes import files
from runtimes.errors import BadWeights, FileProblem, UsageError


@contextlib.contextmanager
def locked_folder(out: Path) -> Iterator[None]:
    """Makes the folder of a run and locks it, with what a killed run left behind removed.

    Raises:
        FileProblem: `out` can't be written, or another process is training there.
    """
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
        lock.release()  # `with` has acquired it a second time
        for name in (LAST, BEST):
            files.settle_folder(out / name)
            for stale in out.glob(f".{name}.*.tmp"):
                shutil.rmtree(stale, ignore_errors=True)
        yield


def run_identity(plan: TrainingPlan) -> dict[str, Any]:
    """Returns plain values that tell two trainings apart, beside their recipes, once pictures are held out."""
    start = plan.initial_state
    return {
        "network": plan.entry.name,
        "config": config_to_json(plan.config),
        "preprocessing": plan.entry.preprocessing.to_json(),
        "labels": list(plan.labels),
        "data": plan.data.fingerprint(),
        "seed": plan.seed,
        "initial_weights": "He initialisation" if start is None else _state_sha256(start),
    }


def checkpoint_to_resume(plan: TrainingPlan, identity: Mapping[str, Any], group: ProcessGroup) -> Checkpoint | None:
    """Returns the checkpoint that a training goes on from, or None where it starts; to be called on rank 0.

    Processes that torchrun restarted resume whether or not the plan says so.

    Raises:
        UsageError: The folder holds another training, or the same one and the plan does not resume.
        BadWeights: The checkpoint is damaged, or was not written by a training.
    """
    run = str(plan.out)
    # A restarted process may itself have started what it finds there.
    found = _last_checkpoint(plan, identity, resume=plan.resume or group.was_started(run))
    group.mark_started(run)
    return found


def _last_checkpoint(plan: TrainingPlan, identity: Mapping[str, Any], *, resume: bool) -> Checkpoint | None:
    last = plan.out / LAST
    if not (last / RECORD).exists():
        return None
    if not resume:
        raise UsageError(
            f"{plan.out} holds a training already",
            fix="add --resume to go on with it, or name another folder with --out",
        )
    checkpoint = read_checkpoint(last)
    if not checkpoint.resumable or not {"identity", "history", "best"} <= set(checkpoint.progress):
        raise BadWeights(f"{last} holds weights to use, but no state to resume from", fix="train into another folder")
    requested = plan.recipe.to_json()
    differences = [
        f"recipe {name} was {value!r}, now {requested[name]!r}"
        for name, value in checkpoint.recipe.items()
        if name in requested and name != "source" and requested[name] not in (value, "auto")
    ]
    differences += [
        f"another {name.replace('_', ' ')}"
        + (f" ({value} before, now {identity[name]})" if isinstance(value, str | int) else "")
        for name, value in checkpoint.progress["identity"].items()
        if identity.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"can't resume {plan.out}: {'; '.join(differences)}",
            fix="resume with what it was started with, or train into another folder with --out",
        )
    return checkpoint


def resolve_recipe(recipe: Recipe, checkpoint: Checkpoint | None, device: torch.device) -> Recipe:
    """Returns the recipe with every ``auto`` resolved; a resumed run keeps what it was resolved to before."""
    resolved = {
        "precision": "bf16" if supports_bf16(device) else "fp32",
        "layout": "channels-last",
        "compile": "off",
    }
    if checkpoint is not None:
        resolved |= {name: checkpoint.recipe[name] for name in resolved if name in checkpoint.recipe}
    return recipe.override(**{name: value for name, value in resolved.items() if getattr(recipe, name) == "auto"})


def rng_states(device: torch.device, group: ProcessGroup) -> dict[str, torch.Tensor]:
    """Returns the states of torch's generators on every rank: ``cpu`` and ``cuda`` of rank 0, ``cpu.1`` and so on."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        f"{name}.{rank}" if rank else name: state
        for rank, one in enumerate(group.all_gather(states))
        for name, state in one.items()
    }


def set_rng_states(states: Mapping[str, torch.Tensor], seed: int, device: torch.device, group: ProcessGroup) -> None:
    """Restores this rank's generators from what ``rng_states`` returned; those of a new rank are seeded."""
    suffix = f".{group.rank}" if group.rank else ""
    if f"cpu{suffix}" not in states:  # there were fewer processes before
        torch.manual_seed(seed_for(seed, "dropout", group.rank))
        return
    torch.set_rng_state(states[f"cpu{suffix}"])
    if device.type == "cuda" and f"cuda{suffix}" in states:
        torch.cuda.set_rng_state(states[f"cuda{suffix}"], device)


def _state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
