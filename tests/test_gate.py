"""The gate: no library ever sees a model file that is damaged, foreign, hostile, or reaches out of its folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from PIL import Image
from support.bad_models import BAD, assert_one_error, deep_if, laughing, model, node, sound

from resnet_onnx.cli.main import main
from runtimes import ModelSource, files, onnx_gate, open_runtime
from runtimes.errors import BadModel, UnsupportedModel
from runtimes.testing import CASES

OPENERS = ("ort-cpu", "openvino", "reference")
WEIGHT = np.arange(8, dtype=np.float32)


@pytest.fixture
def no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any library that is asked to load a model fails the test."""
    import onnx.reference
    import onnxruntime
    import openvino

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"a session was opened: {args} {kwargs}")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(openvino, "Core", refuse)
    monkeypatch.setattr(onnx.reference, "ReferenceEvaluator", refuse)


def refused(path: Path, *says: str) -> str:
    """Asserts that the gate and every runtime refuse the file with one and the same message; returns it."""
    with pytest.raises(BadModel) as caught:
        onnx_gate.check_onnx(path)
    message = caught.value.message
    for runtime in OPENERS:
        with pytest.raises(BadModel) as again:
            open_runtime(runtime, ModelSource(path=path))
        assert again.value.message == message
    for text in (str(path.parent), *says):
        assert text in message, message
    assert "\n" not in message
    assert len(message) < 600
    return message


# ---- damaged, foreign and hostile files ------------------------------------------------------------------------------


def written(folder: Path, what: str) -> Path:
    path = folder / "bad.onnx"
    BAD[what][0](path)
    return path


@pytest.mark.parametrize("what", BAD)
@pytest.mark.usefixtures("no_sessions")
def test_a_bad_file_is_refused_before_any_session(tmp_path: Path, what: str) -> None:
    if what == "unknown domain":
        pytest.skip("valid ONNX: whether the operator exists is for the runtime to say")
    refused(written(tmp_path, what), BAD[what][1])


def test_the_table_is_large_enough() -> None:
    assert len(BAD) >= 60


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    return path


def command_line(command: str, path: Path, picture: Path) -> list[str]:
    return {
        "parity": ["parity", str(path), "--runtimes", "ort-cpu,openvino"],
        "bench": ["bench", str(path), "--runtime", "ort-cpu,openvino", "--duration", "0.1"],
        "evaluate": ["evaluate", str(path), "--data", "digits"],
        "predict": ["predict", str(path), str(picture)],
    }[command]


