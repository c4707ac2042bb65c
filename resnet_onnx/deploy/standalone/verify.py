"""Looks whether this bundle still computes and runs here what it did where it was made: python verify.py.

It needs what requirements.txt names and nothing else. Exit code 0: every check passed; 1: one failed; 2: no bundle.
Files, preprocessing, outputs, decisions and labels fail; another library version, another machine and another speed are
notes, unless --min-speed or --p99 is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TURN_S = 0.01
"""Least time of a turn."""
WITHIN = 0.02
"""Half width of the interval of the ratio at which the measurement ends."""
WARM_S = 5.0
"""Most time of a warm-up."""
PATIENCE_S = 60.0
"""How much longer a measurement takes at most that waits for the runs of a p99."""
P99_RUNS = 299
"""Runs that an upper 95 % bound of p99 needs (Wilks 1941)."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
                "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve")  # fmt: skip
"""Those that decide how fast a convolution is, by their names in /proc/cpuinfo."""


class NoBundle(Exception):
    """The folder is not a bundle that can be read."""


class Verification:
    """The checks, in their order; each returns its verdict (pass, fail, note or skipped) and what it found."""

    def __init__(self, folder: Path, asked: argparse.Namespace) -> None:
        self.folder, self.asked = folder, asked
        try:
            self.about = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
            self.proof = json.loads((folder / "proof" / "proof.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise NoBundle(f"{folder} is not a bundle that can be read: {error}") from error
        self.checks: list[dict[str, str]] = []
        self.speed: dict[str, Any] = {"promised": self.about["figures"].get("over_reference")}
        self.machine_differs: list[str] = []

    def run(self) -> dict[str, Any]:
        """Looks at everything; what depends on something that failed is skipped."""
        sound = self._look("files", self.files)
        present = self._look("libraries", self.libraries)
        self._look("machine", self.machine)
        engine = self.about["model"]["form"] == "engine"
        trusted = self._look("engine", self.engine) if engine else True
        why = "" if sound else "the files are not those that were sealed"
        why = why or ("" if present else "a library is missing") or ("" if trusted else "the engine is not opened")
        prepared = self._look("preprocessing", self.preprocessing, skip="" if sound and present else why)
        self._look("labels", self.labels, skip="" if sound else why)
        computed = self._look("outputs", self.outputs, skip=why)
        decided = self._look("decisions", self.decisions, skip=why or ("" if computed else "the outputs differ"))
        same = prepared and computed and decided
        self._look("speed", self.pace, skip=why or ("" if same else "not measured: it computes something else"))
        passed = all(check["verdict"] != "fail" for check in self.checks)
        return {"passed": passed, "checks": self.checks, "speed": self.speed}

    def _look(self, name: str, check: Any, skip: str = "") -> bool:
        """Notes what a check found; returns whether it did not fail."""
        if skip:
            verdict, detail = "skipped", skip
        else:
            try:
                verdict, detail = check()
            except Exception as error:  # whatever a library raises on what it was given: it does not work here
                verdict, detail = "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.checks.append({"name": name, "verdict": verdict, "detail": detail})
        return verdict not in ("fail", "skipped") if name == "engine" else verdict != "fail"

    # ---- what is there ----

    def files(self) -> tuple[str, str]:
        """Compares every file with the seal and with bundle.json."""
        seal = {}
        for line in (self.folder / "bundle.sha256").read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            seal[name] = digest
        recorded = {row["path"]: row["sha256"] for row in self.about["files"]}
        needed = {"bundle.json", "run.py", "engine.py", "picture_tensor.py", "verify.py", "requirements.txt",
                  "proof/proof.json", "proof/gold.npy", "proof/tensors.npz", self.about["model"]["file"]}  # fmt: skip
        problems = [f"{name} is not in the seal" for name in sorted((needed | set(recorded)) - set(seal))]
        for name, digest in sorted(seal.items()):
            path = self.folder / name
            if not path.resolve().is_relative_to(self.folder.resolve()) or path.is_symlink():
                problems.append(f"{name} lies outside of the bundle")
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif (found := sha256(path)) != digest or recorded.get(name, found) != found:
                problems.append(f"{name} is not the file that was written (SHA-256 {found[:12]}…)")
        pin = self.asked.sha256
        if pin and seal.get("bundle.json") != pin.lower():
            problems.append(f"bundle.json has SHA-256 {str(seal.get('bundle.json'))[:12]}…, and {pin[:12]}… was asked")
        return ("fail", "; ".join(problems[:4])) if problems else ("pass", f"{len(seal)} of {len(seal)} hashes")

    def libraries(self) -> tuple[str, str]:
        """Compares the versions of the libraries with those that it was measured with."""
        missing, other = [], []
        for name, version in self.about["packages"].items():
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(f"{name} {version}")
                continue
            if found != version:
                other.append(f"{name} {found} (measured with {version})")
        for module in ("engine", "picture_tensor"):
            try:
                importlib.import_module(module)
            except ImportError as error:
                return "fail", f"{error}; pip install -r requirements.txt"
        if missing or other:
            said = other + [f"{each} is not installed under that name" for each in missing]
            return "note", "; ".join(said)
        return "pass", ", ".join(f"{name} {version}" for name, version in self.about["packages"].items())

    def machine(self) -> tuple[str, str]:
        """Says how this machine differs from the one on which it was measured."""
        cpu = self.about["machine"]["cpu"]
        cores, flags = usable_cores(), cpu_flags()
        lacking = [name for name in cpu.get("instruction_sets", ()) if name not in flags]
        if cores < cpu["usable_cores"]:
            self.machine_differs.append(f"{cores} of the {cpu['usable_cores']} cores")
        if lacking:
            self.machine_differs.append(f"no {', '.join(lacking)}")
        said = list(self.machine_differs)
        if cores > cpu["usable_cores"]:
            said.append(f"{cores} cores, measured with {cpu['usable_cores']}; the settings are for those")
        return ("note", "; ".join(said)) if said else ("pass", f"{cores} cores, the same instruction sets")

    def engine(self) -> tuple[str, str]:
        """Looks at what an engine was made for; it is code, and only opened where it is trusted."""
        made_for = str(self.about["settings"].get("recorded", {}).get("target", ""))
        if self.about["settings"]["device"] != "cpu":
            here = gpu_target()
            if here is None:
                return "fail", f"an engine for a GPU ({made_for}), and this machine has no NVIDIA driver"
            if made_for and here != made_for:
                return "fail", f"an engine of another GPU: made for {made_for}, this one is {here}"
        if not self.asked.trust_engine:
            return "skipped", "an engine is code: --trust-engine opens it"
        return "pass", f"opened because it is trusted{f'; made for {made_for}' if made_for else ''}"

    # ---- what it computes ----

    def preprocessing(self) -> tuple[str, str]:
        """Makes tensors of the proof's pictures and compares them with those that were proven."""
        from picture_tensor import tensor

        how, names = self.about["preprocessing"], self.proof["pictures"]
        if not names:
            return "skipped", "the bundle has no proof pictures"
        stored, values = self._tensors()
        files = [(self.folder / "proof" / name).read_bytes() for name in names]
        found = tensor(files, how, how["dtype"])
        if found.shape == stored.shape and np.array_equal(found, stored):
            return "pass", f"{len(names)} pictures, bit for bit"
        return "fail", self._difference(found, stored, values)

    def _difference(self, found: Any, stored: Any, values: Any) -> str:
        """Says in what tensors differ: shape, order of channels, normalisation, or resize and decoding."""
        how = self.about["preprocessing"]
        if found.shape != stored.shape:
            return f"tensors of shape {list(found.shape[1:])}, proven with {list(stored.shape[1:])}: crop or layout"
        first = how["layout"] == "NCHW"
        found, stored = (a if first else a.transpose(0, 3, 1, 2) for a in (found, stored))
        plain = how["dtype"] == "uint8"
        levels = [np.rint((a.astype(np.float64) - v[:, :1, None]) / (v[:, 1:2, None] - v[:, :1, None]))
                  for a, v in ((found, self._values()), (stored, values))]  # fmt: skip
        if np.array_equal(levels[0], levels[1]) and not plain:
            return (f"mean or std: {how['mean']} and {how['std']} in bundle.json, proven with "
                    f"{self._normalisation(values)}")  # fmt: skip
        if np.array_equal(levels[0][:, ::-1], levels[1]):
            return f"the channels are in the order {how['channels']}, proven with the other (RGB or BGR)"
        apart = np.abs(levels[0] - levels[1])
        return (f"resize or decoding: up to {apart.max():.0f} levels apart in {(apart > 0).mean():.1%} of the values; "
                f"the filter in bundle.json is {how['interpolation']}, to {how['resize']} pixels")  # fmt: skip

    def _values(self) -> Any:
        """Returns what bundle.json makes of the bytes 0 and 1: [channel, 2] in the order of its channels."""
        how = self.about["preprocessing"]
        mean, std = np.asarray(how["mean"]), np.asarray(how["std"])
        table = np.stack([-mean / std, (1 / 255 - mean) / std], axis=1)
        table = np.tile([0.0, 1.0], (3, 1)) if how["dtype"] == "uint8" else table
        return table[::-1] if how["channels"] == "BGR" else table

    @staticmethod
    def _normalisation(values: Any) -> str:
        values = values.astype(np.float64)
        std = 1 / (values[:, 255] - values[:, 0])
        return f"{[round(float(m), 4) for m in -values[:, 0] * std]} and {[round(float(s), 4) for s in std]}"

    def _tensors(self) -> tuple[Any, Any]:
        """Returns the proven tensors, and what each byte of each channel became."""
        with np.load(self.folder / "proof" / "tensors.npz", allow_pickle=False) as stored:
            levels, values = stored["levels"], stored["values"]
        tensors = np.stack([values[channel][levels[:, channel]] for channel in range(3)], axis=1)
        if self.about["preprocessing"]["layout"] == "NHWC":
            tensors = tensors.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(tensors, self.about["preprocessing"]["dtype"]), values

    def outputs(self) -> tuple[str, str]:
        """Compares the scores of the proven tensors with gold's."""
        from run import Classifier

        gold = np.load(self.folder / "proof" / "gold.npy", allow_pickle=False)
        scores = Classifier(self.folder).scores(self._tensors()[0]).astype(np.float64)
        if scores.shape != gold.shape:
            return "fail", f"scores of shape {list(scores.shape)}, gold has {list(gold.shape)}: another network"
        if not np.isfinite(scores).all():
            return "fail", f"NaN or Inf for picture {int(np.argmin(np.isfinite(scores).all(axis=1)))}"
        apart = np.sqrt(((scores - gold) ** 2).mean(axis=1) / (gold**2).mean(axis=1))
        error, worst = float(np.sqrt((apart**2).mean())), int(apart.argmax())
        budget = self.proof["budget"]
        self.scores, self.gold = scores, gold
        said = f"{error:.1e} from gold, budget {budget['relative_rmse']:.1e}, on {len(gold)} proof inputs"
        if not error <= budget["relative_rmse"]:
            return "fail", said
        if not apart[worst] <= budget["picture"]:
            return "fail", f"input {worst} is {apart[worst]:.1e} from gold, allowed are {budget['picture']:.1e}"
        return "pass", said

    def decisions(self) -> tuple[str, str]:
        """Compares the best class of each picture with gold's; a near tie is excused."""
        ours, golds = self.scores.argmax(axis=1), np.asarray(self.proof["decisions"])
        ordered = np.sort(self.gold, axis=1)
        near = ordered[:, -1] - ordered[:, -2] <= self.proof["margin_multiple"] * np.abs(self.scores - self.gold).max(1)
        wrong = np.flatnonzero((ours != golds) & ~near)
        said = f"{int((ours == golds).sum())} of {len(golds)} as gold"
        reference = self.proof.get("reference_decisions")
        if reference is not None:
            agreed = float((ours == np.asarray(reference)).mean())
            said += f", {agreed:.0%} as before its precision was changed ({self.proof['agreement']:.0%} when made)"
        if len(wrong):
            return "fail", f"{said}; input {int(wrong[0])} is class {int(ours[wrong[0]])}, gold {int(golds[wrong[0]])}"
        return "pass", said

    def labels(self) -> tuple[str, str]:
        """Compares the labels with those that were proven."""
        names = self.about["labels"]
        if hashlib.sha256("\n".join(names).encode()).hexdigest() == self.proof["labels_sha256"]:
            return "pass", f"{len(names)} labels"
        for shift in (1, -1):
            moved = [names[(index + shift) % len(names)] for index in self.proof["decisions"]]
            if moved == list(self.proof["labels"]):
                return "fail", f"the labels are shifted by {'one' if shift == 1 else 'minus one'}"
        for index, label in zip(self.proof["decisions"], self.proof["labels"], strict=True):
            if index >= len(names) or names[index] != label:
                named = names[index] if index < len(names) else "missing"
                return "fail", f"label {index} is '{named}', proven with '{label}'"
        return "fail", "the labels are not those that were proven"

    # ---- how fast it is ----

    def pace(self) -> tuple[str, str]:
        """Measures the ratio to the reference in turns, and compares it with the promised one."""
        asked, promised = self.asked, self.speed["promised"]
        if self.about.get("reference") is None or promised is None:
            if asked.min_speed is not None or asked.p99 is not None:
                return "fail", "the bundle promises no speed"
            return "skipped", "the bundle has no reference to be measured against"
        ratios, times, run_s = measure(
            self.folder, asked.seconds, trust=asked.trust_engine, fewest=P99_RUNS if asked.p99 else 0
        )
        logs = [math.log(ratio) for ratio in ratios]
        low, high = median_interval(logs)
        measured = math.exp(statistics.median(logs))
        ratio, ends = measured / promised, (math.exp(low) / promised, math.exp(high) / promised)
        # What was promised was measured too, and its lower end is kept as well as its middle.
        least = (1 - WITHIN) * min(1.0, (self.about["figures"].get("over_reference_ci95") or [promised])[0] / promised)
        p99 = 1e3 * float(np.percentile(times, 99)) if len(times) >= P99_RUNS else None
        self.speed.update(measured=measured, ratio=ratio, ratio_ci95=ends, images_per_second=1 / run_s,
                          latency_ms={"p50": 1e3 * statistics.median(times), "p99": p99})  # fmt: skip
        said = f"{measured:.2f} × the reference, promised {promised:.2f}"
        if ends[1] < least:
            why = f": this machine has {' and '.join(self.machine_differs)}" if self.machine_differs else ""
            said = f"{1 - ratio:.0%} below the promise{why} ({said})"
        problems = []
        if asked.min_speed is not None and ratio < asked.min_speed:
            problems.append(f"{ratio:.2f} of the promise, {asked.min_speed:g} was asked")
        if asked.p99 is not None and (p99 is None or p99 > asked.p99):
            problems.append(f"p99 {'unknown' if p99 is None else f'{p99:.1f} ms'}, {asked.p99:g} ms was asked")
        if problems:
            return "fail", f"{'; '.join(problems)}; {said}"
        return ("note" if ends[1] < least else "pass"), said


def measure(folder: Path, seconds: float, *, trust: bool, fewest: int) -> tuple[list[float], list[float], float]:
    """Runs bundle and reference in turns, each in its process; returns ratios, times of runs, seconds a picture."""
    coin, ratios, times, pictures = random.Random(0), [], [], []
    with Turns(folder, "bundle", trust) as bundle, Turns(folder, "reference", trust) as reference:
        begin = time.monotonic()
        end = begin + seconds
        while True:
            spent: dict[str, list[float]] = {"A": [], "B": []}
            for who in coin.choice(("ABBA", "BAAB")):
                found = (reference if who == "A" else bundle).take()
                spent[who].append(found["picture_s"])
                if who == "B":
                    times += found["times"]
            ratios.append(sum(spent["A"]) / sum(spent["B"]))
            pictures.append(sum(spent["B"]) / 2)
            late = (time.monotonic() > end and len(times) >= fewest) or time.monotonic() > end + PATIENCE_S
            if len(ratios) >= 8 and len(times) >= fewest:
                low, high = median_interval([math.log(ratio) for ratio in ratios])
                # What disturbs a machine lasts for seconds: an interval of less time is narrow, and beside the truth.
                long_enough = len(ratios) >= 20 and time.monotonic() >= begin + seconds / 2
                late = late or (long_enough and high - low <= 2 * WITHIN)
            if late:
                return ratios, times, statistics.median(pictures)


class Turns:
    """A process that takes turns; while it waits it is frozen, since idle threads of a library spin for a while."""

    def __init__(self, folder: Path, side: str, trust: bool) -> None:
        command = [sys.executable, str(HERE / "verify.py"), str(folder), "--turns", side]
        self._process = subprocess.Popen([*command, *(["--trust-engine"] if trust else [])],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

    def __enter__(self) -> Turns:
        try:
            self._answer()  # it is warm
            self._send(getattr(signal, "SIGSTOP", None))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def take(self) -> dict[str, Any]:
        """Takes one turn."""
        self._send(getattr(signal, "SIGCONT", None))
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        found = self._answer()
        self._send(getattr(signal, "SIGSTOP", None))
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that measured ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _send(self, number: Any) -> None:
        if number is not None:
            os.kill(self._process.pid, number)


def take_turns(folder: Path, side: str) -> None:
    """What the process of one side does: opens, warms up, and answers each line with one turn."""
    with contextlib.suppress(OSError, AttributeError):  # Linux: end with the parent, also while frozen
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    from engine import Engine

    about = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    settings, model = about["settings"], about["model"]
    if side == "reference":
        settings = settings | {"streams": 1, "threads": 1, "precision_hint": settings["precision_hint"] and "f32",
                               "spin": settings["spin"] and True}  # fmt: skip
        model, batch = about["reference"] | {"output": about["reference"]["output"]}, about["reference"]["batch"]
        shape, dtype = [batch, *model["input"]["shape"][1:]], model["input"]["dtype"]
        feed = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
        feed = feed if dtype == "uint8" else (feed / 255 - 0.5).astype(dtype)
    else:
        checked = Verification(folder, argparse.Namespace())
        feed, batch = checked._tensors()[0], settings["batch"]
        feed = np.ascontiguousarray(np.resize(feed, (batch, *feed.shape[1:])))
    engine = Engine(str(folder / model["file"]), settings, model)
    runner = Runner(engine, feed, settings["streams"])
    run_s = runner.warm_up()
    gc.disable()  # as bench does while it measures
    print(json.dumps({"run_s": run_s}), flush=True)
    for _ in sys.stdin:
        run_s, times = runner.turn(max(0.0, TURN_S - run_s), discard=1 if run_s < TURN_S else 0)
        print(json.dumps({"picture_s": run_s / batch, "times": times}), flush=True)


class Runner:
    """Runs one feed in all streams at the same time, each in its own thread."""

    def __init__(self, engine: Any, feed: Any, streams: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._engine, self._feed, self._streams = engine, feed, streams
        self._pools = [ThreadPoolExecutor(1) for _ in range(streams)]

    def warm_up(self) -> float:
        """Runs until the times stop falling, or a while; returns the median time of a run, as bench warms up."""
        end, before = time.perf_counter() + WARM_S, math.inf
        while True:
            now = statistics.median(self.turn(0.3, discard=1)[1])
            if abs(now - before) <= 0.05 * before or time.perf_counter() >= end:
                return now
            before = now

    def turn(self, seconds: float, *, discard: int) -> tuple[float, list[float]]:
        """Runs for about so long; returns seconds from one completed run to the next, and the times of runs."""
        end = time.perf_counter() + seconds
        if self._streams == 1:
            parts = [self._one(end, discard)]
        else:
            parts = [each.result() for each in [pool.submit(self._one, end, discard) for pool in self._pools]]
        rate = sum(len(times) / sum(times) for times in parts)
        return 1 / rate, [each for times in parts for each in times]

    def _one(self, end: float, discard: int) -> list[float]:
        run, feed, clock, times = self._engine.run, self._feed, time.perf_counter, []
        for _ in range(discard):
            run(feed)
        while True:
            start = clock()
            run(feed)
            now = clock()
            times.append(now - start)
            if now >= end:
                return times


def median_interval(values: list[float]) -> tuple[float, float]:
    """Returns the 95 % interval of a median by order statistics; the range where there are too few values."""
    ordered, count = sorted(values), len(values)
    reach = 1.96 * math.sqrt(count) / 2
    low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return ordered[max(0, low)], ordered[min(count - 1, high)]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def usable_cores() -> int:
    """Returns how many cores this process may use: its affinity, or a container's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, min(cores, math.ceil(int(quota) / int(period))))
    return cores


def cpu_flags() -> set[str]:
    """Returns those instruction sets of this processor that decide how fast a convolution is."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return set(value.split()) & set(INSTRUCTIONS)
    return set(INSTRUCTIONS)  # the system does not say: nothing is known to be missing


def gpu_target() -> str | None:
    """Returns the compute capability of the first GPU, ``sm89``; None without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    numbers = [ctypes.c_int(), ctypes.c_int()]
    if driver.cuInit(0) or any(
        driver.cuDeviceGetAttribute(ctypes.byref(n), a, 0) for n, a in zip(numbers, (75, 76), strict=True)
    ):
        return None
    return f"sm{numbers[0].value}{numbers[1].value}"


def rows(found: dict[str, Any]) -> Iterator[str]:
    """Yields what was found as lines of a table."""
    shown = {"pass": "pass", "fail": "FAIL", "note": "note", "skipped": "–"}
    width = max(len(check["name"]) for check in found["checks"])
    for check in found["checks"]:
        yield f" {check['name']:{width}}  {shown[check['verdict']]:5} {check['detail']}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE, help="the bundle; this one by default")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--sha256", help="what bundle.json must have")
    parser.add_argument("--min-speed", type=float, help="least share of the promised ratio, such as 0.8")
    parser.add_argument("--p99", type=float, help="most milliseconds of a run of the batch, 99th percentile")
    parser.add_argument("--trust-engine", action="store_true", help="open an engine, which is code")
    parser.add_argument("--seconds", type=float, default=10.0, help="time of the measurement, about")
    parser.add_argument("--turns", choices=("bundle", "reference"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if asked.turns:
        take_turns(asked.folder, asked.turns)
        return 0
    try:
        found = Verification(asked.folder, asked).run()
    except NoBundle as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if asked.json else "\n".join(rows(found)))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
