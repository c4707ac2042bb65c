"""Writing: a file that is being replaced is never lost, and nothing is left lying about."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes import files
from runtimes.errors import FileProblem

OLD, NEW = b"old" * 1000, b"new" * 400_000


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    for data in (OLD, NEW, b""):
        files.write_bytes(path, data)
        assert path.read_bytes() == data
    files.write_text(path, "Größe ×")
    assert path.read_text(encoding="utf-8") == "Größe ×"
    files.write_json(path, {"µ": [1, None, 0.5]})
    assert path.read_text(encoding="utf-8") == '{\n  "µ": [\n    1,\n    null,\n    0.5\n  ]\n}\n'
    assert names(path.parent) == ["file.bin"]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", OLD)
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "a", {"value": float("nan")})
    assert (tmp_path / "a").read_bytes() == OLD


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "full")])
def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    expected = FileProblem if isinstance(error, OSError) else type(error)

    def write() -> None:
        with files.atomic_file(path) as draft:
            draft.write_bytes(NEW[:1000])
            raise error

    with pytest.raises(expected) as caught:
        write()
    if isinstance(error, OSError):
        assert str(path) in caught.value.message
        assert "free some disk space" in caught.value.fix
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file.bin"]


LIMITED = """
    import resource, sys
    from pathlib import Path
    from runtimes import files
    from runtimes.errors import FileProblem
    import numpy as np, onnx, safetensors.numpy as st
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    path = Path(sys.argv[1])
    def write(draft):
        if sys.argv[2] == "bytes":
            draft.write_bytes(bytes(200_000))
        elif sys.argv[2] == "safetensors":
            st.save_file({"w": np.zeros(50_000, np.float32)}, draft)
        elif sys.argv[2] == "onnx":
            tensor = onnx.numpy_helper.from_array(np.zeros(50_000, np.float32), "w")
            onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])), draft)
    try:
        if sys.argv[3] == "file":
            with files.atomic_file(path) as draft:
                write(draft)
        elif sys.argv[3] == "folder":
            with files.atomic_folder(path) as draft:
                (draft / "small").write_text("new")
                write(draft / "large")
        else:
            files.store_by_content("kind", ".bin", write)
    except FileProblem as error:
        print(error.exit_code, error.message, "|", error.fix)
    else:
        print("written")
