"""What comes from outside reaches people as text, and only regular files of bounded size are read."""

from __future__ import annotations

import json
import os
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bad_models import sound

from resnet_onnx.cli.main import main
from resnet_onnx.cli.terminal import Terminal
from resnet_onnx.data.label_files import read_label_file
from resnet_onnx.models.weights_file import read_weights_file
from resnet_onnx.report.page import Section, write_page
from resnet_onnx.results import junit, tables
from resnet_onnx.results.commands import Finding, Report
from resnet_onnx.results.reading import read
from resnet_onnx.results.writing import encode
from resnet_onnx.training.checkpoint import read_checkpoint
from runtimes import engines, files, onnx_gate
from runtimes.errors import ToolkitError
from runtimes.text import escaped_json, shown

Capture = pytest.CaptureFixture[str]

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31mred\r\u202eegnahc\u2069\u200b\ud83d\udc80\x00\U000e0041"
SEEN = r"\x1b[2J\x1b]0;owned\x07\x9b31mred\r\u202eegnahc\u2069\u200b\ud83d\x80\x00\U000e0041"
KEPT_FORMATS = {"\u200c", "\u200d"}


def hidden(text: str) -> set[str]:
    """Returns what of a text a terminal would obey or not show."""
    classes = ("Cc", "Cs", "Zl", "Zp")
    return {sign for sign in text if unicodedata.category(sign) in classes or sign in EVIL[:1]} - {"\n"}


@given(st.text(max_size=80))
def test_text_is_shown_with_nothing_hidden_in_it(text: str) -> None:
    assert not hidden(shown(text)), shown(text)
    assert "\n" not in shown(text)
    if text.isprintable():
        assert shown(text) == text
    document = json.dumps({"name": text.encode(errors="replace").decode()}, ensure_ascii=False, indent=1)
    assert not hidden(escaped_json(document))
    assert json.loads(escaped_json(document)) == json.loads(document)


def test_what_joins_letters_stays_and_what_turns_them_round_does_not() -> None:
    family, persian = "👩\u200d👧", "می\u200cخواهم"
    assert (shown(family), shown(persian)) == (family, persian)
    assert shown(EVIL) == SEEN
    assert shown("a\nb", lines=True) == "a\nb"
    assert len(shown("x" * 10**6)) < 3000


def test_nothing_from_outside_reaches_the_terminal_raw(capfd: Capture) -> None:
    terminal = Terminal()
    with terminal.without_chatter():
        terminal.line(EVIL)
        terminal.table(["name", EVIL], [[EVIL, "1"], ["two\nlines", "2"]])
        terminal.note(EVIL)
        terminal.error("usage", EVIL, f"{EVIL}\nand more")
        with terminal.progress() as progress:
            progress.add_task(EVIL, total=2)
        with terminal.status(EVIL) as status:
            status.update(f"then {EVIL}")
    out, err = capfd.readouterr()
    assert not hidden(out)
    assert not hidden(err)
    assert out.count(SEEN) == 3
    assert err.count(SEEN) == 6
    assert "two\\nlines" in out


def test_nothing_from_outside_reaches_a_page_or_a_summary_raw(tmp_path: Path) -> None:
    evil = EVIL + "<script>alert(1)</script>|`"
    page, suite = tmp_path / "page.html", tmp_path / "suite.xml"
    section = Section(heading=evil, text=evil, columns=[evil], rows=[[evil]], commands=[evil], notes=[evil])
    write_page(page, title=evil, findings=[Finding(state="good", text=evil)], sections=[section], footer=evil)
    junit.write_suite(suite, "parity", evil, [junit.Case(name=evil, seconds=0, failure=f"{evil}\nagain")])
    written = tables.markdown([evil], [[evil]], above=[evil], below=[evil], command=["resnet-onnx", evil])
    for text in (
        page.read_text(),
        suite.read_text(),
        written,
        encode(Report(path=evil, passed=True, findings=[], results=[])).decode(),
    ):
        assert not hidden(text)
    assert "<script>alert" not in page.read_text() + suite.read_text() + written.partition("```")[0]
    assert ElementTree.parse(suite).find(".//failure") is not None


def test_escapes_in_names_and_labels_are_text_in_a_command(tmp_path: Path, capfd: Capture) -> None:
    import onnx
    from PIL import Image

    model = sound()
    model.metadata_props.add(key="resnet_onnx.precision", value=EVIL.replace("\ud83d\udc80", ""))
    folder = tmp_path / "a\x1b[31mb"
    folder.mkdir()
    onnx.save(model, folder / "\x1b]0;net.onnx")
    labels = tmp_path / "labels.txt"
    classes = onnx_gate.check_onnx(folder / "\x1b]0;net.onnx").outputs[0].shape[-1]
    labels.write_text("\n".join(f"l\x1b[3{index}m" for index in range(int(classes))))
    Image.new("RGB", (8, 8), "red").save(folder / "p\x1b[1m.png")
    code = main(["predict", str(folder / "\x1b]0;net.onnx"), str(folder), "--labels", str(labels)])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert not hidden(out + err), (out, err)
    assert r"p\x1b[1m.png" in out
    assert r"l\x1b[3" in out


def in_time(call: Callable[[], object]) -> Exception:
    """Returns what a call raises; reading a pipe or an endless device never comes to that."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert raised, "it hangs, or it accepts what is not a file"
    return raised[0]


READERS: dict[str, Callable[[Path, Path], object]] = {
    "manifest": lambda odd, folder: (
        (folder / "net.onnx.manifest.json").symlink_to(odd),
        onnx_gate.check_onnx(folder / "net.onnx"),
    ),
    "record of an engine": lambda odd, folder: (
        engines.record_path(folder / "net.engine").symlink_to(odd),
        engines.read_record(folder / "net.engine"),
    ),
    "record of a checkpoint": lambda odd, folder: (
        (folder / "checkpoint.json").symlink_to(odd),
        read_checkpoint(folder),
    ),
    "labels": lambda odd, folder: read_label_file(str(odd)),
    "result": lambda odd, folder: read(odd, kinds=("bench",)),
    "weights": lambda odd, folder: read_weights_file(odd),
    "hash": lambda odd, folder: files.sha256_file(odd),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "sparse"])
def test_only_a_regular_file_of_a_possible_size_is_read(reader: str, kind: str, tmp_path: Path) -> None:
    import onnx

    odd, folder = tmp_path / kind.strip("/").replace("/", "-"), tmp_path / "here"
    folder.mkdir()
    onnx.save(sound(), folder / "net.onnx")
    (folder / "net.engine").write_bytes(b"ftrt")
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    elif kind == "sparse":
        if reader in ("weights", "hash"):
            pytest.skip("weights may be this large, and a hash is of any file")
        with open(odd, "wb") as handle:
            handle.truncate(10 * 2**30)
    else:
        odd = Path(kind)
    raised = in_time(lambda: READERS[reader](odd, folder))
    assert isinstance(raised, ToolkitError if reader != "hash" else OSError), raised
