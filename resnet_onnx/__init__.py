"""Take a ResNet from training to the fastest engine that still computes the same function, with the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnet_onnx.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from resnet_onnx.optimization.plan import OptimizePlan
    from resnet_onnx.results.optimize import Optimize

__all__ = ["__version__", "optimize"]


def optimize(
    model: str | PathLike[str],
    plan: OptimizePlan | None = None,
    *,
    weights: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Optimize:
    """Finds the fastest engine that computes a network and keeps the limits: the command ``resnet-onnx optimize``.

    Args:
        model: As the command line's MODEL: a name of the catalog, an ONNX file, a checkpoint.
        plan: What is to be found (``resnet_onnx.optimization.plan.OptimizePlan``); None is the command's defaults.
        weights: ``random``, ``imagenet`` or a file or folder, for a named architecture.
        progress: Told what is being decided, and how long it will still take.

    Returns:
        What ``--json`` prints, typed; its ``answer`` is None where no candidate can be shown to keep the limits.

    Raises:
        ToolkitError: The model or the pictures can't be used, or a runtime that was named can't run here.
    """
    from resnet_onnx.optimization.optimizing import optimize_model
    from resnet_onnx.optimization.plan import OptimizePlan
    from resnet_onnx.workflow import Request, resolve

    chosen = OptimizePlan() if plan is None else plan
    resolved = resolve(Request(model=str(model), weights=weights, seed=chosen.seed))
    return optimize_model(resolved, chosen, progress=progress)
