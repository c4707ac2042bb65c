"""Frozen layers: parameters and statistics that a training does not change."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from runtimes.errors import UsageError


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Turns off the gradients of the parameters that the patterns match.

    A shell pattern matches parameters (``conv1.weight``), or modules (``layer[12]``) with all of their parameters.

    Returns:
        The batch norms whose parameters are all frozen: they must be kept in evaluation mode, so that their statistics
        stay too.

    Raises:
        UsageError: A pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(module.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if any(fnmatch.fnmatchcase(part, pattern) for part in _enclosing(name))]
        if not matching:
            parts = dict.fromkeys(name.partition(".")[0] for name in parameters)
            raise UsageError(
                f"freeze '{pattern}' names no layer of this network", fix=f"its parts are {', '.join(parts)}"
            )
        for name in matching:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError(f"freeze {', '.join(patterns)} leaves nothing to train", fix="leave out at least the head, fc")
    return [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and patterns and not any(p.requires_grad for p in part.parameters())
    ]


def _enclosing(name: str) -> list[str]:
    """Returns a parameter's name and those of the modules around it: ``a.b.weight``, ``a.b``, ``a``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