"""


@pytest.mark.parametrize("kind", ["file", "folder", "cache"])
@pytest.mark.parametrize("what", ["bytes", "safetensors", "onnx"])
def test_a_write_limit_hit_in_the_middle_of_a_save(
    tmp_path: Path, what: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "small").write_text("old")
    target = tmp_path / ("folder" if kind == "folder" else "file")
    done = python(LIMITED, target, what, kind)
    assert done.stdout.startswith("2 can't write "), (done.stdout, done.stderr)
    assert str(tmp_path / "cache" / "kind" if kind == "cache" else target) in done.stdout
    assert (tmp_path / "file").read_bytes() == OLD
    assert (tmp_path / "folder" / "small").read_text() == "old"
    assert names(tmp_path / "folder") == ["small"]
    assert set(names(tmp_path)) <= {"file", "folder", "cache"}
    if kind == "cache":
        assert names(tmp_path / "cache" / "kind") == []


def _occupied(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


def _below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(OLD)
    return tmp_path / "a" / "b"


def _pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "a")
    return tmp_path / "a"


def _socket(tmp_path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "a"))
    return tmp_path / "a"


IMPOSSIBLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a folder of that name": (_occupied, "a folder is in the way"),
    "a file as the folder": (_below_a_file, "File exists|Not a directory"),
    "a pipe": (_pipe, "a device, pipe or socket is in the way"),
    "a socket": (_socket, "a device, pipe or socket is in the way"),
    "the null device": (lambda _: Path("/dev/null"), "a device, pipe or socket is in the way"),
    "a place that can't exist": (lambda _: Path("/proc/nowhere/file"), "No such file|Permission denied"),
    "a read-only place": (lambda _: Path("/sys/file"), "Permission denied|Operation not permitted|Read-only"),
    "a name too long": (lambda tmp_path: tmp_path / ("n" * 300), "name too long"),
}


@pytest.mark.parametrize("where", IMPOSSIBLE)
def test_what_can_not_be_written_is_one_plain_error(tmp_path: Path, where: str) -> None:
    make, reason = IMPOSSIBLE[where]
    path = make(tmp_path)
    before = names(tmp_path)
    kind = path.lstat().st_mode if where.startswith(("a folder", "a pipe", "a socket", "the null")) else None
    with pytest.raises(FileProblem, match=reason) as caught:
        files.write_bytes(path, NEW)
    assert caught.value.message.startswith(f"can't write {path}: ")
    assert caught.value.fix
    assert names(tmp_path) == before
    if kind is not None:
        assert path.lstat().st_mode == kind
    if where == "a file as the folder":
        assert (tmp_path / "a").read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "closed" / "file"
    path.parent.mkdir()
    path.write_bytes(OLD)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(FileProblem, match="Permission denied"):
            files.write_bytes(path, NEW)
    finally:
        path.parent.chmod(0o700)
    assert (path.read_bytes(), names(path.parent)) == (OLD, ["file"])


@pytest.mark.parametrize("name", ["x" * 255, "模" * 85, "é" * 127, ".hidden", "with space and 'quotes'", "-"])
def test_any_name_that_the_system_takes(tmp_path: Path, name: str) -> None:
    files.write_bytes(tmp_path / name, NEW)
    with files.atomic_folder(tmp_path / "folder" / name) as draft:
        (draft / "a").write_text("1")
    assert names(tmp_path) == sorted(["folder", name])
    assert names(tmp_path / "folder") == [name]


@pytest.mark.parametrize(
    "what", ["file", pytest.param("folder", marks=pytest.mark.skipif(sys.platform != "linux", reason="no exchange"))]
)
def test_a_reader_sees_old_or_new_at_any_moment(tmp_path: Path, what: str) -> None:
    code = """
        import sys
        from pathlib import Path
        from runtimes import files
        path = Path(sys.argv[1])
        for turn in range(300):
            if path.name == "file":
                files.write_bytes(path, bytes([turn % 251]) * 2_000_000)
            else:
                with files.atomic_folder(path) as draft:
                    for part in "abcd":
                        (draft / part).write_bytes(bytes([turn % 251]) * 1000)
            if turn == 0:
                print("ready", flush=True)
    """
    path, seen = tmp_path / what, 0
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        while writer.poll() is None:
            if what == "folder":
                for part in "abcd":
                    assert len((path / part).read_bytes()) == 1000
            else:
                data = path.read_bytes()
                assert (len(data), len(set(data[::1000]))) == (2_000_000, 1)
            seen += 1
    assert writer.returncode == 0
    assert seen > 20


def test_a_killed_writer_leaves_old_or_new_and_is_swept_up_later(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from runtimes import files
        path, folder = Path(sys.argv[1]), Path(sys.argv[2])
        for turn in range(10**9):
            files.write_bytes(path, bytes([turn % 251]) * 300_000)
            with files.atomic_folder(folder) as draft:
                for part in "abc":
                    (draft / part).write_bytes(bytes([turn % 251]) * 50_000)
            if turn == 0:
                print("ready", flush=True)
    """
    path, folder = tmp_path / "file", tmp_path / "folder"
    chance = random.Random(0)
    for _ in range(12):
        command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.08))
            writer.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1, "a mixture of old and new"
        files.settle_folder(folder)
        assert names(folder) == ["a", "b", "c"]
        parts = [(folder / part).read_bytes() for part in "abc"]
        assert parts[0] == parts[1] == parts[2] == parts[0][:1] * 50_000
    left = [item for item in tmp_path.iterdir() if item.name.endswith(".tmp")]
    for item in left:
        os.utime(item, (time.time() - 7200,) * 2)
    mine = tmp_path / f".file.{os.getpid()}.0123abcd.tmp"
    mine.write_bytes(b"")
    os.utime(mine, (time.time() - 7200,) * 2)
    other = tmp_path / ".other.999999999.0123abcd.tmp"
    other.write_bytes(b"")
    os.utime(other, (time.time() - 7200,) * 2)
    files.write_bytes(path, OLD)
    with files.atomic_folder(folder):
        pass
    assert names(tmp_path) == sorted(["file", "folder", mine.name, other.name])


