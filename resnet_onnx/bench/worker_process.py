"""The parent's side of a worker process: starting it, sending requests, noticing its death, ending it."""

from __future__ import annotations

import contextlib
import json
import pickle
import queue
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, BinaryIO, Self

from runtimes.errors import RunFailed

_POLL_S = 0.5
"""How often a waiting parent looks up, so that Ctrl-C arrives also where a lock can't be interrupted (Windows)."""

_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from resnet_onnx.bench.worker import main; main()"
)


class WorkerDied(RunFailed):
    """The process that measured a row ended by itself or was killed."""


class WorkerProcess:
    """One worker process; use it as a context manager, which kills it at the end.

    A worker holds nothing worth keeping, so it is never requested to end: it is killed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # -P: a module in the current folder must not stand in for a library. The parent's own path is passed on.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a worker process was started without pipes")
        self._requests: Any = self._process.stdin
        self._replies: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._replies), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, method: str, **arguments: Any) -> None:
        """Sends a request without waiting for its answer."""
        # A worker that is gone is noticed when its answer is waited for.
        with contextlib.suppress(OSError, ValueError):
            pickle.dump((method, arguments), self._requests, protocol=pickle.HIGHEST_PROTOCOL)
            self._requests.flush()

    def receive(self) -> Any:
        """Waits for the answer to the oldest request.

        Raises:
            ToolkitError: What the worker raised.
            WorkerDied: The process ended instead of answering.
        """
        while True:
            try:
                answer = self._replies.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            break
        if answer is None:
            self._replies.put(None)  # a further call gets the same answer, and does not wait for ever
            raise self._died()
        kind, value = answer
        if kind == "value":
            return value
        if kind == "error":
            raise value
        raise RuntimeError(f"in the process of {self.name}: {value}")

    def call(self, method: str, **arguments: Any) -> Any:
        """Sends a request and waits for its answer; raises as ``receive``."""
        self.send(method, **arguments)
        return self.receive()

    def _died(self) -> WorkerDied:
        code = self._process.wait()
        if code >= 0:
            return WorkerDied(f"the process that ran {self.name} ended with exit code {code}")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        killed = "; the system does that where memory runs out" if name == "SIGKILL" else ""
        return WorkerDied(f"the process that ran {self.name} was ended by {name}{killed}")

    def close(self) -> None:
        """Kills the process and waits for its end."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        with contextlib.suppress(OSError):
            self._requests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _read(stream: BinaryIO | Any, replies: queue.SimpleQueue[tuple[str, Any] | None]) -> None:
    with stream:
        while True:
            try:
                replies.put(pickle.load(stream))  # from our own worker over a private pipe, never from a file
            except (EOFError, OSError, pickle.UnpicklingError):  # it ended, perhaps in the middle of an answer
                replies.put(None)
                return
            except Exception as error:  # a value whose module can't be imported here
                replies.put(("fault", f"{type(error).__name__}: {error}"))
