"""Structured fuzz with fixed seeds: whatever a file holds, there is a result or one sentence of what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.mutations import damaged, mutated
from support.saved_results import SCHEMA_1, document, noisy, row

from resnet_onnx.data.batches import decoded_picture
from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.models.build import build
from resnet_onnx.models.catalog import lookup
from resnet_onnx.models.configs import with_classes
from resnet_onnx.report import charts
from resnet_onnx.report.assemble import write_report
from resnet_onnx.results.reading import read
from resnet_onnx.training.checkpoint import RECORD, CheckpointContent, read_checkpoint, write_checkpoint
from resnet_onnx.training.recipes import lookup_recipe
from runtimes.errors import BadData, BadPicture, ToolkitError, UserError
from runtimes.text import shown

TRIES = [pytest.param(300, id="300"), pytest.param(10_000, marks=pytest.mark.slow, id="10,000")]


def survives(call: Callable[[], object], allowed: type[ToolkitError], said: str) -> bool:
    """Whether a call is through; what it raises must be one of ours, with a message for people."""
    told = None
    try:
        call()
    except allowed as error:
        told = error.message
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}: after {said}") from error
    assert told is None or 0 < len(shown(told)) < 3000, said
    return told is None


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tries", TRIES)
def test_results_of_any_origin_are_a_page_or_one_sentence(
    tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tries == 300:  # drawing is tested in the long run: a page with every chart takes a second
        monkeypatch.setattr(charts, "_text", lambda figure: "<svg></svg>")
    kinds = [json.loads(path.read_text()) for path in sorted(SCHEMA_1.glob("*.json"))]
    kinds.append(document(row(noisy(0)), row(noisy(1), runtime="torch")))
    place, page = tmp_path / "result.json", tmp_path / "page.html"
    through = 0
    for seed in range(tries):
        changed, said = mutated(kinds[seed % len(kinds)], seed)
        place.write_text(json.dumps(changed))

        def report() -> None:
            write_report(page, [read(place)])

        through += survives(report, UserError, f"seed {seed}: {said}")
    assert through > tries / 20


@pytest.mark.parametrize("text", ['"\\ud800"', "1e308", "-1e308", json.dumps("x" * 10**6), json.dumps("\x1b[2J")])
def test_a_result_with_impossible_values_costs_no_minute(text: str, tmp_path: Path) -> None:
    place = tmp_path / "result.json"
    whole = json.dumps(document(row(noisy(0), model="NAME", images_per_second=12345.678)))
    number = text.lstrip("-")[0].isdigit()
    place.write_text(whole.replace("12345.678", text) if number else whole.replace('"NAME"', text))
    through = survives(lambda: write_report(tmp_path / "page.html", [read(place)]), BadData, text)
    assert through == (text == json.dumps("\x1b[2J"))
    if through:
        assert "\x1b" not in (tmp_path / "page.html").read_text()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = lookup("cifar-resnet8")
    config = with_classes(entry.config, 2)
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    content = CheckpointContent(
        name=entry.name,
        config=config,
        preprocessing=entry.preprocessing,
        labels=("cat", "dog"),
        module_state=build(config).state_dict(),
        recipe=lookup_recipe("digits").to_json(),
        epoch=3,
        metrics={"validation_top1": 0.5, "nothing": None},
        progress={"history": [{"epoch": 1}]},
        optimizer_state=None,
        rng_state=None,
    )
    write_checkpoint(folder, content)
    return folder


@pytest.mark.parametrize("tries", TRIES)
def test_a_changed_checkpoint_is_read_or_named(tries: int, checkpoint: Path, tmp_path: Path) -> None:
    original = json.loads((checkpoint / RECORD).read_text())
    weights = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    for seed in range(tries):
        if seed % 3 == 0:  # damage that the hashes find
            changed, said = damaged(json.dumps(original).encode(), seed)
            (tmp_path / RECORD).write_bytes(changed)
        else:  # and what somebody sealed
            content, said = mutated(original["content"], seed)
            text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
            digest = hashlib.sha256(text.encode()).hexdigest()
            (tmp_path / RECORD).write_text(json.dumps({**original, "content": content, "sha256": digest}))

        def load() -> None:
            found = read_checkpoint(tmp_path)
            found.network().load()

        survives(load, UserError, f"seed {seed}: {said}")


# ---- data ------------------------------------------------------------------------------------------------------------


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for label in ("cat", "dog"):
            for index, kind in enumerate(("PNG", "JPEG", "BMP")):
                picture = io.BytesIO()
                pixels = np.random.default_rng(index).integers(0, 256, (12, 9, 3), np.uint8)
                Image.fromarray(pixels).save(picture, kind)
                out.writestr(f"set/test/{label}/{index}.{kind.lower()}", picture.getvalue())
    return packed.getvalue()


@pytest.mark.parametrize("tries", TRIES)
def test_a_damaged_zip_of_pictures_is_read_or_named(tries: int, tmp_path: Path) -> None:
    whole, place = archive(), tmp_path / "data.zip"
    through = 0
    for seed in range(tries):
        changed, said = damaged(whole, seed)
        place.write_bytes(changed)
        opened: list[Any] = []
        if survives(lambda opened=opened: opened.append(open_dataset(place)), BadData, f"seed {seed}: {said}"):  # type: ignore[misc]
            (pictures,) = opened
            for index in range(len(pictures)):
                survives(lambda p=pictures, i=index: decoded_picture(p, i), BadPicture, f"seed {seed}: {said}")  # type: ignore[misc]
            through += 1
    assert through > tries / 10


# ---- graphs ----------------------------------------------------------------------------------------------------------

GRAPHS = """
import random, sys
from pathlib import Path
import numpy as np, onnx
sys.path.insert(0, sys.argv[1])
from support.mutations import ODD, damaged
from support.foreign_graphs import network
from runtimes import onnx_gate
from runtimes.doing import Board
from runtimes.errors import ToolkitError
from runtimes.registry import open_runtime
from runtimes.spec import ModelSource, RuntimeOptions