def test_the_drafts_of_the_dead_are_kept_for_an_hour(tmp_path: Path) -> None:
    draft = tmp_path / ".file.999999999.0123abcd.tmp"
    draft.write_bytes(NEW)
    files.write_bytes(tmp_path / "file", OLD)
    assert draft.exists()
    os.utime(draft, (time.time() - 3700,) * 2)
    files.write_bytes(tmp_path / "file", OLD)
    assert not draft.exists()


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    folder = tmp_path / "folder"
    for turn in range(3):
        with files.atomic_folder(folder) as draft:
            (draft / f"only-in-{turn}").write_text(str(turn))
            (draft / "sub").mkdir()
            (draft / "sub" / "deep").write_text(str(turn))
        assert names(folder) == [f"only-in-{turn}", "sub"]
        assert (folder / "sub" / "deep").read_text() == str(turn)

    def fail() -> None:
        with files.atomic_folder(folder) as draft:
            (draft / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(folder) == ["only-in-2", "sub"]
    assert names(tmp_path) == ["folder"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(OLD)
    with (
        pytest.raises(FileProblem, match="a file is in the way"),
        files.atomic_folder(tmp_path / "folder"),
    ):
        pytest.fail("it was entered")
    assert (tmp_path / "folder").read_bytes() == OLD


def test_a_kill_between_two_renames_is_settled(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    parked = tmp_path / ".folder.old"
    parked.mkdir()
    (parked / "a").write_text("old")
    files.settle_folder(folder)
    assert (folder / "a").read_text() == "old"
    parked.mkdir()
    files.settle_folder(folder)
    assert names(tmp_path) == ["folder"]
    assert (folder / "a").read_text() == "old"


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_cache_is_closed_to_others(cache: Path) -> None:
    old = os.umask(0)
    try:
        found = files.cache_dir("engines", "deep")
    finally:
        os.umask(old)
    assert found == cache / "engines" / "deep"
    assert [mode(cache), mode(cache / "engines"), mode(found)] == [0o700] * 3
    (cache / "engines").chmod(0o777)
    files.cache_dir("engines")
    assert mode(cache / "engines") == 0o700


@pytest.mark.parametrize("before", [0o755, 0o777 | stat.S_ISVTX])
def test_a_folder_that_was_there_keeps_its_mode(cache: Path, before: int) -> None:
    cache.mkdir()
    cache.chmod(before)
    assert mode(files.cache_dir("weights")) == 0o700
    assert mode(cache) == before, "the cache may have been put into somebody's working folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the administrator can give a folder away")
def test_a_cache_of_another_user_is_refused(cache: Path) -> None:
    (cache / "weights").mkdir(parents=True)
    os.chown(cache / "weights", 12345, 12345)
    with pytest.raises(FileProblem, match="belongs to another user") as caught:
        files.cache_dir("weights")
    assert "--cache-dir" in (caught.value.fix or "")


def test_a_cache_that_can_not_be_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    with pytest.raises(FileProblem, match="can't use the cache folder") as caught:
        files.cache_dir("weights")
    assert "--cache-dir" in (caught.value.fix or "")
    monkeypatch.setenv("RESNET_ONNX_CACHE", "~no-such-user-here/cache")
    with pytest.raises(FileProblem, match="can't find the cache folder"):
        files.cache_dir("weights")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RESNET_ONNX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FileProblem, match="can't find the cache folder") as caught:
        files.cache_root()
    assert "$RESNET_ONNX_CACHE" in (caught.value.fix or "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    if sys.platform == "linux":
        assert files.cache_root() == Path("/somewhere/resnet-onnx")


def test_a_relative_cache_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNET_ONNX_CACHE", "here")
    path, _ = files.store_by_content("kind", ".bin", lambda draft: draft.write_bytes(NEW) and None)
    monkeypatch.chdir("/")
    assert path.read_bytes() == NEW


def test_what_is_stored_is_found_by_its_content(cache: Path) -> None:
    def write(draft: Path) -> None:
        draft.write_bytes(NEW)

    path, digest = files.store_by_content("weights", ".safetensors", write)
    assert (path, digest) == (cache / "weights" / f"{digest}.safetensors", files.sha256_file(path))
    assert files.store_by_content("weights", ".safetensors", write) == (path, digest)
    assert files.find_by_content("weights", ".safetensors", digest) == path
    assert files.find_by_content("weights", ".onnx", digest) is None
    assert files.find_by_content("other", ".safetensors", digest) is None
    assert names(cache / "weights") == [path.name]


@pytest.mark.parametrize("offset", [0, 599_999, 1_199_999])
def test_a_damaged_entry_is_removed_and_not_found(cache: Path, offset: int) -> None:
    path, digest = files.store_by_content("weights", ".bin", lambda draft: draft.write_bytes(NEW) and None)
    data = bytearray(NEW)
    data[offset] ^= 1
    path.write_bytes(data)
    assert files.find_by_content("weights", ".bin", digest) is None
    assert names(cache / "weights") == []
    assert files.store_by_content("weights", ".bin", lambda draft: draft.write_bytes(NEW) and None)[0] == path
    path.write_bytes(NEW[:-1])
    assert files.find_by_content("weights", ".bin", digest) is None


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "../../../../etc/passwd", "../" * 21 + "x", "G" * 64, "A" * 64, "é" * 64]
)
def test_only_a_hash_finds_anything(cache: Path, digest: str) -> None:
    files.cache_dir("weights")
    assert files.find_by_content("weights", "", digest) is None


