"""The command line's contract: one JSON document, exit codes, help, the cache, interrupts and broken pipes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import msgspec
import onnx
import psutil
import pytest
from PIL import Image
from support import precision_models
from support.bad_models import assert_one_error, sound
from support.quantised_models import quantised
from support.saved_results import SCHEMA_1

from resnet_onnx.cli.main import COMMANDS, cli, main
from resnet_onnx.models import catalog
from resnet_onnx.results.bench import Bench
from resnet_onnx.results.commands import (
    BuildLowered,
    Cache,
    Doctor,
    Models,
    Recipes,
    Report,
    Train,
)
from resnet_onnx.results.compare import Compare
from resnet_onnx.results.convert import Convert, Export
from resnet_onnx.results.document import Document
from resnet_onnx.results.evaluate import Evaluate, Predict
from resnet_onnx.results.parity import Parity
from resnet_onnx.results.reproduce import Table1
from resnet_onnx.results.writing import encode
from resnet_onnx.version import __version__
from runtimes import errors

Capture = pytest.CaptureFixture[str]

PROGRAM = [sys.executable, "-m", "resnet_onnx"]


def program(*line: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *line], capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contract") / "net.onnx"
    assert main(["export", "--model", "cifar-resnet8", "-o", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with other weights."""
    path = tmp_path_factory.mktemp("contract") / "other.onnx"
    assert main(["export", "--model", "cifar-resnet8", "--seed", "5", "-o", str(path), "--quiet"]) == 0
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A classifier of 8×8 pictures that was not made here."""
    path = tmp_path / "foreign.onnx"
    onnx.save(sound(), path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    return path


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_command_has_an_example_that_parses(command: str, flag: str, capfd: Capture) -> None:
    assert main([command, flag]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for option in ("--json", "--quiet", "--verbose", "--cache-dir"):
        assert option in out
    found = re.search(r"\n  Example: resnet-onnx (.+)\n\Z", out)  # one line, to be copied
    assert found, out
    name, *arguments = shlex.split(found[1])
    assert name == command
    made = cli.get_command(click.Context(cli), command)
    assert made is not None
    made.make_context(command, arguments)  # raises a usage error for an option that is not there


def test_help_lists_every_command_with_what_it_does(capfd: Capture) -> None:
    for line in ([], ["--help"], ["-h"]):
        assert main(line) == 0
        out, err = capfd.readouterr()
        assert err == ""
        listed = re.findall(r"^  (\w+) {2,}(\S.*)$", out, re.MULTILINE)
        assert [name for name, _ in listed] == list(COMMANDS)
        assert all(len(text) > 15 for _, text in listed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_ask_how_a_line_goes_on(shell: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("_RESNET_ONNX_COMPLETE", f"{shell}_complete")
    for words, found in (("resnet-onnx par", "parity"), ("resnet-onnx parity --loc", "--localize")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", words.split()[-1] if shell == "fish" else str(len(words.split()) - 1))
        assert main([]) == 0
        assert found in capfd.readouterr().out


def test_version(capfd: Capture) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capfd.readouterr().out


def test_the_installed_program_is_the_module() -> None:
    script = Path(sys.executable).with_name("resnet-onnx")
    if not script.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([str(script), "models", "nosuch", "--json"], capture_output=True, text=True, check=False)
    again = program("models", "nosuch", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (again.returncode, again.stdout, again.stderr)


# ---- one document ----------------------------------------------------------------------------------------------------


def one_document(text: str) -> dict[str, object]:
    document = json.loads(text)
    assert isinstance(document, dict)
    assert "NaN" not in text
    return document


@pytest.fixture
def labelled(picture: Path) -> Path:
    """A folder of two classes, a, b, and a file with the labels of the foreign model beside it."""
    (picture.parent / "l").write_text("a\nb\nc\nd\ne\n")
    for name in "ab":
        (picture.parent / "set" / name).mkdir(parents=True)
        (picture.parent / "set" / name / "1.png").write_bytes(picture.read_bytes())
    return picture.parent / "set"


LINES: dict[str, tuple[type[Document], str, set[str]]] = {
    "models": (Models, "models", {"models"}),
    "doctor": (Doctor, "doctor", {"runtimes"}),
    "doctor --cache": (Cache, "doctor --cache", {"kinds"}),
    "train": (
        Train, "train --model cifar-resnet8 --epochs 1 --set steps=1 --out {folder}/run", {"checkpoint", "epochs"},
    ),
    "train --list-recipes": (Recipes, "train --list-recipes", {"recipes"}),
    "export": (
        Export, "export --model cifar-resnet8 -o {folder}/new.onnx", {"path", "sha256", "precision", "verified"},
    ),
    "export --precision": (
        Export, "export --model cifar-resnet8 -o {folder}/half.onnx --precision fp16", {"conversion"},
    ),
    "convert": (Convert, "convert {exported} --to bf16 -o {folder}/c.onnx", {"path", "precision", "agreement"}),
    "build": (BuildLowered, "build {int8} --runtime ort-cpu", {"path", "key", "seconds", "cached"}),
    "parity": (Parity, "parity {exported} --runtimes torch,ort-cpu --images 2 --localize", {"passed", "results"}),
    "evaluate": (
        Evaluate, "evaluate {foreign} --data {labelled} --labels {labels}",
        {"top1", "top5", "images", "images_per_second"},
    ),
    "predict": (Predict, "predict {foreign} {picture}", {"predictions"}),
    "bench": (Bench, "bench {exported} --runtime ort-cpu --batch 1 --duration 0.2", {"results"}),
    "compare": (Compare, "compare {saved} {saved}", {"rows", "paired"}),
    "report": (Report, "report {saved} --out {folder}/page.html", {"path"}),
    "reproduce table1": (Table1, "reproduce table1", {"rows", "verdict", "plot"}),
}  # fmt: skip
"""The type of each command's document, a command line, and fields that other programs read."""


