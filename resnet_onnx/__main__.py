"""``python -m resnet_onnx`` is the same program; ``torchrun -m resnet_onnx`` needs it."""

from resnet_onnx.cli.main import entry

if __name__ == "__main__":
    entry()
