"""The one exception tree of the three packages, and the exit code of each branch.

======================  ====  =====================================================
branch                  exit  meaning
======================  ====  =====================================================
``CheckFailed``            1  a check failed: parity, regression, accuracy gate
``UserError``              2  bad usage or bad input; nothing was changed
``Unavailable``            3  a runtime, hardware or the network is not there
anything else             70  an internal error
======================  ====  =====================================================

A message says what was given and what was expected; ``fix`` says what to do.
"""

from __future__ import annotations


class ToolkitError(Exception):
    """Base of every error that is raised on purpose.

    Args:
        message: What was given and what was expected, in one sentence or two.
        fix: What the user can do about it, or None where nothing can be said.
    """

    kind = "error"
    exit_code = 70
    common = False
    """Whether every process of a command that runs in several raises it; only the first one then reports it."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Keep ``fix`` when an error crosses a process boundary."""
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(cls: type[ToolkitError], message: str, fix: str | None) -> ToolkitError:
    return cls(message, fix=fix)


class CheckFailed(ToolkitError):
    """A check that the user requested came out negative."""

    kind = "check-failed"
    exit_code = 1


class UserError(ToolkitError):
    """Something given by the user can't be used."""

    kind = "bad-input"
    exit_code = 2


class UsageError(UserError):
    """An argument or option is wrong, or two of them contradict each other."""

    kind = "usage"


class BadModel(UserError):
    """A model file is missing, damaged, hostile, or not what it says it is."""

    kind = "bad-model"


class BadWeights(UserError):
    """A weights file can't be read safely or does not fit the architecture."""

    kind = "bad-weights"


class BadData(UserError):
    """A data set is missing, empty, or does not fit the model."""

    kind = "bad-data"


class BadPicture(UserError):
    """One picture can't be decoded or is refused as hostile."""

    kind = "bad-picture"


class BadFeeds(UserError):
    """Arrays handed to a runtime do not have the names, dtypes or shapes it expects."""

    kind = "bad-feeds"


class FileProblem(UserError):
    """A file can't be written or read: permissions, a full disk, a folder in the way."""

    kind = "file"


class Unavailable(ToolkitError):
    """Something outside the program is not there."""

    kind = "unavailable"
    exit_code = 3


class RuntimeUnavailable(Unavailable):
    """A runtime can't run here: library, driver, device or provider is missing."""

    kind = "runtime-unavailable"


class UnsupportedModel(Unavailable):
    """The runtime is there, but can't run this model; the message names the operator or precision."""

    kind = "unsupported-model"


class RunFailed(Unavailable):
    """The runtime opened the model, but a run of it failed inside the library."""

    kind = "run-failed"


class OutOfMemory(RunFailed):
    """A model or batch does not fit into the memory of the machine or device."""

    kind = "out-of-memory"


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether what a library raised or said means that memory is out: few of them have a class of error for it."""
    text = f"{type(error).__name__}: {error}".lower()  # torch.OutOfMemoryError says it by its name
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)


_MEMORY_SIGNS = (
    "allocate memory",  # torch's and ONNX Runtime's CPU allocators
    "bad_alloc",
    "out of memory",  # CUDA in words
    "outofmemory",
    "cuda failure 2:",  # cudaErrorMemoryAllocation, as ONNX Runtime and TensorRT number it
    "cudaerror 2:",
    "alloc_failed",  # cuBLAS and cuDNN
)


class NetworkUnavailable(Unavailable):
    """A download was needed and the network is not there."""

    kind = "network-unavailable"


class RuntimeClosed(RuntimeError):
    """A runtime or prepared run was used after it was closed: a mistake in the calling code."""
