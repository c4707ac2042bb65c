"""What only a GPU can show. Without one every test here skips and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gpu_models import FAMILY, GPU_RUNTIMES, Networks, available

from runtimes import nvidia
from runtimes.errors import RuntimeUnavailable

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if not ours:
        return
    try:
        nvidia.gpus()
        skip = None
    except RuntimeUnavailable as missing:
        skip = pytest.mark.skip(reason=missing.message)
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if skip is not None:
            item.add_marker(skip)


@pytest.fixture(params=GPU_RUNTIMES)
def runtime_name(request: pytest.FixtureRequest) -> str:
    """Every runtime that computes on a GPU; skips with the reason where it can't."""
    return available(request.param)


@pytest.fixture(params=FAMILY)
def family_name(request: pytest.FixtureRequest) -> str:
    """The runtimes that open engines."""
    return available(request.param)


@pytest.fixture(scope="session")
def networks() -> Networks:
    """Catalog networks for all tests of this folder; they and their engines lie in the test run's own cache."""
    return Networks()