def test_a_writer_that_fails_leaves_no_draft(cache: Path) -> None:
    def fail(draft: Path) -> None:
        draft.write_bytes(NEW)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.store_by_content("weights", ".bin", fail)

    def nothing(draft: Path) -> None:
        del draft

    with pytest.raises(FileProblem):
        files.store_by_content("weights", ".bin", nothing)
    assert names(cache / "weights") == []


def test_what_a_killed_writer_leaves_in_the_cache_is_swept_by_the_next_write(cache: Path) -> None:
    code = """
        import os
        from runtimes import files
        def write(draft):
            draft.write_bytes(bytes(100_000))
            os._exit(9)
        files.store_by_content("weights", ".bin", write)
    """
    assert python(code).returncode == 9
    (left,) = (cache / "weights").iterdir()
    an_hour_ago = time.time() - 3700
    os.utime(left, (an_hour_ago, an_hour_ago))
    path, _ = files.store_by_content("weights", ".bin", lambda draft: draft.write_bytes(NEW) and None)
    assert names(cache / "weights") == [path.name]


@given(st.binary(max_size=300))
def test_the_hash_is_that_of_the_bytes(data: bytes) -> None:
    import hashlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        files.write_bytes(path, data)
        assert files.sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_eight_writers_of_one_content(cache: Path) -> None:
    code = """
        import sys
        from runtimes import files
        for turn in range(20):
            path, digest = files.store_by_content("k", ".bin", lambda draft: draft.write_bytes(bytes(100_000)) and None)
            assert files.find_by_content("k", ".bin", digest) == path
        print(digest)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    digests = {writer.communicate(timeout=60)[0].strip() for writer in writers}
    assert len(digests) == 1
    assert names(cache / "k") == [f"{digests.pop()}.bin"]
