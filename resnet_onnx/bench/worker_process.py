"""The parent's side of a worker process: starting it, sending requests, noticing its death, ending it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import psutil

from resnet_onnx.bench.worker import PROTOCOL
from resnet_onnx.version import __version__
from runtimes.errors import RunFailed, UsageError

_PYTHON_FIX = "name the python of an environment that has resnet-onnx, such as venv/bin/python"

_POLL_S = 0.5
"""How often a waiting parent looks up, so that Ctrl-C arrives also where a lock can't be interrupted (Windows)."""

_START = """
import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
import json, sys; sys.path[:] = json.loads(sys.argv[1]) or sys.path
try:
    import resnet_onnx; import resnet_onnx.bench.worker as worker
    hello = {"protocol": getattr(worker, "PROTOCOL", 0), "version": resnet_onnx.__version__}
except ImportError as error:
    hello = {"missing": str(error)}
print(json.dumps(hello), flush=True)
if "missing" not in hello: worker.main()
"""
"""What a worker process executes: it says which protocol it speaks, in words that any version can say and read."""

_ELSEWHERE = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Variables that name this environment's packages, which another Python must not find."""


class WorkerDied(RunFailed):
    """The process that measured a row ended by itself or was killed."""


class WorkerProcess:
    """One worker process; use it as a context manager, which kills it at the end.

    A worker holds nothing worth keeping, so it is never requested to end: it is killed.

    Args:
        name: Of what it runs, for messages.
        python: The interpreter of another environment that has this package; None is this one.
    """

    def __init__(self, name: str, *, python: Path | None = None) -> None:
        self.name = name
        self._python = python
        # This environment's own path is passed on.
        path = sys.path if python is None else []
        variables = None if python is None else {k: v for k, v in os.environ.items() if k not in _ELSEWHERE}
        self._greeted = False
        try:
            # -P: a module in the current folder must not stand in for a library.
            self._process = subprocess.Popen(
                [python or sys.executable, "-P", "-c", _START, json.dumps(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=variables,
            )
        except OSError as error:
            raise UsageError(f"{python} can't be started: {error.strerror or error}", fix=_PYTHON_FIX) from error
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
            UsageError: The process is of another version of the protocol, or can't import this package.
            ToolkitError: What the worker raised.
            WorkerDied: The process ended instead of answering.
        """
        if not self._greeted:
            self._greeted = True
            self._check_hello(self._next())
        return self._value(self._next())

    def _next(self) -> tuple[str, Any] | None:
        while True:
            try:
                return self._replies.get(timeout=_POLL_S)
            except queue.Empty:
                continue

    def _check_hello(self, answer: tuple[str, Any] | None) -> None:
        """Raises ``UsageError`` where the process is of another version of the protocol, or has no such package."""
        hello = self._value(answer)
        where = self._python or sys.executable
        if "missing" in hello:
            raise UsageError(f"{where} can't import this package: {hello['missing']}", fix=_PYTHON_FIX)
        if hello["protocol"] != PROTOCOL:
            raise UsageError(
                f"{where} has resnet-onnx {hello['version']}, which speaks protocol {hello['protocol']} of measuring; "
                f"this is resnet-onnx {__version__} with protocol {PROTOCOL}",
                fix="install the same version of resnet-onnx in both environments",
            )

    def _value(self, answer: tuple[str, Any] | None) -> Any:
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

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Lets the process run for a while, and freezes it afterwards and until the next time.

        Idle threads spin for work: ONNX Runtime's for some 50 ms after a run, torch's for 10. Frozen, they take no core
        from another process, and go on as if nothing had been between.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            self._frozen.resume()
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._frozen.suspend()

    @functools.cached_property
    def _frozen(self) -> psutil.Process:
        """The process, once it was told to end with its parent: a frozen one would not notice that it is gone."""
        self.call("end_with_parent", parent=os.getpid())
        return psutil.Process(self._process.pid)

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
        try:
            replies.put(("value", json.loads(stream.readline())))
        except ValueError:  # it ended before it could say so
            replies.put(None)
            return
        while True:
            try:
                replies.put(pickle.load(stream))  # from our own worker over a private pipe, never from a file
            except (EOFError, OSError, pickle.UnpicklingError):  # it ended, perhaps in the middle of an answer
                replies.put(None)
                return
            except Exception as error:  # a value whose module can't be imported here
                replies.put(("fault", f"{type(error).__name__}: {error}"))
