"""What all documents share: schema and kind, the envelope of a saved result, the machine, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, TypeVar

from msgspec import UNSET, Meta, UnsetType

SCHEMA = 1
"""The version of all kinds that this program writes and reads."""

_LARGEST = 2**63 - 1

Amount = Annotated[float, Meta(ge=0)]
"""A finite number of at least 0."""

Positive = Annotated[float, Meta(gt=0)]
"""A finite number above 0."""

Whole = Annotated[int, Meta(ge=0, le=_LARGEST)]
"""A whole number of at least 0."""

Count = Annotated[int, Meta(ge=1, le=_LARGEST)]
"""A whole number of at least 1."""

Fraction = Annotated[float, Meta(ge=0)]
"""A share; 1 is all. Rounding may carry it beyond."""

T = TypeVar("T")


def known(value: T | UnsetType | None) -> T | None:
    """Returns a field's value; None where it is null or absent."""
    return None if value is UNSET else value


def check_ends(name: str, ends: tuple[float, float] | None) -> None:
    """Raises ``ValueError`` where an interval begins above its end."""
    if ends is not None and not ends[0] <= ends[1]:
        raise ValueError(f"Expected `{name}` to be two numbers, the lower first, got {list(ends)}")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One JSON document of a command: ``schema`` and ``kind``, then the fields in their order.

    A field that is ``UNSET`` is left out; NaN and Infinity become null. Fields without a default have to be there when
    a document is read; what earlier versions did not write has one.
    """

    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """Why something could not be done.

    Attributes:
        kind: Of the error (``runtimes.errors``).
        message: What was given, and what was expected.
    """

    kind: str = ""
    message: str
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class ErrorDocument(Document):
    """What a command that failed prints."""

    kind: ClassVar[str] = "error"

    error: ErrorRecord


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor.

    Attributes:
        usable_cores: Cores that this process may use.
        quota_cores: Cores' worth of time that a container's quota gives it; None without one.
        instruction_sets: Those that matter to speed.
        clock_mhz: At this moment; None where the system does not say.
    """

    model: str
    usable_cores: Count
    quota_cores: Positive | None = None
    instruction_sets: Sequence[str] = ()
    clock_mhz: int | float | None = None


@dataclass(frozen=True, kw_only=True)
class GpuRecord:
    """One GPU, and what its sensors said."""

    device: str = ""
    name: str = ""
    uuid: str = ""
    compute_capability: str = ""
    memory_bytes: int = 0
    multiprocessors: int = 0
    clock_mhz: int | float | None = None
    max_clock_mhz: int | float | None = None
    memory_clock_mhz: int | float | None = None
    power_limit_w: int | float | None = None
    temperature_c: int | float | None = None
    throttled: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of a machine.

    Attributes:
        driver: Its version, or "".
        cuda: The newest that the driver serves, or "".
        reason: Why there are no GPUs, or "".
    """

    driver: str | None = None
    cuda: str | None = None
    reason: str | None = None
    gpus: Sequence[GpuRecord] = ()


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What the machine's cores reach with one number of threads.

    Attributes:
        gflops: Billions of operations per second by precision; one that the library lacks is absent.
        bandwidth_gbs: Billions of bytes per second that a large copy reads and writes.
        measured_at: Seconds since 1970.
        undisturbed: Whether other programs left the cores alone meanwhile.
        measured_with: What reached the peak, by precision: the library and its kernel, or a row of the result.
        arithmetic_gflops: Cores × operations a cycle × highest clock by precision; None where the processor does not
            tell, UNSET in results of earlier versions.
    """

    gflops: Mapping[str, float]
    bandwidth_gbs: float | None = None
    threads: int | None = None
    measured_at: float | None = None
    undisturbed: bool = True
    measured_with: Mapping[str, str] | UnsetType = UNSET
    arithmetic_gflops: Mapping[str, float] | UnsetType | None = UNSET


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine on which a result was made.

    Attributes:
        libraries: Versions by package.
        peaks: By number of threads; of ``bench``.
    """

    cpu: Cpu
    gpu: Gpus | None = None
    memory_bytes: int | None = None
    system: str | None = None
    python: str | None = None
    libraries: Mapping[str, str]
    peaks: Mapping[str, Peaks] | UnsetType = UNSET

    def gpu_names(self) -> str:
        """Returns names and driver of the GPUs, or "none"; not what changes by the minute."""
        names = [gpu.name for gpu in self.gpu.gpus] if self.gpu is not None else []
        driver = self.gpu.driver if self.gpu is not None and names else ""
        return ", ".join([*names, *([f"driver {driver}"] if driver else [])]) or "none"


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """Hashes of what was judged: of the ONNX file, and of the weights that it was made from, with their license."""

    weights_sha256: str | UnsetType | None = UNSET
    weights_license: str | UnsetType = UNSET
    onnx_sha256: str | UnsetType | None = UNSET

    @property
    def sha256(self) -> str | None:
        """That of the file, and of the weights only where there was no file: a file may do anything to them."""
        return known(self.onnx_sha256) or known(self.weights_sha256)


BodyT = TypeVar("BodyT", bound=Document)


@dataclass(frozen=True, kw_only=True)
class Saved(Generic[BodyT]):
    """A result in a file, with what is needed to trust and repeat it; its kind is that of ``result``.

    Attributes:
        made: UTC, ISO 8601.
        tool: The program and its version.
        command: What was typed.
        artifacts: What was judged.
    """

    made: str
    tool: str
    command: Sequence[str]
    environment: Environment
    artifacts: Artifacts
    result: BodyT

    @property
    def kind(self) -> str:
        """The command that wrote it."""
        return self.result.kind


@dataclass(frozen=True, kw_only=True)
class SkippedPicture:
    """A picture that was left out because it can't be decoded."""

    image: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file that something was made from; `path` is None where it was a temporary one."""

    path: str | None
    sha256: str
    size_bytes: int