@pytest.mark.parametrize("name", LINES)
def test_every_result_is_one_document(
    name: str, exported: Path, foreign: Path, labelled: Path, picture: Path, capfd: Capture
) -> None:
    form, line, fields = LINES[name]
    folder = picture.parent
    if "{int8}" in line:
        quantised(precision_models.residual(folder / "net.onnx"), folder)
    places = {
        "folder": folder, "exported": exported, "foreign": foreign, "labelled": labelled, "labels": folder / "l",
        "picture": picture, "saved": SCHEMA_1 / "bench.json", "int8": folder / "net-int8.onnx",
    }  # fmt: skip
    assert main([*shlex.split(line.format(**places)), "--json", "--quiet"]) == 0, capfd.readouterr().err
    out, err = capfd.readouterr()
    assert err == ""
    found = one_document(out)
    assert set(found) >= fields
    assert list(found)[:2] == ["schema", "kind"]
    assert (found["schema"], found["kind"]) == (1, line.split()[0])
    again = encode(msgspec.json.decode(out, type=form))
    assert one_document(again.decode()) == found, "the type has every field"


def test_one_document_from_a_real_process(tmp_path: Path) -> None:
    line = ["export", "--model", "cifar-resnet8", "-o", str(tmp_path / "net.onnx"), "--json"]
    done = program(*line, env={**os.environ, "PYTHONWARNINGS": "always"})
    assert done.returncode == 0, done.stderr
    assert one_document(done.stdout)["path"] == str(tmp_path / "net.onnx")
    note = "cifar-resnet8: random weights: good for throughput and parity, not for predictions"
    stages = ["preparing the network …", "exporting and verifying cifar-resnet8 …"]
    assert [line for line in done.stderr.splitlines() if not re.search(r" … \d+:\d\d$", line)] == [*stages, note]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.manifest.json"]