@pytest.mark.parametrize("command", ["parity", "bench", "evaluate", "predict"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_one_message_on_the_command_line(
    tmp_path: Path, what: str, command: str, picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, what)
    code = main(command_line(command, path, picture))
    out, err = capfd.readouterr()
    # Only an operator that no library has is the runtime's lack and not the file's fault.
    assert code == (3 if what == "unknown domain" else 2), err
    assert out == ""
    assert [line.startswith("error: ") for line in err.splitlines()].count(True) == 1
    assert "Traceback" not in err
    assert path.name in err or path.stem in err
    assert BAD[what][1] in err
    assert len(err) < 1500

    assert main([*command_line(command, path, picture), "--json"]) == code
    out, _ = capfd.readouterr()
    document = json.loads(out)
    assert list(document) == ["schema", "kind", "error"]
    assert list(document["error"]) == ["kind", "message", "fix"]
    # A folder is taken for a checkpoint.
    kind = {"unknown domain": "unsupported-model", "folder": "bad-weights"}.get(what, "bad-model")
    assert document["error"]["kind"] == kind
    assert BAD[what][1] in document["error"]["message"]


@pytest.mark.parametrize("what", ["empty", "nested 5,000 deep", "huge ConstantOfShape", "folder"])
def test_a_bad_file_in_a_real_process(tmp_path: Path, what: str, picture: Path) -> None:
    command = [sys.executable, "-m", "resnet_onnx", *command_line("predict", written(tmp_path, what), picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert_one_error(done.stderr)


def test_the_gate_needs_no_more_memory_than_the_file(tmp_path: Path) -> None:
    """All bad files in one process: its peak stays within 200 MB of what importing onnx costs."""
    code = """
        import resource, sys
        from pathlib import Path
        import onnx, onnx.checker, onnx.shape_inference
        from support.bad_models import BAD, sound
        from runtimes import files, onnx_gate
        from runtimes.errors import BadModel, UnsupportedModel
        folder = Path(sys.argv[1])
        path = folder / "sound.onnx"
        path.write_bytes(sound().SerializeToString())
        onnx_gate.check_onnx(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for index, (write, _) in enumerate(BAD.values()):
            path = folder / f"{index}.onnx"
            write(path)
            try:
                onnx_gate.check_onnx(path)
            except BadModel:
                pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert int(done.stdout) < 200_000, "kilobytes"


def test_a_sound_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "sound.onnx"
    path.write_bytes(sound().SerializeToString())
    checked = onnx_gate.check_onnx(path)
    assert (checked.opset, checked.has_manifest, checked.external_data) == (18, False, ())
    assert [str(s) for s in (*checked.inputs, *checked.outputs)] == [
        "x: float32[batch, 3, 8, 8]",
        "y: float32[batch, 5]",
    ]
    assert (checked.sha256, checked.size_bytes) == (files.sha256_file(path), path.stat().st_size)


@pytest.mark.parametrize("runtime", OPENERS)
@pytest.mark.parametrize("made", [deep_if(7), laughing(3, times=4)], ids=["branches", "functions"])
def test_branches_in_branches_and_functions_are_fine(tmp_path: Path, runtime: str, made: onnx.ModelProto) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(made, path)
    if runtime == "openvino" and made.functions:
        with pytest.raises(UnsupportedModel, match=r"No conversion rule found for operations: fun\.f2"):
            open_runtime(runtime, ModelSource(path=path))
        return
    with open_runtime(runtime, ModelSource(path=path)) as opened:
        x = np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)
        np.testing.assert_array_equal(opened.run({"x": x})["y"], np.maximum(x, 0))


def test_every_model_of_the_onnx_wheel_passes_or_is_refused_for_its_strings() -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    models = sorted(folder.rglob("*.onnx"))
    assert len(models) > 100
    reasons = []
    for path in models:
        try:
            onnx_gate.check_onnx(path)
        except BadModel as error:
            reasons.append(error.message)
    assert all("type string" in reason or "is a sequence" in reason for reason in reasons), reasons
    assert len(reasons) < 10


# ---- manifests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real network as the command line exports it, manifest and all."""
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    assert main(["export", "--model", "cifar-resnet8", "-o", str(path), "--quiet"]) == 0
    assert onnx_gate.check_onnx(path).has_manifest
    return path


def copied(exported: Path, folder: Path) -> tuple[Path, bytes]:
    path = folder / "net.onnx"
    data = exported.read_bytes()
    path.write_bytes(data)
    manifest = json.loads(onnx_gate.manifest_path(exported).read_text())
    files.write_json(onnx_gate.manifest_path(path), manifest)
    assert onnx_gate.check_onnx(path).sha256 == onnx_gate.check_onnx(exported).sha256
    return path, data


@pytest.mark.usefixtures("no_sessions")
def test_200_cuts_are_refused(exported: Path, tmp_path: Path) -> None:
    path, data = copied(exported, tmp_path)
    chance = random.Random(0)
    lengths = [0, 1, len(data) - 1, *[chance.randrange(len(data)) for _ in range(197)]]
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(BadModel, match=r"damaged or was changed|is empty"):
            onnx_gate.check_onnx(path)
    assert len(lengths) == 200
    path.write_bytes(data + b"\0")
    refused(path, "damaged")


@pytest.mark.usefixtures("no_sessions")
def test_300_single_flipped_bits_are_refused(exported: Path, tmp_path: Path) -> None:
    path, data = copied(exported, tmp_path)
    chance = random.Random(1)
    for bit in [0, 8 * len(data) - 1, *[chance.randrange(8 * len(data)) for _ in range(298)]]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(BadModel, match="damaged or was changed"):
            onnx_gate.check_onnx(path)
    message = refused(path, "its manifest says")
    assert files.sha256_file(exported)[:12] in message


def test_a_repaired_file_passes_again(exported: Path, tmp_path: Path) -> None:
    path, data = copied(exported, tmp_path)
    path.write_bytes(data[:-1] + b"\xff")
    refused(path, "damaged")
    path.write_bytes(data)
    assert onnx_gate.check_onnx(path).has_manifest


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text": lambda m: "no JSON at all",
    "empty": lambda m: "",
    "cut": lambda m: json.dumps(m)[:-5],
    "a list": lambda m: [],
    "null": lambda m: None,
    "nested deep": lambda m: "[" * 100_000,
    "another schema": lambda m: {**m, "schema": 99},
    "no schema": lambda m: {k: v for k, v in m.items() if k != "schema"},
    "no model": lambda m: {k: v for k, v in m.items() if k != "model"},
    "model is a list": lambda m: {**m, "model": []},
    "no hash": lambda m: {**m, "model": {}},
    "hash of another": lambda m: {**m, "model": {**m["model"], "sha256": "0" * 64}},
    "hash is null": lambda m: {**m, "model": {**m["model"], "sha256": None}},
    "external data is null": lambda m: {**m, "external_data": None},
    "external data without hash": lambda m: {**m, "external_data": [{"file": "a"}]},
    "not UTF-8": lambda m: b"\xff\xfe\xff",
}


@pytest.mark.parametrize("what", MANIFESTS)
@pytest.mark.usefixtures("no_sessions")
def test_a_damaged_manifest_is_refused(exported: Path, tmp_path: Path, what: str) -> None:
    path, _ = copied(exported, tmp_path)
    place = onnx_gate.manifest_path(path)
    changed = MANIFESTS[what](json.loads(place.read_text()))
    if isinstance(changed, bytes):
        place.write_bytes(changed)
    else:
        place.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    message = refused(path)
    assert "manifest" in message
    place.unlink()
    assert not onnx_gate.check_onnx(path).has_manifest


def test_a_manifest_that_is_a_folder_is_refused(exported: Path, tmp_path: Path) -> None:
    path, _ = copied(exported, tmp_path)
    onnx_gate.manifest_path(path).unlink()
    onnx_gate.manifest_path(path).mkdir()
    refused(path, "manifest")


# ---- external data ---------------------------------------------------------------------------------------------------


def with_external(path: Path, location: str, *, offset: int | None = None, length: int | None = None) -> Path:
    """Writes a model ``y = x + w`` whose weight claims to lie at `location`."""
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.raw_data = b"any"
    set_external_data(tensor, location, offset, length)
    tensor.ClearField("raw_data")
    path.write_bytes(model([node("Add", "x w", "y")], weights=[tensor]).SerializeToString())
    return path


OUTSIDE: dict[str, tuple[str, str]] = {
    "parent": ("../secret.bin", "outside the model's folder"),
    "parent of a subfolder": ("sub/../../secret.bin", "outside the model's folder"),
    "up and down again": ("../inside/w.bin", "outside the model's folder"),
    "parent alone": ("..", "outside the model's folder"),
    "absolute": ("{outside}/secret.bin", "outside the model's folder"),
    "two slashes": ("//etc/passwd", "outside the model's folder"),
    "backslash": ("..\\secret.bin", "outside the model's folder"),
    "backslash inside": ("sub\\w.bin", "outside the model's folder"),
    "drive letter": ("C:secret.bin", "outside the model's folder"),
    "drive and root": ("C:\\secret.bin", "outside the model's folder"),
    "share": ("\\\\server\\share\\secret.bin", "outside the model's folder"),
    "stream of a file": ("w.bin:hidden", "outside the model's folder"),
    "NUL": ("w.bin\0/../../secret.bin", "outside the model's folder"),
    "an address in memory": ("*/_ORT_MEM_ADDR_/*", "outside the model's folder"),
    "symbolic link": ("link.bin", "symbolic link"),
    "link that stays inside": ("inner-link.bin", "symbolic link"),
    "through a linked folder": ("linked/secret.bin", "symbolic link"),
    "hard link": ("hard.bin", "hard link"),
    "a folder": ("sub", "not a regular file"),
    "the folder itself": (".", "not a regular file"),
    "a pipe": ("pipe", "not a regular file"),
    "a device": ("null", "not a regular file|symbolic link"),
    "missing": ("nowhere.bin", "is missing"),
    "below a file": ("w.bin/x", "is missing"),
    "a name too long": ("n" * 300, "is missing"),
    "no location": ("", "without a location"),
}


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A model's folder beside a secret, with every kind of link to it."""
    folder = tmp_path / "inside"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    for path in (secret, folder / "w.bin", folder / "sub" / "w.bin"):
        path.write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "inner-link.bin").symlink_to(folder / "w.bin")
    (folder / "linked").symlink_to(tmp_path)
    os.link(secret, folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    (folder / "null").symlink_to("/dev/null")
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(WEIGHT.tobytes())
    return folder


@pytest.mark.parametrize("what", OUTSIDE)
@pytest.mark.usefixtures("no_sessions")
def test_external_data_stays_inside_the_folder(inside: Path, what: str, picture: Path) -> None:
    location, reason = OUTSIDE[what]
    path = with_external(inside / "net.onnx", location.replace("{outside}", str(inside.parent)))
    message = refused(path)
    assert any(text in message for text in reason.split("|")), message
    assert main(["predict", str(path), str(picture)]) == 2


EXTENTS: dict[str, tuple[int | None, int | None, str]] = {
    "beyond the end": (8, 32, "ends at byte 40, but the file has 32"),
    "far beyond": (2**62, 32, "truncated"),
    "negative offset": (-4, 32, "truncated"),
    "negative length": (0, -32, "truncated"),
    "too short": (0, 16, "16 bytes, its shape needs 32"),
    "too long": (0, 33, "truncated"),
    "no length, offset in the middle": (16, None, "ends at byte 48"),
}


@pytest.mark.parametrize("what", EXTENTS)
@pytest.mark.usefixtures("no_sessions")
def test_external_data_has_the_size_that_its_shape_needs(inside: Path, what: str) -> None:
    offset, length, reason = EXTENTS[what]
    refused(with_external(inside / "net.onnx", "w.bin", offset=offset, length=length), reason, "'w'")


@pytest.mark.usefixtures("no_sessions")
def test_a_truncated_data_file_is_refused(inside: Path) -> None:
    path = with_external(inside / "net.onnx", "w.bin")
    for size in (31, 1, 0):
        (inside / "w.bin").write_bytes(bytes(size))
        refused(path, f"the file has {size}")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"key": "location", "value": "../secret.bin"}, "says something twice"),
        ({"key": "offset", "value": "many"}, "no numeric offset"),
        ({"key": "length", "value": "1e3"}, "no numeric offset"),
    ],
)
@pytest.mark.usefixtures("no_sessions")
def test_external_data_says_one_thing(inside: Path, entry: dict[str, str], reason: str) -> None:
    path = with_external(inside / "net.onnx", "w.bin")
    loaded = onnx.load(path, load_external_data=False)
    loaded.graph.initializer[0].external_data.add(**entry)
    path.write_bytes(loaded.SerializeToString())
    refused(path, reason)


