"""The engine cache (PROMISES rows 11 and 12): keys, one build among many processes, damage, trust, pruning."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine_builders import PLAN, Builder, make_key

from runtimes import engines, files
from runtimes.engines import Engine, EngineKey
from runtimes.errors import BadFeeds, BadModel, FileProblem, UsageError
from runtimes.spec import ShapeRange, check_profile

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- keys


CHANGES = {
    "model_sha256": "b" * 64,
    "external_sha256": {"weights.bin": "c" * 64},
    "profile": {"input": ShapeRange((1, 3, 8, 8), (2, 3, 8, 8), (5, 3, 8, 8))},
    "precision": "int8",
    "tf32": True,
    "library": "tensorrt",
    "library_version": "1.7.2",
    "target": "sm89",
    "gpu": "NVIDIA A40",
    "options": {"workspace_bytes": 2048},
}


def test_everything_that_changes_an_engine_changes_its_key() -> None:
    assert set(CHANGES) == {field.name for field in dataclasses.fields(EngineKey)}
    digests = [make_key().digest, *(make_key(**{name: value}).digest for name, value in CHANGES.items())]
    assert len(set(digests)) == len(digests)


def test_a_key_survives_its_record() -> None:
    key = make_key(external_sha256={"weights.bin": "c" * 64})
    again = EngineKey.from_json(json.loads(json.dumps(key.to_json())))
    assert again == key
    assert again.digest == key.digest


# ---- the entry


def test_the_second_request_is_served_from_the_cache(cache: Path) -> None:
    build = Builder()
    first = engines.find_or_build(make_key(), build)
    second = engines.find_or_build(make_key(), build)
    assert (first.cached, second.cached, build.calls) == (False, True, 1)
    assert second == first
    assert second.dimensions == {"input": ("batch", 3, 8, 8)}
    assert second.warnings == ("mind the gap",)
    assert second.path.read_bytes() == PLAN


@pytest.mark.parametrize("change", CHANGES)
def test_a_stale_entry_is_never_used_for_another_key(cache: Path, change: str) -> None:
    build = Builder()
    engines.find_or_build(make_key(), build)
    assert not engines.find_or_build(make_key(**{change: CHANGES[change]}), build).cached
    assert build.calls == 2


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def swap_record(path: Path) -> None:
    """An entry under the name of another key."""
    engine = engines.read_record(path)
    other = replace(engine, key=replace(engine.key, target="sm75"))
    engines.record_path(path).write_text(json.dumps(other.to_json()))


def change_record(path: Path, what: str) -> None:
    record = engines.record_path(path)
    record.write_text(record.read_text().replace('"metadata": {', f'"metadata": {{"mean": "{what}", '))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(PLAN[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "first bit flipped": lambda path: flip(path, 0),
    "middle bit flipped": lambda path: flip(path, len(PLAN) // 2),
    "last bit flipped": lambda path: flip(path, len(PLAN) - 1),
    "record gone": lambda path: engines.record_path(path).unlink(),
    "record cut": lambda path: engines.record_path(path).write_text('{"schema": 1, "key"'),
    "record of another schema": lambda path: engines.record_path(path).write_text('{"schema": 99}'),
    "record of something else": swap_record,
    "record with another mean": lambda path: change_record(path, "in its metadata"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_refused_and_rebuilt(cache: Path, damage: str) -> None:
    build = Builder()
    entry = engines.find_or_build(make_key(), build)
    DAMAGE[damage](entry.path)
    with pytest.raises(BadModel):
        engines.load_engine(entry.path, trust=False)
    again = engines.find_or_build(make_key(), build)
    assert (again.cached, build.calls) == (False, 2)
    assert again.replaced
    assert engines.load_engine(again.path, trust=False)[0] == PLAN
    assert engines.find_or_build(make_key(), build).cached


def test_a_failed_build_leaves_no_entry(cache: Path) -> None:
    def fail() -> tuple[bytes, Engine]:
        raise BadModel("no")

    with pytest.raises(BadModel):
        engines.find_or_build(make_key(), fail)
    assert engines.list_engines() == []
    assert not engines.find_or_build(make_key(), Builder()).cached


# ---- trust


def test_the_cache_folder_is_closed_to_others(cache: Path) -> None:
    entry = engines.find_or_build(make_key(), Builder())
    assert cache.stat().st_mode & 0o777 == 0o700
    assert entry.path.parent.stat().st_mode & 0o777 == 0o700
    entry.path.parent.chmod(0o777)
    engines.load_engine(entry.path, trust=False)
    assert entry.path.parent.stat().st_mode & 0o777 == 0o700


def test_an_engine_from_elsewhere_needs_trust(cache: Path, tmp_path: Path) -> None:
    entry = engines.find_or_build(make_key(), Builder())
    output = engines.copy_engine(entry, tmp_path / "out" / "net.engine")
    with pytest.raises(BadModel, match="was not built by this machine's own cache") as refusal:
        engines.load_engine(output, trust=False)
    assert "--trust-engine" in (refusal.value.fix or "")
    assert refusal.value.exit_code == 2
    plan, record = engines.load_engine(output, trust=True)
    assert plan == PLAN
    assert record == entry


def test_trust_does_not_excuse_damage(cache: Path, tmp_path: Path) -> None:
    output = engines.copy_engine(engines.find_or_build(make_key(), Builder()), tmp_path / "net.engine")
    flip(output, 100)
    with pytest.raises(BadModel, match="damaged or was changed"):
        engines.load_engine(output, trust=True)


def test_a_link_in_the_cache_is_an_engine_from_elsewhere(cache: Path, tmp_path: Path) -> None:
    entry = engines.find_or_build(make_key(), Builder())
    outside = tmp_path / "evil.engine"
    for make in (os.symlink, os.link):
        outside.write_bytes(PLAN)
        entry.path.unlink(missing_ok=True)
        make(outside, entry.path)
        with pytest.raises(BadModel, match="was not built by this machine's own cache"):
            engines.load_engine(entry.path, trust=False)


def test_a_planted_engine_without_a_record_is_refused(cache: Path) -> None:
    folder = engines.find_or_build(make_key(), Builder()).path.parent
    planted = folder / f"{'0' * 64}.engine"
    planted.write_bytes(PLAN)
    with pytest.raises(BadModel, match="has no record"):
        engines.load_engine(planted, trust=False)


@pytest.mark.parametrize("content", [None, b"", "folder"])
def test_what_is_no_engine_file_is_one_clear_error(cache: Path, tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "x.engine"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(bytes(content))
    with pytest.raises(BadModel, match=r"can't read|is empty|not a regular file"):
        engines.load_engine(path, trust=True)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "locked" / "cache"))
    with pytest.raises(FileProblem, match="can't use the cache folder"):
        engines.find_or_build(make_key(), Builder())


# ---- size and pruning


def fill_cache() -> list[engines.Engine]:
    entries = [
        engines.find_or_build(make_key(target=target), Builder(bytes(1000))) for target in ("sm75", "sm80", "sm86")
    ]
    for age, entry in enumerate(entries):  # sm75 is the oldest
        os.utime(entry.path, (1_000_000 + age, 1_000_000 + age))
    return entries


def test_the_cache_lists_its_engines_latest_used_first(cache: Path) -> None:
    fill_cache()
    rows = engines.list_engines()
    assert [(row.key.target, row.size_bytes, row.model, row.problem) for row in rows] == [
        ("sm86", 1000, "net.onnx", ""),
        ("sm80", 1000, "net.onnx", ""),
        ("sm75", 1000, "net.onnx", ""),
    ]
    assert rows[0].key.shapes == "input:1x3x8x8,2x3x8x8,4x3x8x8"
    assert rows[0].key.built_by == "tensorrt-rtx 1.7.1"


def test_use_protects_from_pruning(cache: Path) -> None:
    fill_cache()
    assert engines.find_or_build(make_key(target="sm75"), Builder()).cached
    removed = engines.prune_engines(2000)
    assert [row.key.target for row in removed] == ["sm80"]
    assert [row.key.target for row in engines.list_engines()] == ["sm75", "sm86"]
    assert not list(cache.glob("engines/*sm80*"))


def test_pruning_removes_unusable_entries_first_and_everything_at_zero(cache: Path) -> None:
    entries = fill_cache()
    entries[2].path.write_bytes(b"cut")
    assert [row.path for row in engines.prune_engines(10_000)] == [entries[2].path]
    assert len(engines.prune_engines(0)) == 2
    assert engines.list_engines() == []
    with pytest.raises(UsageError):
        engines.prune_engines(-1)


def test_an_entry_being_built_is_not_pruned(cache: Path) -> None:
    entries = fill_cache()
    with engines._lock(entries[0].path):
        removed = engines.prune_engines(0)
    assert entries[0].path not in [row.path for row in removed]
    assert entries[0].path.exists()


def test_timings_come_back_or_are_forgotten_when_damaged(cache: Path) -> None:
    assert engines.load_timings("gpu") == b""
    engines.store_timings("gpu", b"tactics")
    assert engines.load_timings("gpu") == b"tactics"
    flip(cache / "engines" / "gpu.timings", 40 - 5)
    assert engines.load_timings("gpu") == b""


# ---- profiles


def test_feeds_outside_the_profile_name_expected_and_given() -> None:
    profile = {"x": ShapeRange((1, 3), (2, 3), (4, 3))}
    check_profile({"x": np.zeros((4, 3))}, profile, who="tensorrt")
    with pytest.raises(BadFeeds, match="input 'x' was given shape 5×3, the engine was built for 1×3 up to 4×3"):
        check_profile({"x": np.zeros((5, 3))}, profile, who="tensorrt")


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_a_range_accepts_its_own_shapes_and_nothing_beyond(axes: list[tuple[int, int, int]]) -> None:
    low = tuple(a for a, _, _ in axes)
    usual = tuple(a + b for a, b, _ in axes)
    high = tuple(a + b + c for a, b, c in axes)
    accepted = ShapeRange(low, usual, high)
    assert all(accepted.accepts(shape) for shape in (low, usual, high))
    assert not accepted.accepts((*high, 1))
    for axis in range(len(axes)):
        assert not accepted.accepts((*high[:axis], high[axis] + 1, *high[axis + 1 :]))
        assert not accepted.accepts((*low[:axis], low[axis] - 1, *low[axis + 1 :]))


@pytest.mark.parametrize("shapes", [((2,), (1,), (3,)), ((0,), (1,), (1,)), ((1,), (3,), (2,)), ((1, 1), (1,), (1,))])
def test_a_range_must_be_ordered(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UsageError):
        ShapeRange(*shapes)


# ---- many processes


HOLDER = """
import sys, time
from runtimes import engines
from runtimes.engines import EngineKey
from runtimes.spec import ShapeRange
key = EngineKey.from_json(__import__("json").loads(sys.argv[1]))
def build():
    print("building", flush=True)
    time.sleep(60)