def messages(found):
    yield found
    for field, value in found.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for each in value if field.is_repeated else (value,):
                yield from messages(each)

def change(model, seed):
    chance = random.Random(seed)
    holder = chance.choice(list(messages(model)))
    field = chance.choice([f for f in holder.DESCRIPTOR.fields if f.type != f.TYPE_MESSAGE] or [None])
    if field is None:
        return "nothing"
    numbers = (0, 1, -1, 2, 7, 10, 11, 16, 2**31 - 1, -2**31)
    value = {9: lambda: chance.choice(("", "x", "y", "w", "conv", "ai.onnx", "Loop", "a" * 3000, chr(27) + "[2J")),
             12: lambda: bytes(chance.randrange(256) for _ in range(chance.choice((0, 1, 4, 300))))}.get(
        field.type, lambda: chance.choice(numbers))()
    try:
        if not field.is_repeated:
            setattr(holder, field.name, value)
        else:
            held = getattr(holder, field.name)
            if len(held) and chance.random() < 0.7:
                held[chance.randrange(len(held))] = value
            else:
                held.append(value)
    except (ValueError, TypeError):
        pass
    return f"{holder.DESCRIPTOR.name}.{field.name} = {value!r:.60}"

place = Path(sys.argv[2])
one = RuntimeOptions(threads=1)
for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    model = network()
    said = change(model, seed) if seed % 4 else "bytes"
    data = model.SerializeToString()
    if not seed % 4:
        data, said = damaged(data, seed)
    place.write_bytes(data)
    print(seed, said, flush=True)
    try:
        checked = onnx_gate.check_onnx(place)
        answers = []
        for name in ("ort-cpu", "reference"):
            with open_runtime(name, ModelSource(path=place), options=one) as opened:
                feeds = {s.name: np.ones(s.concrete(n=2), s.dtype) for s in opened.inputs}
                if sum(a.size for a in feeds.values()) > 10**6:
                    break
                answers.append(opened.run(feeds))
        if len(answers) == 2:
            for key, ours in answers[0].items():
                theirs = answers[1][key]
                if ours.dtype.kind == "f" and np.isfinite(ours).all() and np.isfinite(theirs).all():
                    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
                    size = 1 + np.abs(theirs).max()
                    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * size), "another answer"
            print("through", flush=True)
    except ToolkitError as error:
        assert error.message and error.exit_code in (2, 3), (error.exit_code, error.message)
"""


@pytest.mark.parametrize("tries", TRIES)
def test_a_changed_graph_is_refused_or_computed_right(tries: int, tmp_path: Path) -> None:
    """In a process of its own, as the program works on graphs: a signal there is one sentence (``test_guard``)."""
    begin, through, signals = 0, 0, []
    program = [sys.executable, "-c", GRAPHS, str(Path(__file__).parent), str(tmp_path / "net.onnx")]
    while begin < tries:
        done = subprocess.run([*program, str(begin), str(tries)], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        last = next((line for line in reversed(lines) if line != "through"), f"{tries}")
        assert done.returncode <= 0, f"{last}\n{done.stderr[-2000:]}"
        through += lines.count("through")
        begin = int(last.split()[0]) + 1
        if done.returncode < 0:
            signals.append(last)
    assert through > tries / 10
    assert len(signals) <= tries // 100, signals