@pytest.mark.parametrize("where", ["constant", "subgraph", "function", "sparse"])
@pytest.mark.usefixtures("no_sessions")
def test_external_data_hides_nowhere(inside: Path, where: str) -> None:
    tensor = numpy_helper.from_array(WEIGHT, "w")
    set_external_data(tensor, "../secret.bin")
    tensor.ClearField("raw_data")
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    add = node("Add", "x w", "y")
    if where == "constant":
        made = model([constant, add])
    elif where == "subgraph":
        branch = helper.make_graph([constant, node("Add", "x w", "b")], "branch", [],
                                   [helper.make_tensor_value_info("b", 1, None)])  # fmt: skip
        flag = numpy_helper.from_array(np.array(True), "flag")
        made = model([node("If", "flag", "y", then_branch=branch, else_branch=branch)], weights=[flag])
    elif where == "function":
        sets = [helper.make_opsetid("", 18)]
        body = helper.make_function("fun", "f", ["x"], ["y"], [constant, add], sets)
        made = model([helper.make_node("f", ["x"], ["y"], domain="fun")], functions=[body], domains=["fun"])
    else:
        indices = numpy_helper.from_array(np.arange(8), "i")
        sparse = helper.make_sparse_tensor(tensor, indices, [8])
        made = model([helper.make_node("Constant", [], ["w"], sparse_value=sparse), add])
    path = inside / "net.onnx"
    path.write_bytes(made.SerializeToString())
    refused(path, "outside the model's folder")


