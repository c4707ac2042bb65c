"""What reaches the user: results on stdout, progress and errors on stderr, libraries' chatter nowhere."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pty
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from resnet_onnx.cli.terminal import Terminal
from resnet_onnx.results.commands import Report

Capture = pytest.CaptureFixture[str]
DOCUMENT = Report(path="é", passed=True, findings=[], results=[])
FIELDS = {"schema": 1, "kind": "report", "path": "é", "passed": True, "findings": [], "results": []}


def test_without_a_temporary_folder_a_command_works(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def nowhere() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    terminal = Terminal()
    with terminal.without_chatter():
        chatter()
        terminal.line("done")
    assert capfd.readouterr() == ("done\n", "")
    assert terminal.chatter() == ""


def chatter() -> None:
    """Prints in every way in which libraries print."""
    print("from Python")
    print("from Python, on stderr", file=sys.stderr)
    os.write(1, b"from the system call\n")
    os.write(2, b"from the system call, on stderr\n")
    subprocess.run(["sh", "-c", "echo from a child; echo from a child, on stderr >&2"], check=True)
    libc = ctypes.CDLL(None)
    libc.puts(b"from C")
    libc.fflush(None)
    logging.getLogger("library").warning("from a logger")


def test_chatter_is_caught_and_kept_for_a_fault_report(capfd: Capture) -> None:
    terminal = Terminal(as_json=True)
    with terminal.without_chatter():
        chatter()
        terminal.emit(DOCUMENT)
    out, err = capfd.readouterr()
    assert (json.loads(out), err) == (FIELDS, "")
    for source in ("from Python", "from the system call", "from a child", "from C", "on stderr"):
        assert source in terminal.chatter()


def test_chatter_is_shown_on_stderr_when_asked_for(capfd: Capture) -> None:
    terminal = Terminal(as_json=True, verbose=True)
    with terminal.without_chatter():
        chatter()
        terminal.emit(DOCUMENT)
    out, err = capfd.readouterr()
    assert json.loads(out) == FIELDS
    for source in ("from Python", "from the system call", "from a child", "from C", "on stderr"):
        assert source in err


def test_the_streams_are_given_back_also_after_an_error(capfd: Capture) -> None:
    terminal = Terminal()
    streams = sys.stdout, sys.stderr
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def fail() -> None:
        with terminal.without_chatter():
            print("lost")
            raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert (sys.stdout, sys.stderr) == streams
    print("shown")
    terminal.line("and this")
    os.write(1, b"and that\n")
    assert capfd.readouterr().out.replace("and that\n", "") == "shown\nand this\n"
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened, "file descriptors were left open"


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("quiet", [True, False])
def test_every_kind_of_text_has_its_stream(as_json: bool, quiet: bool, capfd: Capture) -> None:
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with terminal.without_chatter():
        terminal.note("a note")
        terminal.line("a line")
        terminal.table(["name", "count"], [["é", "1"], ["[bold]b[/bold]", "22"]])
        with terminal.progress() as progress:
            progress.advance(progress.add_task("pictures", total=2))
        with terminal.status("working") as status:
            status.update("still working")
        terminal.emit(DOCUMENT)
    out, err = capfd.readouterr()
    told = ["a note", "pictures …", "working …", "still working …"]  # a line as each stage begins
    assert err.splitlines() == ([] if quiet else told)
    if as_json:
        assert out == json.dumps(FIELDS, indent=2, ensure_ascii=False) + "\n"
    else:
        assert [line.rstrip() for line in out.splitlines()] == [
            "a line",
            " name            count",
            " é                   1",
            " [bold]b[/bold]     22",
        ]


def test_quiet_leaves_the_result_alone(capfd: Capture) -> None:
    for quiet in (False, True):
        terminal = Terminal(quiet=quiet)
        with terminal.without_chatter():
            terminal.line("42 img/s")
            terminal.advice("Next: another command")
    assert capfd.readouterr().out == "42 img/s\nNext: another command\n42 img/s\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_is_one_message_even_when_quiet(as_json: bool, capfd: Capture) -> None:
    terminal = Terminal(as_json=as_json, quiet=True)
    with terminal.without_chatter():
        terminal.error("usage", "what was given", "what to do\nand where")
    out, err = capfd.readouterr()
    assert err == "error: what was given\n  what to do\n  and where\n"
    error = {"kind": "usage", "message": "what was given", "fix": "what to do\nand where"}
    document = {"schema": 1, "kind": "error", "error": error}
    assert (json.loads(out) if as_json else out) == (document if as_json else "")


def test_no_table_is_cut_or_wrapped_in_a_file(capfd: Capture) -> None:
    wide = [f"column {index}" for index in range(14)]
    with (terminal := Terminal()).without_chatter():
        terminal.table(wide, [["x" * 12] * 14])
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["x" * 12] * 14


def on_a_terminal(code: str) -> str:
    """Runs `code` with a pseudo terminal of 60 columns for its three streams; returns what it showed."""
    parent, child = pty.openpty()
    subprocess.run(["stty", "columns", "60", "rows", "24"], stdin=child, check=True)
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert process.wait(timeout=30) == 0, shown
    return shown.decode()


def test_on_a_terminal_there_is_progress_and_colour() -> None:
    code = """
        import time
        from resnet_onnx.cli.terminal import Terminal
        terminal = Terminal(quiet=False)
        with terminal.without_chatter():
            print("chatter")
            with terminal.progress() as progress:
                task = progress.add_task("pictures", total=4)
                for _ in range(4):
                    progress.advance(task)
                    time.sleep(0.06)
            with terminal.status("thinking") as status:
                time.sleep(0.2)
                status.update("deciding")
                time.sleep(0.2)
            terminal.table(["name", "value"], [["a", "1"]])
            terminal.line("done")
    """
    shown = on_a_terminal(code)
    assert "pictures" in shown
    assert "/4" in shown
    assert "thinking" in shown
    assert "deciding" in shown
    assert "\x1b[1m" in shown
    assert "done" in shown
    assert "chatter" not in shown
    shown = on_a_terminal(code.replace("quiet=False", "quiet=True"))
    assert "pictures" not in shown
    assert "thinking" not in shown
    assert "done" in shown


def test_a_narrow_terminal_gets_fewer_columns_and_whole_names() -> None:
    shown = on_a_terminal("""
        from resnet_onnx.cli.terminal import Terminal
        terminal = Terminal()
        with terminal.without_chatter():
            columns = ["runtime", "batch", "img/s", "p50 ms", "p90 ms", "p99 ms", "share of peak", "vs torch"]
            terminal.table(columns, [["openvino-with-a-name", "8", "50.1", "159.6", "161.2", "170.1", "82 %", "2.4x"]])
            terminal.table(["runtime", "", "what"], [["ort-cpu", "no", "word " * 30]], left=3)
    """)
    lines = shown.splitlines()
    widths = [len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines if "For want" not in line]
    assert max(widths) <= 60
    assert "openvino-with-a-name" in shown
    assert "2.4x" in shown
    assert "159.6" in shown
    assert "161.2" not in shown
    assert "For want of room without: p90 ms" in shown
    assert shown.count("word") == 30


def test_a_reader_that_goes_away_does_not_stop_the_work(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from resnet_onnx.cli.terminal import Terminal
        from resnet_onnx.results.commands import Report
        terminal = Terminal(as_json=sys.argv[1] == "json")
        with terminal.without_chatter():
            for number in range(20_000):
                terminal.line("a line that is long enough to fill a pipe")
                terminal.note("a note")
            terminal.table(["a"], [["b"]])
            terminal.emit(Report(path="b" * 200_000, passed=True, findings=[], results=[]))
        Path(sys.argv[2]).write_text("the work was done")
        sys.exit(5)
    """
    for form in ("json", "text"):
        done = tmp_path / form
        command = [sys.executable, "-c", textwrap.dedent(code), form, str(done)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            process.stderr.close()
            assert process.wait(timeout=30) == 5
        assert done.read_text() == "the work was done"
