"""Nothing phones home: every command where no network is, with counters of what was tried, and its files watched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtimes.environment import SILENCED, load_library

DRIVER = """
    import fcntl, json, os, socket, struct, sys
    from pathlib import Path

    def counters():
        found = {}
        for name in ("snmp", "snmp6"):
            path = Path("/proc/self/net") / name
            for line in path.read_text().splitlines() if path.exists() else ():
                parts = line.split()
                if name == "snmp6":
                    found[parts[0]] = int(parts[1])
                elif not parts[1].lstrip("-").isdigit():
                    heads = parts
                else:
                    found.update((parts[0] + head, int(value)) for head, value in zip(heads[1:], parts[1:]))
        tried = ("Ip:OutNoRoutes", "Ip6OutNoRoutes", "Tcp:ActiveOpens", "Udp:OutDatagrams", "Udp6OutDatagrams")
        return {name: found.get(name, 0) for name in tried}

    def loopback_up():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING

    if __name__ == "__main__":
        loopback_up()
        lines = json.load(sys.stdin)
        if lines == "call home":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                try:
                    out.sendto(b"hello", ("192.0.2.1", 53))
                except OSError:
                    pass
            codes = []
        else:
            from resnet_onnx.cli.main import main
            codes = []
            for line in lines:
                codes.append(main(line))
                print(line[0], counters(), file=sys.stderr)
        print(json.dumps({"codes": codes, "tried": counters()}), file=sys.stderr)
"""

NEEDS_NO_NETWORK = [
    ["models", "--quiet"],
    ["export", "--model", "cifar-resnet8", "-o", "out/net.onnx", "--quiet"],
    [
        "parity",
        "out/net.onnx",
        "--runtimes",
        "torch,ort-cpu,openvino",
        "--images",
        "2",
        "--junit",
        "out/j.xml",
        "--quiet",
    ],
    ["doctor", "--quiet"],
]
MORE = [
    ["train", "--model", "cifar-resnet8", "--epochs", "1", "--out", "out/run", "--quiet"],
    ["export", "out/run", "-o", "out/trained.onnx", "--quiet"],
    ["evaluate", "out/trained.onnx", "--data", "digits", "--runtime", "ort-cpu,openvino", "--limit", "300", "--quiet"],
    ["predict", "out/trained.onnx", "picture.png", "--plot", "out/answers.png", "--quiet"],
    ["convert", "out/trained.onnx", "--to", "int8", "--calibration", "digits", "-o", "out/int8.onnx", "--quiet"],
    ["build", "out/int8.onnx", "--runtime", "ort-cpu", "-o", "out/built.onnx", "--quiet"],
    ["bench", "out/trained.onnx", "--duration", "0.3", "--save", "out/a.json", "--quiet"],
    ["compare", "out/a.json", "out/a.json", "--quiet"],
    ["report", "out/a.json", "--out", "out/page.html", "--quiet"],
]  # fmt: skip


@pytest.fixture
def without_network() -> list[str]:
    """What starts a program in a network of its own, in which there is only `lo`."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, which starts a program without a network (util-linux)")
    start = ["unshare", "-rn"]
    tried = subprocess.run([*start, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"unshare is not allowed here: {tried.stderr.strip()}")
    return start


def run(start: list[str], lines: object, folder: Path) -> tuple[list[int], dict[str, int], str]:
    """Runs command lines in one process; returns exit codes, what went to the network, and what was said."""
    for name in ("home", "temp", "cache", "work/out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    program = folder / "driver.py"
    program.write_text(textwrap.dedent(DRIVER))
    variables = {k: v for k, v in os.environ.items() if k not in (*SILENCED, "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    variables |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temp")}
    variables |= {"RESNET_ONNX_CACHE": str(folder / "cache")}
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), variables.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*start, sys.executable, str(program)],
        input=json.dumps(lines), capture_output=True, text=True, env=variables, cwd=folder / "work", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr.splitlines()[-1])
    return found["codes"], found["tried"], done.stderr


def test_a_call_home_would_be_seen(without_network: list[str], tmp_path: Path) -> None:
    _, tried, _ = run(without_network, "call home", tmp_path)
    assert sum(tried.values()) > 0


@pytest.mark.parametrize("lines", [NEEDS_NO_NETWORK, pytest.param(NEEDS_NO_NETWORK + MORE, marks=pytest.mark.slow)])
def test_no_command_opens_a_connection_or_leaves_a_file(
    lines: list[list[str]], without_network: list[str], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "work").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "work" / "picture.png")
    codes, tried, said = run(without_network, lines, tmp_path)
    assert not any(codes), said
    assert not any(tried.values()), said
    assert list((tmp_path / "home").iterdir()) == []
    assert [path.name for path in (tmp_path / "temp").iterdir() if not path.name.startswith("torchinductor_")] == []
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["out", "picture.png"]


def test_libraries_are_told_to_be_silent_before_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SILENCED:
        monkeypatch.delenv(name, raising=False)
    load_library("json", runtime="none", package="none")
    assert {name: os.environ[name] for name in SILENCED} == dict(SILENCED)