@pytest.mark.parametrize("runtime", OPENERS)
@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin"])
@pytest.mark.parametrize("manifest", [True, False])
def test_external_data_in_the_folder_works(inside: Path, location: str, runtime: str, manifest: bool) -> None:
    path = with_external(inside / "net.onnx", location)
    if manifest:
        onnx_gate.write_manifest(path)
    assert onnx_gate.check_onnx(path).external_data == (location,)
    with open_runtime(runtime, ModelSource(path=path)) as opened:
        x = np.ones((2, 3, 8, 8), np.float32)
        np.testing.assert_array_equal(opened.run({"x": x})["y"], x + WEIGHT)


def test_the_manifest_covers_external_data(inside: Path) -> None:
    path = with_external(inside / "net.onnx", "sub/w.bin")
    manifest = onnx_gate.write_manifest(path)
    assert [row["file"] for row in manifest["external_data"]] == ["sub/w.bin"]
    assert onnx_gate.check_onnx(path).has_manifest
    changed = bytearray(WEIGHT.tobytes())
    changed[5] ^= 1
    (inside / "sub" / "w.bin").write_bytes(changed)
    refused(path, "sub/w.bin is damaged or was changed")
    files.write_json(onnx_gate.manifest_path(path), {**manifest, "external_data": []})
    refused(path, "external data 'sub/w.bin' that its manifest does not list")


@pytest.mark.usefixtures("no_sessions")
def test_what_was_checked_is_checked_again_when_it_changed(inside: Path) -> None:
    path = with_external(inside / "net.onnx", "w.bin")
    assert onnx_gate.check_onnx(path).external_data == ("w.bin",)
    (inside / "w.bin").unlink()
    (inside / "w.bin").symlink_to(inside.parent / "secret.bin")
    refused(path, "symbolic link")
    (inside / "w.bin").unlink()
    (inside / "w.bin").write_bytes(WEIGHT.tobytes())
    assert onnx_gate.check_onnx(path).external_data == ("w.bin",)
    os.link(inside / "w.bin", inside / "second-name")
    refused(path, "hard link")


def test_a_model_reached_through_a_link_is_the_file_itself(tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(sound().SerializeToString())
    link = tmp_path / "b.onnx"
    link.symlink_to(target)
    first = onnx_gate.check_onnx(link)
    path = CASES["fixed"].write(tmp_path)
    target.write_bytes(path.read_bytes())
    assert onnx_gate.check_onnx(link).sha256 == files.sha256_file(path) != first.sha256
