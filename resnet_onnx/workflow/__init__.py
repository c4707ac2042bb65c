"""The only joiner: catalog name → checkpoint → ONNX → precision → engine → open runtime.

Everything a command needs to know about MODEL is settled here once: ``resolve`` turns what the user named into a
``Model``; ``source`` gives the form of it that a runtime opens, exporting or building into the cache where needed.
"""

from resnet_onnx.workflow.accuracy import check_scales, evaluate_on, predict_on
from resnet_onnx.workflow.decoding import decoding
from resnet_onnx.workflow.feeds import feeds_of, sample_feeds, specs
from resnet_onnx.workflow.measuring import Measurement, MeasuringPlan, batch_sizes, measure_model
from resnet_onnx.workflow.onnx_form import export, graph_path, onnx_path
from resnet_onnx.workflow.opening import build_from_network, runnable, source, tuned
from resnet_onnx.workflow.pairs import PairsPlan, compare_models
from resnet_onnx.workflow.parity import ParityPlan, check_parity, gold_reference, localize_parity
from resnet_onnx.workflow.precision import ConversionConfig, build_lowered, convert, default_output, export_half
from resnet_onnx.workflow.request import Model, OnnxForm, Request, check_request, insist_on_trained
from resnet_onnx.workflow.resolving import initial_state, resolve, training_entry
from resnet_onnx.workflow.results import saved_comparison, saved_result

__all__ = [
    "ConversionConfig",
    "Measurement",
    "MeasuringPlan",
    "Model",
    "OnnxForm",
    "PairsPlan",
    "ParityPlan",
    "Request",
    "batch_sizes",
    "build_from_network",
    "build_lowered",
    "check_parity",
    "check_request",
    "check_scales",
    "compare_models",
    "convert",
    "decoding",
    "default_output",
    "evaluate_on",
    "export",
    "export_half",
    "feeds_of",
    "gold_reference",
    "graph_path",
    "initial_state",
    "insist_on_trained",
    "localize_parity",
    "measure_model",
    "onnx_path",
    "predict_on",
    "resolve",
    "runnable",
    "sample_feeds",
    "saved_comparison",
    "saved_result",
    "source",
    "specs",
    "training_entry",
    "tuned",
]
