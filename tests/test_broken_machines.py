"""Machines that lack what every machine has: said as what it is, and never blamed on a picture or a model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from support.bad_models import sound

from resnet_onnx.cli.main import main
from resnet_onnx.data.pictures import MAX_SIDE, decode
from runtimes.errors import BadPicture

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parent.parent
NOBODY = 54_321
"""A user that no system knows."""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(sound(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


# ---- folders and users -----------------------------------------------------------------------------------------------


WITHOUT_TEMP = """
import json, sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]
if __name__ == "__main__":
    from resnet_onnx.cli.main import main
    print(json.dumps([main(line) for line in json.loads(sys.argv[1])]))
"""


def test_without_a_temporary_folder_the_machine_is_named(net: Path, tmp_path: Path) -> None:
    for label in range(3):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / str(label) / "a.jpg")
    data = ["--data", str(tmp_path / "data"), "--class-order", "number", "--quiet"]
    lines = [["parity", str(net), "--runtimes", "ort-cpu", "--quiet"], ["evaluate", str(net), *data]]
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_TEMP)
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(lines)], capture_output=True, text=True, timeout=200, check=False
    )
    codes = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) <= {0, 3}, done.stderr
    assert "damaged" not in done.stderr
    assert done.stderr.count("error: ") == codes.count(3)
    assert done.stderr.count("no folder for temporary files") == codes.count(3)


def as_nobody(*line: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the program as a user without a passwd entry and without a home."""
    strange = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*strange, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("unshare, which makes another user of this one, is not there or not allowed")
    variables = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")}
    variables.pop("RESNET_ONNX_CACHE", None)
    if cache is not None:
        variables["RESNET_ONNX_CACHE"] = str(cache)
    return subprocess.run(
        [*strange, sys.executable, "-m", "resnet_onnx", *line], capture_output=True, text=True, timeout=300, cwd="/",
        env={**variables, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip


def test_doctor_works_for_a_user_without_home_and_passwd_entry() -> None:
    done = as_nobody("doctor", "--json")
    assert done.returncode == 0, done.stderr
    ready = {row["name"]: row["available"] for row in json.loads(done.stdout)["runtimes"]}
    assert ready["ort-cpu"]
    assert ready["torch"]


def test_without_a_home_the_cache_has_to_be_named() -> None:
    done = as_nobody("parity", "cifar-resnet8", "--runtimes", "ort-cpu")
    assert done.returncode == 2, done.stderr
    assert "can't find the cache folder" in done.stderr
    assert "--cache-dir" in done.stderr


@pytest.mark.slow
def test_with_a_cache_a_user_without_home_and_passwd_entry_can_measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = as_nobody("bench", "cifar-resnet8", "--duration", "0.3", "--json", cache=Path(folder))
        assert done.returncode == 0, done.stderr


# ---- disks, pipes, memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/net.onnx"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed: No space left on device"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_a_full_disk_is_not_an_internal_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("runtimes.registry.probe", full)
    assert main(["doctor", "--json"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["error"]["kind"] == "file"
    assert "internal error" not in err
    if error.args[0] == errno.ENOSPC:
        assert "free some disk space" in err


@pytest.mark.parametrize("line", [["--help"], ["bench", "--help"], []])
def test_help_into_a_closed_pipe_says_nothing(line: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "resnet_onnx", *line]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0


WORKERS = """
import resource, sys
import numpy as np
from PIL import Image
from pathlib import Path
from resnet_onnx.data.batches import Batches, start_worker_server
from resnet_onnx.data.datasets import picture_files
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import Unavailable

if __name__ == "__main__":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 60 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pictures = picture_files([Path(sys.argv[1])])
    how = Preprocessing(image_size=8, resize=8, mean=(0, 0, 0), std=(1, 1, 1))
    try:
        start_worker_server()
        with Batches(pictures, how, batch_size=2, workers=2) as batches:
            list(batches)
    except Unavailable as error:
        print(error.message)
"""


def test_a_worker_server_that_can_not_start_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{index}.png")
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "pictures")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "worker process" in done.stdout


# ---- pictures --------------------------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colours: int = 2, interlaced: int = 0) -> bytes:
    """Returns a PNG of which the rows are compressed, with a complete stream, however many there are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colours, 0, 0, interlaced])
    packed = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("missing", [0, 1, 10, 16])
@pytest.mark.parametrize("level", [0, 200])
def test_a_png_whose_stream_ends_early_is_damaged(level: int, missing: int, interlaced: int) -> None:
    if interlaced:  # 16 × 16 in seven passes
        sizes = [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8)]
        lines = [b"\0" + bytes([level]) * 3 * columns for columns, rows in sizes for _ in range(rows)]
    else:
        lines = [b"\0" + bytes([level]) * 48] * 16
    data = png(16, 16, b"".join(lines[: len(lines) - missing]), interlaced=interlaced)
    if missing:
        with pytest.raises(BadPicture, match="damaged or incomplete"):
            decode(data, "a.png")
    else:
        assert (decode(data, "a.png") == level).all()


@pytest.mark.parametrize("shape", [(1, 89_000_000), (89_000_000, 1), (2, MAX_SIDE + 1)])
def test_a_strip_without_end_is_refused_before_it_takes_memory(shape: tuple[int, int]) -> None:
    with pytest.raises(BadPicture, match="on a side"):
        decode(png(*shape, b"\0" * 74), "strip.png")


DECODING = """
import resource, sys
from pathlib import Path
from resnet_onnx.data.pictures import decode
data = Path(sys.argv[1]).read_bytes()
decode(data[:0] + Path(sys.argv[2]).read_bytes(), "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = decode(data, "large")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / pixels.nbytes)
"""


@pytest.mark.parametrize("mode", ["RGB", "I;16", "P"])
def test_decoding_takes_few_times_the_memory_of_the_pixels(mode: str, tmp_path: Path) -> None:
    for name, side in (("large", (40, 200_000)), ("small", (4, 4))):
        if mode == "I;16":
            picture = Image.fromarray(np.full(side[::-1], 40_000, np.uint16))
        else:
            picture = Image.new(mode, side, 7 if mode == "P" else (1, 2, 3))
        picture.save(tmp_path / f"{name}.png")
    done = subprocess.run(
        [sys.executable, "-c", DECODING, str(tmp_path / "large.png"), str(tmp_path / "small.png")],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 5
