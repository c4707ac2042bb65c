"""Python imports this at its start where it finds it: puts the stand-in for TensorRT into a test's worker process."""

import os

if os.environ.get("RESNET_ONNX_TEST_STAND_IN"):
    from support import fake_tensorrt

    fake_tensorrt.install(setattr)
