"""The fixture ``assert_parity`` for a user's own tests; pytest finds it through the package's entry point.

It loads with every pytest run on a machine where this package is installed, so that it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from resnet_onnx.parity.compare import ParityReport


@pytest.fixture(scope="session")
def assert_parity() -> Callable[..., ParityReport]:
    """``assert_parity(model, gold=None, runtimes="ort-cpu", …)``: see ``resnet_onnx.testing.assert_parity``."""
    from resnet_onnx import testing

    return testing.assert_parity
