"""The document of ``bench``: rows, settings, the model and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Meta, Struct, UnsetType

from resnet_onnx.results.document import (
    Amount,
    Count,
    Document,
    Environment,
    ErrorRecord,
    Positive,
    Whole,
    check_ends,
    known,
)


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """The model that was measured.

    Attributes:
        sha256: Of the ONNX file.
        weights: Where the weights came from.
        inputs: Specs of the inputs, in words.
    """

    name: str
    description: str | None
    precision: str | None = None
    sha256: str | None
    engine: str | None = None
    weights_sha256: str | None
    weights: str | None = None
    weights_license: str | None = None
    inputs: Sequence[str] = ()
    opset: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What was requested.

    Attributes:
        streams: None is as many as each runtime does best with.
        threads: None is left to the runtime: all cores.
        pictures: What was decoded, or None.
        limit_ms: Of the server scenario's 99th percentile.
        cut_off: As a fraction.
        precision_target: Half-width of the 95 % interval of the median, as a fraction of it.
    """

    batches: Sequence[int] = ()
    streams: Sequence[int | None] = ()
    threads: Sequence[int | None] = ()
    scope: str
    includes: Sequence[str] = ()
    pictures: str | None = None
    scenario: str | None = None
    limit_ms: Positive | None = None
    price_per_hour: Positive | None = None
    cut_off: float | None = None
    duration_s: float | None = None
    precision_target: float | None = None
    order_seed: int | None = None