engines.find_or_build(key, build)
"""


def test_a_killed_builder_does_not_block_the_next(cache: Path) -> None:
    key = make_key()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, json.dumps(key.to_json())],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "building\n"
        holder.send_signal(signal.SIGKILL)
    assert not engines.find_or_build(key, Builder()).cached


ONE_OF_EIGHT = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from converters.tensorrt_family import build_engine
from runtimes import files, onnx_gate, trt_shim
model, folder = Path(sys.argv[1]), Path(sys.argv[2])
onnx_gate.check_onnx(model)
trt_shim.load("tensorrt-rtx")
for round in ("cold", "damaged"):
    (folder / f"ready-{round}-{sys.argv[3]}").touch()
    while not (folder / f"go-{round}").exists():
        time.sleep(0.005)
    built = build_engine(model, library="tensorrt-rtx", target="sm86")
    print(json.dumps({"cached": built.cached, "replaced": built.replaced, "sha256": built.sha256}), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel of TensorRT-RTX is installed on Linux in CI")
def test_eight_processes_build_one_engine_and_rebuild_a_damaged_one_once(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'resnet-onnx[tensorrt-rtx]')"
    )
    from support.onnx_models import small_conv

    model = small_conv(tmp_path / "net.onnx")
    meet = tmp_path / "meet"
    meet.mkdir()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_EIGHT, str(model), str(meet), str(number)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(8)
    ]

    def round_of(name: str) -> list[dict[str, object]]:
        deadline = time.monotonic() + 120
        while len(list(meet.glob(f"ready-{name}-*"))) < 8:
            assert time.monotonic() < deadline, "the workers did not come up"
            time.sleep(0.02)
        (meet / f"go-{name}").touch()
        return [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]

    try:
        cold = round_of("cold")
        assert sorted(row["cached"] for row in cold) == [False] + [True] * 7
        assert len({row["sha256"] for row in cold}) == 1
        (entry,) = engines.list_engines()
        flip(entry.path, entry.size_bytes // 2)
        damaged = round_of("damaged")
        assert sorted(row["cached"] for row in damaged) == [False] + [True] * 7
        assert [bool(row["replaced"]) for row in damaged].count(True) == 1
        assert len({row["sha256"] for row in damaged}) == 1
        assert files.sha256_file(entry.path) == damaged[0]["sha256"]
        assert [worker.wait(timeout=60) for worker in workers] == [0] * 8
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            if worker.stdout:
                worker.stdout.close()
