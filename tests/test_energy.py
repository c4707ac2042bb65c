"""Energy by the machine's own counters: read where they can be, and why not where they can't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_cores import row

from resnet_onnx.bench import energy, record
from resnet_onnx.bench.energy import EnergyMeter
from resnet_onnx.bench.worker import Opened
from runtimes import nvidia


def package(root: Path, number: int, energy_uj: int, most_uj: int = 10**9) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{most_uj}\n")
    return folder


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_packages_are_added_up_and_begin_anew_at_their_range(powercap: Path) -> None:
    package(powercap, 0, 5_000_000)
    package(powercap, 1, 999_000_000)
    (powercap / "intel-rapl:0:0").mkdir()  # the cores of a package are in it already
    meter = EnergyMeter(None)
    assert (meter.source, meter.unreadable) == ("RAPL", "")
    before = meter.read()
    package(powercap, 0, 8_000_000)
    package(powercap, 1, 1_000_000)
    assert meter.since(before) == pytest.approx(3 + 2)
    assert meter.since(()) is None


def test_what_can_not_be_read_says_why(powercap: Path) -> None:
    assert "has no counters: a virtual machine" in EnergyMeter(None).unreadable
    folder = package(powercap, 0, 1)
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").mkdir()  # as unreadable to root as a file without permission is to others
    meter = EnergyMeter(None)
    assert "intel-rapl:0/energy_uj: Is a directory" in meter.unreadable
    assert (meter.read(), meter.since((1.0,))) == ((), None)


def test_a_gpu_counts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([100.0, 100.0, 130.0])
    monkeypatch.setattr(nvidia, "total_energy_j", lambda gpu: next(counted))
    meter = EnergyMeter(object())  # type: ignore[arg-type]
    assert meter.source == "NVML"
    assert meter.since(meter.read()) == 30.0
    monkeypatch.setattr(nvidia, "total_energy_j", lambda gpu: None)
    assert "no counter of its energy" in EnergyMeter(object()).unreadable  # type: ignore[arg-type]


def test_a_row_says_what_a_picture_takes_or_why_that_is_not_known() -> None:
    from dataclasses import replace

    found = row(np.full(400, 1e6))  # 4,000 pictures a second
    assert record.energy(found) is None
    opened = Opened(version="1", device="cpu", recorded={}, placement={}, inputs=(), energy="RAPL")
    found.opened = opened
    found.slices = [replace(part, energy_j=40.0, spent_s=2.0) for part in found.slices]
    measured = record.energy(found)
    assert measured is not None
    assert (measured.power_w, measured.joules_per_image) == (pytest.approx(20.0), pytest.approx(20 / 4000))
    found.opened = replace(opened, energy_unreadable="permission denied")
    unread = record.energy(found)
    assert unread is not None
    assert (unread.power_w, unread.reason) == (None, "permission denied")