def test_a_library_that_prints_in_the_middle_of_a_command(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    original = catalog.names

    def noisy() -> list[str]:
        print("noise")
        print("noise", file=sys.stderr)
        os.write(1, b"noise\n")
        os.write(2, b"noise\n")
        return original()

    monkeypatch.setattr(catalog, "names", noisy)
    assert main(["models", "--json"]) == 0
    out, err = capfd.readouterr()
    assert "noise" not in err
    assert len(one_document(out)["models"]) == len(original())  # type: ignore[arg-type]
    assert main(["models", "--json", "--verbose"]) == 0
    out, err = capfd.readouterr()
    one_document(out)
    assert err.count("noise") == 4


def test_quiet_says_only_the_result(foreign: Path, picture: Path, capfd: Capture) -> None:
    assert main(["predict", str(foreign), str(picture)]) == 0
    loud = capfd.readouterr()
    assert main(["predict", str(foreign), str(picture), "--quiet"]) == 0
    quiet = capfd.readouterr()
    assert "ImageNet's mean and std are assumed" in loud.err
    assert (quiet.out, quiet.err) == (loud.out, "")
    assert main(["predict", str(foreign), "nowhere.png", "--quiet"]) == 2
    assert capfd.readouterr().err.startswith("error: nowhere.png")


# ---- exit codes ------------------------------------------------------------------------------------------------------


def test_0_done_and_1_a_check_that_failed(exported: Path, other: Path, capfd: Capture) -> None:
    line = ["parity", str(exported), "--runtimes", "ort-cpu", "--images", "2", "--json"]
    assert main(line) == 0
    assert one_document(capfd.readouterr().out)["passed"] is True
    assert main([*line, "--gold", str(other)]) == 1
    assert one_document(capfd.readouterr().out)["passed"] is False


def test_3_a_runtime_that_is_not_here_and_nothing_is_done(tmp_path: Path, capfd: Capture) -> None:
    missing = [name for name in ("tensorrt", "ort-cuda") if not _available(name)]
    if not missing:
        pytest.skip("every runtime is available here")
    for line in (
        ["parity", "cifar-resnet8", "--runtimes", f"ort-cpu,{missing[0]}", "--save", str(tmp_path / "r.json")],
        ["bench", "cifar-resnet8", "--runtime", missing[0], "--save", str(tmp_path / "r.json")],
        # Order of checks: usage, runtime, model.
        ["predict", "nowhere.onnx", "nowhere.png", "--runtime", missing[0]],
        ["evaluate", "nowhere.onnx", "--data", "nowhere", "--runtime", missing[0]],
        ["parity", "nowhere.onnx", "--runtimes", missing[0]],
    ):
        assert main([*line, "--json"]) == 3
        error = one_document(capfd.readouterr().out)["error"]
        assert isinstance(error, dict)
        assert error["kind"] == "runtime-unavailable"
        assert missing[0] in error["message"]
        assert error["fix"]
    assert not (tmp_path / "r.json").exists()
    assert main(["parity", "nowhere.onnx", "--runtimes", f"{missing[0]},nosuch"]) == 2, "usage comes first"


def _available(name: str) -> bool:
    from runtimes import registry

    return registry.probe(name).available


@pytest.mark.parametrize("as_json", [True, False])
def test_70_a_fault_of_ours_is_written_down(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def broken() -> list[str]:
        print("the last words of a library")
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(catalog, "names", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["models", *(["--json"] if as_json else [])]) == 70
    out, err = capfd.readouterr()
    (file,) = tmp_path.iterdir()
    assert err == (
        "error: internal error: ZeroDivisionError: first line second line\n"
        f"  please report it with {file}\n"
    )  # fmt: skip
    text = file.read_text()
    for expected in (
        f"resnet-onnx {__version__}: ",
        "Traceback (most recent call last)",
        "in broken",
        "ZeroDivisionError: first line",
        "the last words of a library",
    ):
        assert expected in text
    assert file.stat().st_mode & 0o077 == 0, "it may hold paths and is its owner's alone"
    if as_json:
        error = one_document(out)["error"]
        assert isinstance(error, dict)
        assert (error["kind"], error["fix"]) == ("fault", f"please report it with {file}")
    else:
        assert out == ""


def test_70_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError

    def full(**options: str) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resnet_onnx.cli.main.tempfile.mkstemp", full)
    monkeypatch.setattr(catalog, "names", broken)
    assert main(["models"]) == 70
    err = capfd.readouterr().err
    assert err.startswith("error: internal error: ZeroDivisionError")
    assert "could not be written (No space left on device)" in err


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (errors.CheckFailed("x"), 1, "check-failed"),
        (errors.UsageError("x"), 2, "usage"),
        (errors.BadModel("x"), 2, "bad-model"),
        (errors.BadWeights("x"), 2, "bad-weights"),
        (errors.BadData("x"), 2, "bad-data"),
        (errors.BadPicture("x"), 2, "bad-picture"),
        (errors.BadFeeds("x"), 2, "bad-feeds"),
        (errors.FileProblem("x"), 2, "file"),
        (PermissionError(13, "Permission denied", "x"), 2, "file"),
        (OSError(28, "No space left on device"), 2, "file"),
        (errors.RuntimeUnavailable("x"), 3, "runtime-unavailable"),
        (errors.UnsupportedModel("x"), 3, "unsupported-model"),
        (errors.NoTemporaryFolder("x"), 3, "no-temporary-folder"),
        (errors.RunFailed("x"), 3, "run-failed"),
        (errors.OutOfMemory("x"), 3, "out-of-memory"),
        (errors.NetworkUnavailable("x"), 3, "network-unavailable"),
        (MemoryError(), 3, "out-of-memory"),
        (errors.RuntimeClosed("x"), 70, "fault"),
        (FileNotFoundError(2, "No such file", "x"), 70, "fault"),
        (RecursionError("x"), 70, "fault"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_ending_has_its_code(
    raised: BaseException, code: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def ending() -> list[str]:
        raise raised

    monkeypatch.setattr(catalog, "names", ending)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["models", "--json"]) == code
    out, err = capfd.readouterr()
    error = one_document(out)["error"]
    assert isinstance(error, dict)
    assert error["kind"] == kind
    assert err.startswith(f"error: {error['message']}\n")
    assert "Traceback" not in err


def test_every_error_class_has_a_row() -> None:
    def below(cls: type[errors.ToolkitError]) -> set[type[errors.ToolkitError]]:
        return {cls, *(c for child in cls.__subclasses__() if child.__module__ == cls.__module__ for c in below(child))}

    codes = {cls.__name__: cls.exit_code for cls in below(errors.ToolkitError)}
    finer = {errors.NoKernel}  # caught by our own code; for who reads the document it is what its parent is
    assert len({cls.kind for cls in below(errors.ToolkitError) - finer}) == len(codes) - 1, "two classes share a kind"
    assert codes == {
        "ToolkitError": 70, "CheckFailed": 1, "UserError": 2, "UsageError": 2, "BadModel": 2, "BadWeights": 2,
        "BadData": 2, "BadPicture": 2, "BadFeeds": 2, "FileProblem": 2, "Unavailable": 3, "RuntimeUnavailable": 3,
        "UnsupportedModel": 3, "RunFailed": 3, "OutOfMemory": 3, "NetworkUnavailable": 3,
        "NoTemporaryFolder": 3,
        "NoKernel": 3, "RewritingFailed": 70,
    }  # fmt: skip


# ---- interrupts ------------------------------------------------------------------------------------------------------


def session(leader: int) -> list[str]:
    """Returns the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        except (OSError, psutil.Error):
            continue
    return found


def _resting(process: subprocess.Popen[str], cpu_s: float) -> bool:
    """Whether a process and its children have computed for so long: past their imports, wherever that is."""
    times = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return sum(sum(p.cpu_times()[:2]) for p in times if p.is_running()) > cpu_s


@pytest.mark.parametrize(
    ("line", "cpu_s", "everyone"),
    [
        (["export", "--depth", "50", "-o", "net.onnx"], 4, True),
        (["train", "--epochs", "1000", "--out", "run"], 5, True),
        (["train", "--epochs", "1000", "--out", "run"], 5, False),
        (["bench", "cifar-resnet8", "--runtime", "torch,ort-cpu", "--duration", "100"], 8, True),
    ],
    ids=["export, Ctrl-C", "train, Ctrl-C", "train, kill -INT", "bench, Ctrl-C"],
)
def test_an_interrupt_ends_everything(line: Sequence[str], cpu_s: float, everyone: bool, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, *line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        started = time.monotonic()
        while not _resting(process, cpu_s):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - started < 90
            time.sleep(0.05)
        sent = time.monotonic()
        if everyone:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 130, (out, err)
        while session(process.pid):
            assert time.monotonic() - sent < 10, session(process.pid)
            time.sleep(0.05)
    finally:
        if process.poll() is None or session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert out == ""
    told = ["error: interrupted; what was complete is kept"]
    if line[0] == "train":
        told.append("  go on from it: the same command with --resume")
    assert err.splitlines()[-len(told) :] == told
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".onnx"))]


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_moves_by_option_and_by_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv("RESNET_ONNX_CACHE", str(tmp_path / "variable"))
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", "cifar-resnet8", "-o", "a.onnx"]) == 0
    assert (tmp_path / "variable" / "weights").is_dir()
    assert main(["export", "--model", "cifar-resnet8", "-o", "b.onnx", "--cache-dir", "option"]) == 0
    assert (tmp_path / "option" / "weights").is_dir()
    assert os.environ["RESNET_ONNX_CACHE"] == str(tmp_path / "variable")
    capfd.readouterr()
    for line, expected in ((["doctor", "--json"], "variable"), (["doctor", "--json", "--cache-dir", "o"], "o")):
        assert main(line) == 0
        assert str(tmp_path / expected) in json.dumps(one_document(capfd.readouterr().out))


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is another on this system")
def test_without_option_or_variable_it_is_the_users(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RESNET_ONNX_CACHE"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "caches")}
    done = program("export", "--model", "cifar-resnet8", "-o", str(tmp_path / "net.onnx"), env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "caches" / "resnet-onnx" / "weights").is_dir()
    assert (tmp_path / "caches" / "resnet-onnx").stat().st_mode & 0o777 == 0o700


# ---- streams ---------------------------------------------------------------------------------------------------------


def shell(line: str) -> subprocess.CompletedProcess[str]:
    text = line.replace("resnet-onnx", shlex.join(PROGRAM))
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_reader_that_has_seen_enough(form: str) -> None:
    done = shell(f"resnet-onnx train --list-recipes {form} | head -n 1; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.splitlines()[1] == "0"


def test_the_exit_code_is_true_without_a_reader(exported: Path, other: Path, tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    line = f"parity {exported} --gold {other} --runtimes ort-cpu --images 2 --quiet --save {saved}"
    done = shell(f"resnet-onnx {line} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert json.loads(saved.read_text())["result"]["passed"] is False


def _full(path: str) -> Callable[[], None]:
    def check() -> None:
        if not os.path.exists(path):
            pytest.skip(f"no {path} here")

    return check


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_full_disk_behind_stdout(form: str) -> None:
    _full("/dev/full")()
    done = shell(f"resnet-onnx train --list-recipes {form} > /dev/full")
    assert done.returncode == 2
    assert done.stderr == "error: can't write the result to standard output: No space left on device\n"


def test_closed_streams() -> None:
    assert shell("resnet-onnx train --list-recipes >&- 2>&- <&-").returncode == 0
    assert shell("resnet-onnx models nosuch >&- 2>&- <&-").returncode == 2
    done = shell("resnet-onnx models nosuch --json >&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: no network is named 'nosuch'" in assert_one_error(done.stderr)


def test_any_locale(foreign: Path, picture: Path) -> None:
    """The text has signs such as ×, and file names may have any."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    model = foreign.rename(foreign.with_name("größe-模型.onnx"))
    labels = foreign.with_name("labels.txt")
    labels.write_text("α\nβ\nγ\nδ\nε\n", encoding="utf-8")
    line = [*PROGRAM, "predict", str(model), str(picture), "--labels", str(labels)]
    done = subprocess.run(line, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert set("αβγδε") <= set(done.stdout.decode("utf-8"))
    assert "größe-模型" in done.stderr.decode("utf-8")
    for command in ("export", "models"):
        done = subprocess.run([*PROGRAM, command, "--help"], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
