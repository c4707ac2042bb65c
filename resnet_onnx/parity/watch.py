"""A torch program that shows what its modules compute, under the names of an exported graph's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtimes.spec import ModelSource, TensorSpec, TorchProgram


def watched_program(*, factory: str, arguments: Mapping[str, Any], names: Mapping[str, str]) -> TorchProgram:
    """Builds another factory's program with more outputs: a factory for ``ModelSource``.

    A node keeps the name of the module that it came from; a module called again gets ``_2``, ``_3``. An exported
    convolution holds the batch norm after it, so that the batch norm's output is the node's. What is no module's
    output, such as the sum of two branches, is left out. `names` has the node's name by that of the wanted output.
    """
    import torch

    program: TorchProgram = ModelSource(factory=factory, arguments=arguments).call_factory()
    seen: dict[str, Any] = {}
    calls: dict[str, int] = {}
    folded: dict[int, tuple[str, Any]] = {}  # the tensor too: a freed one's id would come again

    def watch(name: str, module: Any) -> None:
        def hook(_module: Any, given: tuple[Any, ...], result: Any) -> None:
            if not isinstance(result, torch.Tensor):
                return
            calls[name] = calls.get(name, 0) + 1
            key = name if calls[name] == 1 else f"{name}_{calls[name]}"
            seen[key] = result.clone()
            if isinstance(module, torch.nn.Conv2d):
                folded[id(result)] = (key, result)
            elif isinstance(module, torch.nn.BatchNorm2d) and id(given[0]) in folded:
                seen[folded.pop(id(given[0]))[0]] = result.clone()

        module.register_forward_hook(hook)

    for name, module in program.module.named_modules():
        if name and not any(module.children()):
            watch(name, module)

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = program.module

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            for memory in (seen, calls, folded):
                memory.clear()
            result = self.inner(*inputs)
            results = tuple(result) if isinstance(result, tuple | list) else (result,)
            return (*results, *(seen[node] for node in shown.values()))

    with torch.inference_mode():
        blank = [
            torch.from_numpy(np.zeros([d if isinstance(d, int) else 1 for d in s.shape], s.dtype))
            for s in program.inputs
        ]
        program.module(*blank)
    taken = {spec.name for spec in program.outputs}
    shown = {name: node for name, node in names.items() if node in seen and name not in taken}
    extra = tuple(
        TensorSpec(name, np.dtype(str(seen[node].dtype).removeprefix("torch.")), ("batch", *seen[node].shape[1:]))
        for name, node in shown.items()
    )
    return TorchProgram(module=Watched(), inputs=program.inputs, outputs=(*program.outputs, *extra))
