"""Fixtures for all tests: shared data, a private cache, small models."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# A busy machine is not a failure: examples count, not the time that they take.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs so, and the programs that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps every test out of the user's cache; one cache serves the whole run of a worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_ONNX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures and trained weights; skips where it is absent."""
    folder = Path(os.environ.get("RESNET_ONNX_DATA") or ROOT.parent / "shared" / "data").expanduser()
    if not (folder / "cifar-resnet20.th").is_file():
        pytest.skip(f"no real data at {folder} (set $RESNET_ONNX_DATA)")
    return folder
