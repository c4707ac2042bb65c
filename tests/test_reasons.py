"""What a library says when it refuses something: shown without its source places, and never cut before its end."""

from __future__ import annotations

import pytest

from runtimes.errors import reason

_SIGNATURE = (
    "/onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const "
    "onnxruntime::PathString&, const std::unordered_map<std::__cxx11::basic_string<char>, int>*, bool (*)(int), const "
    "onnxruntime::logging::Logger&, const onnxruntime::ModelOptions&)"
)

SAID = {
    "ONNX Runtime's status, path and signature": (
        f"[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/my models/net.onnx failed:{_SIGNATURE} Unsupported "
        "model IR version: 14, max supported IR version: 13\n\n",
        "Unsupported model IR version: 14, max supported IR version: 13",
    ),
    "ONNX's assertion": (
        "/project/onnx/version_converter/adapters/transformers.h:35: operator(): Assertion `node->i(attr) == value` "
        "failed: Attribute spatial must have value 1",
        "Attribute spatial must have value 1",
    ),
    "OpenVINO's exception": (
        "Exception from src/inference/src/cpp/core.cpp:107:\nCheck 'rank' failed at src/core/conv.cpp:12:\nThe rank "
        "must be known",
        "Check 'rank' The rank must be known",
    ),
    "plain words": ("Node (fc) Op (Gemm): 3 != 4", "Node (fc) Op (Gemm): 3 != 4"),
    "nothing but a place": ("/src/a.cc:12 ", "/src/a.cc:12"),
}


@pytest.mark.parametrize("what", SAID)
def test_places_in_the_sources_of_a_library_are_left_out(what: str) -> None:
    said, shown = SAID[what]
    assert reason(RuntimeError(said)) == shown


def test_a_long_reason_loses_its_middle() -> None:
    said = f"Conversion failed. {'node and again ' * 100}Current official support for domain ai.onnx is till opset 26."
    shown = reason(said)
    assert len(shown) <= 310
    assert shown.startswith("Conversion failed. node and again")
    assert " … " in shown
    assert shown.endswith("Current official support for domain ai.onnx is till opset 26.")


def test_an_error_without_words_is_named() -> None:
    assert reason(MemoryError()) == "MemoryError"
    assert reason("") == ""


def test_a_hostile_text_takes_no_time() -> None:
    for said in ("-" * 200_000, "a.cc:1 " + "a(" * 100_000, "Load model from " * 20_000, "a.cc:1 " + "a::b " * 40_000):
        assert len(reason(said)) <= 310
