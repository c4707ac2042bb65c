"""Reads saved results (``--save`` of bench, parity, evaluate, convert) and refuses what is none, in one sentence.

The form of the files is described in ``docs/result-schema.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from runtimes.errors import BadData

SCHEMA = 1
"""The version of all kinds that this program writes and reads."""

KINDS = ("bench", "parity", "evaluate", "convert")

LARGEST_BYTES = 2**30
"""Raw samples take some ten bytes each: this is a hundred million of them, days of measuring."""

_ROW = {
    "bench": {
        "model": "text", "runtime": "text", "precision": "text", "batch": "count", "streams": "count", "scope": "text",
        "device": "text?", "version": "text?", "images_per_second": "number?", "images_per_second_ci95": "pair?",
        "stable": "flag", "unstable_reason": "text?", "samples": "number", "raw_ns": "samples?",
        "latency_ms": "map", "disturbance": "map", "roofline": "map", "recorded": "map", "error": "map?",
    },
    "parity": {
        "runtime": "text", "relative_rmse": "number?", "budget": "number?", "top1_agreement": "number?",
        "passed": "flag", "reason": "text",
    },
    "evaluate": {
        "runtime": "text", "top1": "number", "top5": "number?", "images": "number", "images_per_second": "number",
    },
}  # fmt: skip
"""What is read of a row, by kind; ``?`` marks what may be null."""

_BODY = {
    "parity": {"model": "text", "precision": "text", "gold": "text", "pictures": "number", "passed": "flag"},
    "evaluate": {"model": "text", "precision": "text", "data": "text"},
    "convert": {
        "model": "text", "precision": "text", "agreement": "number", "agreement_images": "number",
        "size_ratio": "number", "sqnr_db": "signed?", "gate": "map",
    },
}  # fmt: skip

_WORDS = {
    "text": "a text", "number": "a finite number of at least 0", "count": "a whole number of at least 1",
    "flag": "true or false", "pair": "two numbers, the lower first", "map": "an object",
    "samples": "lists of times above 0", "signed": "a finite number", "ends": "two numbers, the lower first",
    "list": "a list",
}  # fmt: skip


def read(path: Path, *, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Reads one saved result.

    Args:
        path: A file that a command wrote with ``--save``.
        kinds: What is wanted.

    Returns:
        The document, whose fields that comparisons and reports read have the types of ``docs/result-schema.md``.

    Raises:
        BadData: The file is missing, damaged, no result, of another kind, or of another version of the schema.
    """
    found = _load(path)
    wanted = " or ".join(kinds)
    if not isinstance(found, dict) or found.get("kind") not in KINDS or "schema" not in found:
        raise BadData(f"{path}: no result of resnet-onnx, expected one that {wanted} wrote", fix=_save_fix(kinds))
    kind = found["kind"]
    if kind not in kinds:
        raise BadData(f"{path}: a result of {kind}, expected one of {wanted}", fix=_save_fix(kinds))
    if found["schema"] != SCHEMA or isinstance(found["schema"], bool):
        raise BadData(
            f"{path}: a result of schema {_short(found['schema'])}, and this version reads schema {SCHEMA}",
            fix="make it again with this version, or read it with the one that wrote it",
        )
    _check(path, kind, found)
    return found


def rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of a result: one per runtime and, with ``bench``, batch and streams; ``convert`` has none."""
    if document["kind"] == "convert":
        return []
    holder = document if document["kind"] == "bench" else document["result"]
    found: list[dict[str, Any]] = holder["results"]
    return found


def _load(path: Path) -> Any:
    try:
        if path.is_dir():
            raise BadData(f"{path}: a folder, expected a file that --save wrote")
        if path.exists() and not path.is_file():
            raise BadData(f"{path}: a device or pipe, expected a file that --save wrote")
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise BadData(f"{path}: {size / 2**30:.1f} GiB, expected a result of at most 1 GiB")
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise BadData(f"{path}: no such file", fix=_save_fix(KINDS)) from error
    except OSError as error:
        raise BadData(f"{path}: can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: no text in UTF-8, expected a JSON file that --save wrote") from error
    except RecursionError as error:
        raise BadData(f"{path}: nested too deeply for a result") from error
    except ValueError as error:
        raise BadData(f"{path}: no complete JSON: {error}", fix="it may have been cut off; make it again") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _save_fix(kinds: Sequence[str]) -> str:
    return f"make one: resnet-onnx {kinds[0]} MODEL --save FILE.json"


def _check(path: Path, kind: str, document: Mapping[str, Any]) -> None:
    _field(path, document, "made", "text")
    _field(path, document, "tool", "text")
    _field(path, document, "command", "words")
    _field(path, document, "environment", "map")
    holder = document
    if kind == "bench":
        _field(path, document, "model", "map")
        _field(path, document["model"], "name", "text", "model.")
        for name in ("description", "sha256", "weights_sha256"):
            _field(path, document["model"], name, "text?", "model.")
        _field(path, document, "settings", "map")
        _field(path, document["settings"], "scope", "text", "settings.")
    else:
        _field(path, document, "artifacts", "map")
        _field(path, document, "result", "map")
        holder = document["result"]
        for name, form in _BODY[kind].items():
            _field(path, holder, name, form, "result.")
    if kind == "parity":
        _optional(path, holder, "budgets", "map?", "result.")
    _environment(path, document["environment"])
    if kind == "convert":
        _conversion(path, holder)
        return
    found = holder.get("results")
    if not isinstance(found, list) or not found:
        raise BadData(f"{path}: has no rows ('results'), expected at least one")
    for index, row in enumerate(found):
        where = f"results[{index}]"
        if not isinstance(row, dict):
            raise BadData(f"{path}: {where} is {_short(row)}, expected an object")
        for name, form in _ROW[kind].items():
            _field(path, row, name, form, f"{where}.")
        if kind == "bench":
            _bench_row(path, row, where)


def _environment(path: Path, environment: Mapping[str, Any]) -> None:
    _field(path, environment, "cpu", "map", "environment.")
    _field(path, environment["cpu"], "model", "text", "environment.cpu.")
    _field(path, environment["cpu"], "usable_cores", "count", "environment.cpu.")
    _field(path, environment, "libraries", "map", "environment.")


_GATES = {
    "top1": {"top1": "number", "drop_points": "signed", "drop_ci95": "ends", "max_drop_points": "number"},
    "sqnr": {"least_sqnr_db": "signed"},
}

_LISTS = {
    "weights": {"layer": "text", "sqnr_db": "signed?"},
    "activations": {"tensor": "text", "sqnr_db": "signed?"},
    "sensitivity": {"layer": "text", "sqnr_db": "signed?"},
    "kept_fp32": {"node": "text"},
}
"""What a conversion need not have."""


def _conversion(path: Path, result: Mapping[str, Any]) -> None:
    gate = result["gate"]
    _field(path, gate, "kind", "text", "result.gate.")
    if gate["kind"] not in _GATES:
        raise BadData(f"{path}: 'result.gate.kind' is {_short(gate['kind'])}, expected {' or '.join(_GATES)}")
    for name, form in _GATES[gate["kind"]].items():
        _field(path, gate, name, form, "result.gate.")
    _optional(path, result, "method", "text?", "result.")
    for name, fields in _LISTS.items():
        _optional(path, result, name, "list?", "result.")
        for index, row in enumerate(result.get(name) or ()):
            where = f"result.{name}[{index}]"
            if not isinstance(row, dict):
                raise BadData(f"{path}: {where} is {_short(row)}, expected an object")
            for field, form in fields.items():
                _field(path, row, field, form, f"{where}.")
    _optional(path, result, "speed", "map?", "result.")
    if result.get("speed"):
        _field(path, result["speed"], "runtimes", "map", "result.speed.")
        for runtime, row in result["speed"]["runtimes"].items():
            where = f"result.speed.runtimes.{runtime}"
            if not isinstance(row, dict):
                raise BadData(f"{path}: {where} is {_short(row)}, expected an object")
            for field in ("speedup", "images_per_second"):
                _field(path, row, field, "number", f"{where}.")


def _optional(path: Path, holder: Mapping[str, Any], name: str, form: str, where: str = "") -> None:
    if name in holder:
        _field(path, holder, name, form, where)


def _bench_row(path: Path, row: Mapping[str, Any], where: str) -> None:
    for name in ("p50", "p90", "p99"):
        _field(path, row["latency_ms"], name, "number?", f"{where}.latency_ms.")
    _optional(path, row["latency_ms"], "min", "number?", f"{where}.latency_ms.")
    for name in ("other_programs_cores", "stolen_cores"):
        _field(path, row["disturbance"], name, "number", f"{where}.disturbance.")
    for name in ("fraction", "limit_fraction", "achieved_gflops"):
        _field(path, row["roofline"], name, "number?", f"{where}.roofline.")
    for name in ("peak_gflops", "operations_per_byte"):
        _optional(path, row["roofline"], name, "number?", f"{where}.roofline.")
    _optional(path, row, "includes", "words", f"{where}.")
    _optional(path, row, "threads", "count?", f"{where}.")
    _optional(path, row, "scenario", "text", f"{where}.")
    _optional(path, row, "harness", "map?", f"{where}.")
    if row.get("harness") is not None:
        for name, form in (("scenario", "text"), ("valid", "flag"), ("reason", "text?")):
            _field(path, row["harness"], name, form, f"{where}.harness.")
    if row["error"] is not None:
        _field(path, row["error"], "message", "text", f"{where}.error.")
    elif row["images_per_second"] is None:
        raise BadData(f"{path}: {where} has neither a speed nor an error")


def _field(path: Path, holder: Mapping[str, Any], name: str, form: str, where: str = "") -> None:
    if name not in holder:
        raise BadData(f"{path}: '{where}{name}' is missing: no complete result")
    value = holder[name]
    if form == "words":
        good = isinstance(value, list) and all(isinstance(word, str) for word in value)
        form = "text"
    else:
        good = (value is None and form.endswith("?")) or _is(value, form.rstrip("?"))
    if not good:
        raise BadData(f"{path}: '{where}{name}' is {_short(value)}, expected {_WORDS[form.rstrip('?')]}")


def _is(value: Any, form: str) -> bool:
    if form == "text":
        return isinstance(value, str)
    if form == "flag":
        return isinstance(value, bool)
    if form == "map":
        return isinstance(value, dict)
    if form == "count":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if form == "number":
        return _number(value)
    if form == "signed":
        return _finite(value)
    if not isinstance(value, list):
        return False
    if form == "list":
        return True
    if form == "ends":
        return len(value) == 2 and all(map(_finite, value)) and value[0] <= value[1]
    if form == "pair":
        return len(value) == 2 and all(map(_number, value)) and 0 < value[0] <= value[1]
    return all(isinstance(part, list) and all(_number(time) and time > 0 for time in part) for part in value)


def _number(value: Any) -> bool:
    return _finite(value) and value >= 0


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what floating point holds
        return False


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"
