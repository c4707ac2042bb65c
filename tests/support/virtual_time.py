"""A clock for bench that runs only where a test's work says so: what is measured is then the same on any machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from resnet_onnx.bench import clock


class VirtualClock:
    """Stands in for ``perf_counter`` and ``perf_counter_ns`` of ``bench.clock``; starts at 0.

    Each thread has a time of its own, as streams beside each other have. The thread that made the clock waits for the
    others: whenever it reads the clock it finds the latest of all times, and from there the others go on.
    """

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._times: dict[int, int] = {self._owner: 0}
        self._lock = threading.Lock()

    def install(self, setter: Callable[[Any, str, Any], None] = setattr) -> None:
        """Makes it the clock of this process's bench; a test passes ``monkeypatch.setattr``, which undoes it."""
        for name in ("perf_counter", "perf_counter_ns"):
            setter(clock, name, getattr(self, name))

    def sleep(self, seconds: float) -> None:
        """Lets time pass for the calling thread."""
        with self._lock:
            self._times[threading.get_ident()] = self._now() + round(seconds * 1e9)

    def perf_counter_ns(self) -> int:
        """The calling thread's time, nanoseconds."""
        with self._lock:
            if threading.get_ident() == self._owner:
                self._times[self._owner] = max(self._times.values())
            return self._now()

    def perf_counter(self) -> float:
        """The calling thread's time, seconds."""
        return self.perf_counter_ns() / 1e9

    def _now(self) -> int:
        return max(self._times.get(threading.get_ident(), 0), self._times[self._owner])


def waiting_program(fixed_s: float, each_s: float = 0.0) -> Any:
    """A factory for the ``torch`` runtime in a worker process: a run takes a virtual time, and more for each sample."""
    import numpy as np
    import torch

    from runtimes.spec import TensorSpec, TorchProgram

    now = VirtualClock()
    now.install()

    class Waiting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now.sleep(fixed_s + each_s * len(x))
            return x

    dtype, shape = np.dtype(np.float32), ("batch", 1)
    return TorchProgram(
        module=Waiting(), inputs=(TensorSpec("x", dtype, shape),), outputs=(TensorSpec("y", dtype, shape),)
    )
