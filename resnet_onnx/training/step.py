"""One step of the optimisation, and the state that it changes: weights, optimizer, loss scale, moving average."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from resnet_onnx.training.distributed import ProcessGroup
from resnet_onnx.training.freezing import freeze
from resnet_onnx.training.recipes import Recipe
from runtimes.errors import BadWeights, reason


class TrainState:
    """A network in training with its optimizer: frozen layers, precision, moving average and process group applied.

    Raises:
        UsageError: ``recipe.freeze`` names no layer, or all of them.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device, group: ProcessGroup) -> None:
        self.recipe, self.device, self.group = recipe, device, group
        if recipe.sync_batch_norm:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self.layout = torch.channels_last if recipe.layout == "channels-last" else torch.contiguous_format
        self.module = module.to(device).to(memory_format=self.layout)
        self.frozen_norms = freeze(module, recipe.freeze)
        self.optimizer = _optimizer(module, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
        self.average = None if not recipe.ema else MovingAverage(module, recipe.ema)
        self.forward = self.module

    def state_dict(self) -> dict[str, Any]:
        """Returns what ``load_state_dict`` needs beside ``evaluated``'s own weights."""
        state: dict[str, Any] = dict(self.optimizer.state_dict())
        if self.average is not None:
            state["trained_weights"] = self.module.state_dict()
            state["averaged_steps"] = self.average.steps
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, weights: Mapping[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Restores the state of an earlier run: the weights of its ``evaluated`` network, and its ``state_dict``."""
        trained = state.pop("trained_weights", None)
        scaler = state.pop("scaler", None)
        steps = state.pop("averaged_steps", 0)
        if self.average is not None and trained is not None:
            load_weights(self.average.module, weights)
            self.average.steps = steps
        load_weights(self.module, weights if trained is None else trained)
        self.optimizer.load_state_dict(state)
        if scaler:
            self.scaler.load_state_dict(scaler)

    def wrap(self) -> None:
        """Wraps the network for several processes and for ``torch.compile``, once its weights are loaded."""
        self.forward = self.group.data_parallel(self.module)
        if self.recipe.compile == "on":
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    @property
    def evaluated(self) -> nn.Module:
        """The network to validate and to keep: the moving average, where there is one."""
        return self.module if self.average is None else self.average.module

    def train_mode(self) -> None:
        """Puts batch norm into training mode, except where it is frozen."""
        self.forward.train()
        for norm in self.frozen_norms:
            norm.eval()

    def step(self, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes one step of SGD: forward, loss, backward, update.

        Args:
            inputs: float32 [batch, channel, height, width].
            targets: int64 [batch], class indices; or float32 [batch, class], shares of every class.
            rate: The learning rate.

        Returns:
            The loss [] and the logits [batch, class], both without gradient.
        """
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = rate
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not None):
            logits = self.forward(inputs.contiguous(memory_format=self.layout))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.module)
        return loss.detach(), logits.detach()

    def end_epoch(self) -> None:
        """Gives all processes the same statistics of batch norm."""
        self.group.average_batch_norm(self.module)
        if self.average is not None:
            self.group.average_batch_norm(self.average.module)


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if not recipe.decay_norms:
        groups = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


class MovingAverage:
    """An exponential average whose decay is min(decay, (1 + steps) / (10 + steps)), so that it starts quickly.

    It is that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``. torch's ``AveragedModel`` counts its
    steps on the device, and reads the count at every step, which makes a GPU wait.

    Attributes:
        module: The network with averaged parameters; its buffers are those of the last step.
        steps: How many were averaged.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.steps, self._decay = copy.deepcopy(module), 0, decay

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes the weights after a step in."""
        averaged, current = tuple(self.module.parameters()), tuple(module.parameters())
        if self.steps:
            share = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)
        for kept, new in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(new)
        self.steps += 1


def load_weights(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads a state dict into a network; raises ``BadWeights`` where it does not fit."""
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise BadWeights(f"the weights do not fit the network: {reason(error)}") from error
