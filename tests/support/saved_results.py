"""Saved benchmarks as ``bench --save`` writes them, made from times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_onnx.bench.statistics import median_interval

Times = Sequence[np.ndarray]

SCHEMA_1 = Path(__file__).parent / "schema_1"
"""A result of each kind, as the program wrote it before there were types for it."""


def row(slices: Times, **changes: Any) -> dict[str, Any]:
    """A row as ``bench --save`` writes it, from times in nanoseconds."""
    times = np.concatenate(slices)
    batch = changes.get("batch", 8)
    interval = median_interval(times)
    known = interval.low is not None and interval.high is not None
    return {
        "model": "net", "runtime": "ort-cpu", "version": "1.31.1", "device": "cpu", "precision": "fp32",
        "batch": batch, "streams": 1, "scenario": "latency", "scope": "device", "includes_transfers": False,
        "images_per_second": batch / interval.median * 1e9,
        "images_per_second_ci95": [batch / interval.high * 1e9, batch / interval.low * 1e9] if known else None,
        "latency_ms": {"p50": interval.median / 1e6, "p90": None, "p99": None}, "samples": int(times.size),
        "stable": True, "unstable_reason": None,
        "disturbance": {"other_programs_cores": 0.0, "stolen_cores": 0.0, "cores": 2},
        "roofline": {"fraction": 0.5, "limit_fraction": 0.5, "achieved_gflops": 100.0, "bound": "compute"},
        "recorded": {"threads": 2}, "error": None, "raw_ns": [part.tolist() for part in slices],
        **changes,
    }  # fmt: skip


def document(*rows: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {
        "schema": 1, "kind": "bench", "made": "2026-11-23T20:00:00Z", "tool": "resnet-onnx 0.1.0",
        "command": ["resnet-onnx", "bench", "net"],
        "model": {
            "name": "net", "description": "net · fp32", "precision": "fp32", "sha256": "a" * 64,
            "weights_sha256": "b" * 64, "inputs": ["input: float32[batch, 3, 32, 32]"], **model,
        },
        "environment": {
            "cpu": {"model": "CPU", "usable_cores": 2}, "system": "Linux", "python": "3.12.1",
            "libraries": {"onnxruntime": "1.31.1", "torch": "2.15.0"},
        },
        "settings": {"scope": rows[0]["scope"] if rows else "device"},
        "results": list(rows),
    }  # fmt: skip


def noisy(
    seed: int, *, level_ns: float = 4e6, noise: float = 0.01, memory: float = 0.0, count: int = 320, rounds: int = 8
) -> list[np.ndarray]:
    """Times around a level whose relative noise is AR(1): each deviation keeps `memory` of the one before."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=count) * noise * np.sqrt(1 - memory**2)
    deviation = np.empty(count)
    last = random.normal() * noise
    for index, step in enumerate(steps):
        deviation[index] = last = memory * last + step
    return np.array_split(np.maximum(1.0, np.rint(level_ns * np.exp(deviation))), rounds)


def named(model: str, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A benchmark of a network of its own, with weights of its own."""
    weights = hashlib.sha256(model.encode()).hexdigest()
    rows_of = [{**found, "model": model} for found in rows]
    return document(*rows_of, **{"name": model, "weights_sha256": weights, **changes})
