"""Keys and builders for the engine cache."""

from __future__ import annotations

from runtimes.engines import Engine, EngineKey
from runtimes.spec import ShapeRange

PLAN = bytes(range(256)) * 40


def make_key(**changes: object) -> EngineKey:
    given = {
        "model_sha256": "a" * 64,
        "profile": {"input": ShapeRange((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))},
        "precision": "fp32",
        "tf32": False,
        "library": "tensorrt-rtx",
        "library_version": "1.7.1",
        "target": "sm86",
        "options": {"workspace_bytes": 1024},
    }
    return EngineKey(**{**given, **changes})


class Builder:
    """Counts how often it was called."""

    def __init__(self, plan: bytes = PLAN) -> None:
        self.calls, self.plan = 0, plan

    def __call__(self) -> tuple[bytes, Engine]:
        self.calls += 1
        engine = Engine(
            key=make_key(),
            seconds=1.5,
            dimensions={"input": ("batch", 3, 8, 8)},
            layers=({"type": "convolution", "precision": "fp32", "count": 20},),
            warnings=("mind the gap",),
            model="net.onnx",
        )
        return self.plan, engine