class Latency(Struct, frozen=True, kw_only=True, rename={"p99_9": "p99.9"}):  # a Struct has other names in JSON
    """Percentiles, mean, minimum and maximum of the time of a run, milliseconds; None below the samples they need."""

    p50: Amount | None
    p90: Amount | None
    p95: Amount | None = None
    p99: Amount | None
    p99_9: Amount | None = None
    mean: Amount | None = None
    min: Amount | None = None
    max: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Least and most of a reading."""

    min: int | float
    max: int | float


@dataclass(frozen=True, kw_only=True)
class DisturbanceRecord:
    """What the machine did beside.

    Attributes:
        other_programs_cores: Cores that other programs used.
        stolen_cores: Cores that the hypervisor gave to other machines.
        throttled: Times that the processor lowered its clock for heat.
        pace_us: What a fixed piece of work took before and after the slices, median, microseconds.
        cores: Usable ones.
    """

    other_programs_cores: Amount
    stolen_cores: Amount
    involuntary_switches_per_s: float | None = None
    throttled: int | None = None
    clock_mhz: Ends | None = None
    pace_us: float | None = None
    cores: int | None = None


@dataclass(frozen=True, kw_only=True)
class Utilization:
    """A row beside the machine's limit (``resnet_onnx.bench.roofline``).

    Attributes:
        fraction: Achieved operations per second over the peak of the precision; None where either is unknown. It can
            exceed 1 where a library needs fewer multiplications than the definition has (Winograd's convolution).
        bound: Which limit binds: ``compute`` or ``memory``.
        limit_fraction: Achieved speed over that limit.
        operations_per_byte: Operations of a run over the bytes that it moves at least.
        multiply_adds: Of one picture.
    """

    fraction: Amount | None
    bound: str | None = None
    limit_fraction: Amount | None
    achieved_gflops: Amount | None
    peak_gflops: Amount | None = None
    operations_per_byte: Amount | None = None
    multiply_adds: int | None = None


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How a warm-up went.

    Attributes:
        runs: Untimed runs before the first sample.
        settled: Whether their times stopped changing before the limit.
        run_s: Median time of the last runs; in the offline scenario, of a whole set as it follows from that.
        at_once: Runs that are handed over together, the set of the offline scenario; 1 in the others. Not whole where
            another's harness chose the samples, and the last batch was not full.
    """

    runs: int
    seconds: float
    settled: bool
    run_s: float
    at_once: int | float = 1


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """A layer's time beside its ideal.

    Attributes:
        name: In the runtime's own words.
        operator: Likewise.
        node: The node of the graph whose work it does, or None.
        ms: Mean time in a run.
        ideal_ms: Least time that the machine's peaks allow; 0 for what the graph does not have, None where the work or
            the peaks are unknown.
        bound: What sets the ideal: ``compute``, ``memory`` or None.
        lost_ms: Time beyond the ideal, or None where that is not known.
    """

    name: str
    operator: str
    node: str | None
    ms: float
    ideal_ms: float | None
    bound: str | None
    lost_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Where the time of a run on a GPU goes, medians in milliseconds; None is not known.

    Attributes:
        enqueue_ms: Until the host had handed the work over; the device computes meanwhile. None where that call
            returns only when the run is done.
        compute_ms: By the device's own clock, as the copies.
        enqueue_bound: Whether the host holds the GPU up.
        remedy: What to do about it, or None.
    """

    run_ms: float
    enqueue_ms: float | None
    copy_in_ms: float | None = None
    compute_ms: float | None = None
    copy_out_ms: float | None = None
    enqueue_bound: bool | None
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class GpuReadings:
    """Least and most of what the GPU's sensors said over the rounds."""

    throttled: Sequence[str] = ()
    clock_mhz: Ends | None = None
    memory_clock_mhz: Ends | None = None
    power_w: Ends | None = None
    temperature_c: Ends | None = None


@dataclass(frozen=True, kw_only=True)
class HarnessLatency:
    """Percentiles by the harness, milliseconds."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """What a run of the harness has to keep."""

    min_duration_ms: int | float
    min_query_count: int | UnsetType = UNSET
    samples: int | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class HarnessRecord:
    """What MLPerf's LoadGen said of a row.

    Attributes:
        reason: Why it is not valid, or None.
        target_per_second: Queries a second that its Server asked; None in the other scenarios.
        settings: As they were.
        official: As a submission needs them.
    """

    valid: bool
    reason: str | None
    queries: int | None = None
    samples_per_second: float | None = None
    latency_ms: HarnessLatency = field(default_factory=HarnessLatency)
    scenario: str
    loadgen: str | None = None
    samples: int | None = None
    target_per_second: float | None = None
    settings: HarnessSettings | None = None
    official: HarnessSettings | None = None


@dataclass(frozen=True, kw_only=True)
class EnergyRecord:
    """What the counters of the processor's packages or of the GPU said while a row was measured; all that runs counts.

    Attributes:
        source: ``RAPL`` or ``NVML``.
        power_w: Mean power; None where it is not readable here, as `joules_per_image`.
        joules_per_image: At the delivered rate.
        reason: Why it is not readable here, or None.
    """

    source: str
    power_w: Amount | None
    joules_per_image: Amount | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class ServedRate:
    """One rate of arrivals that was served.

    Attributes:
        queries: Pictures that arrived.
        p50_ms: From arrival to answer; as `p99_ms`.
        confirms: Whether it was served to confirm what had been found.
    """

    queries_per_second: Positive
    queries: Whole
    p50_ms: Amount
    p99_ms: Amount
    confirms: bool


@dataclass(frozen=True, kw_only=True)
class CapacityRecord:
    """The largest rate of single pictures, arriving at random, that was answered within a limit.

    Attributes:
        queries_per_second: 0 where even single pictures are late.
        ci95: A rate at which the limit is kept for certain (or 0), and one at which it is broken for certain, or at
            which the engine is always busy.
        p99_ms: Of the arrivals that confirmed it; None where none did.
        limit_ms: What it may be.
        verdict: ``met``, ``broken`` or ``undecided``, by the confirming arrivals.
        max_batch: Pictures that the server takes together at most.
        max_wait_ms: How long the first of them waits for others at most.
        trials: Every rate that was served, in order.
    """

    queries_per_second: Amount
    ci95: tuple[Amount, Amount]
    p99_ms: Amount | None
    limit_ms: Positive
    verdict: str
    max_batch: Count
    max_wait_ms: Amount
    trials: Sequence[ServedRate] = ()

    def __post_init__(self) -> None:
        check_ends("ci95", self.ci95)


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One runtime at one batch size, number of streams and number of threads.

    Attributes:
        version: Of the library; None where it never opened.
        device: Where it computed; None where it never opened.
        threads: CPU threads that were requested, all streams together; None is all usable cores.
        scenario: ``latency``, ``throughput``, ``offline`` or ``server``; None in results of earlier versions.
        capacity: Of the server scenario; ``images_per_second`` is its rate, and latencies are from arrival to answer.
        samples_at_once: Samples handed over together in the offline scenario.
        delivered_images_per_second: Those of all completed runs over the time that they took; ``images_per_second`` is
            that of an undisturbed run, with one stream. None in results of earlier versions.
        unprofiled: Why there are no layers although they were requested.
        energy: None where it never opened, another's harness or a server measured it, and in earlier versions.
        cost_per_million: What a million pictures cost at the price per hour that was given, or None.
        recorded: Options as the runtime set them.
        placement: How many nodes ran on each provider and device.
        error: Why it was not measured to its end.
        raw_ns: Every sample in nanoseconds, a list per round.
        best: Whether no row has more images per second.
        pareto: Whether no row has at least its images per second in at most its median latency.
    """

    model: str
    runtime: str
    version: str | None
    device: str | None
    precision: str
    batch: Count
    streams: Count
    threads: Count | UnsetType | None = UNSET
    scenario: str | None = None
    samples_at_once: int | None = None
    harness: HarnessRecord | None = None
    capacity: CapacityRecord | None = None
    scope: str
    includes: Sequence[str] = ()
    includes_transfers: bool | None = None
    images_per_second: Amount | None
    images_per_second_ci95: tuple[Positive, Positive] | None
    delivered_images_per_second: Amount | None = None
    latency_ms: Latency
    samples: Whole
    effective_samples: float | None = None
    rounds: int | None = None
    measured_s: float | None = None
    coefficient_of_variation: float | None = None
    stable: bool
    unstable_reason: str | None
    disturbance: DisturbanceRecord
    warm_up: WarmUp | None = None
    roofline: Utilization
    layers: Sequence[LayerRecord] | None = None
    unprofiled: str | None = None
    split: Breakdown | None = None
    gpu: GpuReadings | None = None
    cost_per_million: Amount | None = None
    energy: EnergyRecord | None = None
    recorded: Mapping[str, Any]
    placement: Mapping[str, int] | None = None
    error: ErrorRecord | None
    raw_ns: Sequence[Sequence[Positive]] | None
    best: bool = False
    pareto: bool = False

    def __post_init__(self) -> None:
        check_ends("images_per_second_ci95", self.images_per_second_ci95)

    @property
    def cpu_threads(self) -> int | None:
        """CPU threads that were requested; None is all usable cores, or an earlier version's result."""
        return known(self.threads)

    @property
    def speed(self) -> float:
        """Images per second; 0 where it was not measured."""
        return self.images_per_second or 0.0

    @property
    def loadgen(self) -> str:
        """The scenario of LoadGen's that took the times, or "" where our own rounds did."""
        return self.harness.scenario if self.harness is not None else ""

    @property
    def offline(self) -> bool:
        """Whether all samples were handed over at once."""
        return self.scenario == "offline"


@dataclass(frozen=True, kw_only=True)
class SkippedRow:
    """A row that the cut-off left out, in words."""

    row: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Bench(Document):
    """What ``bench`` measured of one model; printed and saved in the same form.

    Attributes:
        made: UTC, ISO 8601.
        tool: The program and its version.
        command: What was typed.
        notes: What the user should know of how the model was read; an earlier version's result has none.
    """

    kind: ClassVar[str] = "bench"

    made: str
    tool: str
    command: Sequence[str]
    model: BenchModel
    environment: Environment
    settings: BenchSettings
    skipped: Sequence[SkippedRow] = ()
    notes: Sequence[str] | UnsetType = UNSET
    results: Annotated[Sequence[BenchRow], Meta(min_length=1)]
