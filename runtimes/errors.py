"""The one exception tree of the three packages, and the exit code of each branch.

======================  ====  =====================================================
branch                  exit  meaning
======================  ====  =====================================================
``CheckFailed``            1  a check failed: parity, regression, accuracy gate
``UserError``              2  bad usage or bad input; nothing was changed
``Unavailable``            3  a runtime, hardware or the network is not there
anything else             70  an internal error; ``RewritingFailed`` is one that is raised on purpose
======================  ====  =====================================================

A message says what was given and what was expected; ``fix`` says what to do.
"""

from __future__ import annotations

import re


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


_MOST_SAID, _MOST_READ = 300, 20_000

_SOURCE_PLACES = re.compile(
    r"""
    \[ONNXRuntimeError\]\s:\s\d+\s:\s\w+\s:\s
    | (?:Load\smodel\sfrom\s(?:(?!\sfailed:).){0,1000}\sfailed:)
    # file.cc:123 and, behind it, the C++ signature or the bare name of the function
    | (?<!\w)[\w./+~-]{1,300}\.(?:cc|cpp|cu|cuh|h|hpp):\d+:?\s
      (?:(?:[\w:<>~&*,\[\]]+\s)*?[\w:<>~&*,]+\s?\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)(?:\sconst)?:?\s)?
      (?:Assertion\s`[^`]*?'?`?\sfailed:\s)?
    | (?:Caught\sexception:\s)?Exception\sfrom\s\S+:\d+:\s?
    | failed\sat\s\S+:\d+:?\s?
    """,
    re.VERBOSE,
)
"""Where in its own sources a library was, which tells its makers something and a user nothing: ONNX Runtime's status,
paths and signatures, ONNX's assertions, OpenVINO's exceptions."""


def reason(error: BaseException | str, most: int = _MOST_SAID) -> str:
    """Returns what a library says, as one line of about `most` characters, without the places in its sources.

    Libraries say last what was wrong, so that a longer text loses its middle and never its end.
    """
    said = " ".join(str(error).split())[-_MOST_READ:]
    text = " ".join(_SOURCE_PLACES.sub(" ", said).split()) or said
    if not text:
        return type(error).__name__ if isinstance(error, BaseException) else text
    if len(text) <= most:
        return text
    head, tail = text[: most // 3].rpartition(" ")[0], text[-(most - most // 3) :].partition(" ")[2]
    return f"{head or text[: most // 3]} … {tail or text[-(most - most // 3) :]}"


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


class NoKernel(UnsupportedModel):
    """The runtime knows the model's operators, but computes one of them not in the type that the model has."""


class NoTemporaryFolder(Unavailable):
    """The machine has no folder for temporary files."""

    kind = "no-temporary-folder"


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


class RewritingFailed(ToolkitError):
    """A graph that was rewritten here is refused by the gate or by a runtime: a fault of ours, not of the model."""

    kind = "fault"


class RuntimeClosed(RuntimeError):
    """A runtime or prepared run was used after it was closed: a mistake in the calling code."""
