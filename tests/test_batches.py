"""Batches: order, contents, bad pictures, worker processes that die, and memory."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from resnet_onnx.data.batches import Batches
from resnet_onnx.data.datasets import PictureSet, from_arrays, open_dataset
from resnet_onnx.data.samples import sample_pictures
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import BadPicture, Unavailable, UsageError

SMALL = Preprocessing(image_size=32, resize=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty-seven pictures of one level each, in two classes."""
    for index in range(37):
        path = tmp_path / "set" / ("a" if index < 20 else "b") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (index, 2 * index, 3 * index)).save(path)
    return tmp_path / "set"


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"no picture")


@pytest.mark.parametrize("workers", [0, 2])
class TestOrder:
    def test_every_picture_once_in_order_with_its_label(self, folder: Path, workers: int) -> None:
        dataset = open_dataset(folder)
        with Batches(dataset, SMALL, batch_size=8, workers=workers) as found:
            taken = list(found)
        assert [len(batch.labels) for batch in taken] == [8, 8, 8, 8, 5]
        pictures = np.concatenate([batch.pictures for batch in taken])
        assert pictures.dtype == np.uint8
        assert pictures[:, 0, 0].tolist() == [[index, 2 * index, 3 * index] for index in range(37)]
        assert (pictures == pictures[:, :1, :1]).all()
        assert np.concatenate([batch.labels for batch in taken]).tolist() == [0] * 20 + [1] * 17
        assert [Path(name).stem for batch in taken for name in batch.names] == [f"{i:02d}" for i in range(37)]
        assert np.concatenate([batch.indices for batch in taken]).tolist() == list(range(37))

    def test_a_bad_picture_stops_by_name(self, folder: Path, workers: int) -> None:
        spoil(folder, "b/21.png")
        seen = []
        with (
            pytest.raises(BadPicture, match=r"b/21\.png: not a picture"),
            Batches(open_dataset(folder), SMALL, batch_size=4, workers=workers) as found,
        ):
            seen.extend(batch.names for batch in found)
        assert len(seen) == 5  # the twenty pictures before came whole

    def test_bad_pictures_are_skipped_counted_and_named(self, folder: Path, workers: int) -> None:
        spoil(folder, "a/00.png", "a/19.png", "b/20.png", "b/36.png")
        with Batches(open_dataset(folder), SMALL, batch_size=8, workers=workers, skip_bad=True) as found:
            taken = list(found)
        assert [len(batch.labels) for batch in taken] == [8, 8, 8, 8, 1]
        levels = np.concatenate([batch.pictures[:, 0, 0, 0] for batch in taken]).tolist()
        assert levels == [index for index in range(37) if index not in (0, 19, 20, 36)]
        assert np.concatenate([batch.indices for batch in taken]).tolist() == levels
        assert [skipped.image for skipped in found.skipped] == ["a/00.png", "a/19.png", "b/20.png", "b/36.png"]
        assert [skipped for batch in taken for skipped in batch.skipped] == found.skipped
        assert "not a picture" in found.skipped[0].reason

    def test_nothing_but_bad_pictures(self, folder: Path, workers: int) -> None:
        spoil(folder, *(f"{'a' if index < 20 else 'b'}/{index:02d}.png" for index in range(37)))
        with Batches(open_dataset(folder), SMALL, batch_size=8, workers=workers, skip_bad=True) as found:
            assert list(found) == []
        assert len(found.skipped) == 37

    def test_a_zip_is_read_in_place(self, shared_data: Path, workers: int) -> None:
        photos = open_dataset(shared_data / "imagenet-photos-100.zip").subset(range(20))
        with Batches(photos, Preprocessing(), batch_size=20, workers=workers) as found:
            batch = next(found)
        assert batch.pictures.shape == (20, 224, 224, 3)
        assert 60 < batch.pictures.mean() < 180
        assert len(np.unique(batch.pictures.reshape(20, -1).mean(axis=1))) == 20

    def test_leaving_early_leaves_no_process(self, folder: Path, workers: int) -> None:
        with Batches(open_dataset(folder), SMALL, batch_size=2, workers=workers) as found:
            next(found)
            running = _worker_processes()
        found.close()
        assert len(running) == workers
        psutil.wait_procs(running, timeout=10)
        assert not any(process.is_running() for process in running)


def _worker_processes() -> list[psutil.Process]:
    """Decoding processes: children of the server process, which is our child."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if (parent := process.parent()) is not None and parent.pid != os.getpid()
    ]


class TestWorkers:
    def test_a_set_much_larger_than_what_is_on_its_way_comes_whole(self, shared_data: Path) -> None:
        dataset = open_dataset(shared_data / "cifar10-jpeg.zip").subset(range(0, 10_000, 4))
        with Batches(dataset, SMALL, batch_size=10, workers=2) as found:
            indices = [index for batch in found for index in batch.indices]
        assert indices == list(range(2500))

    def test_a_killed_worker_is_an_error(self, shared_data: Path) -> None:
        dataset = open_dataset(shared_data / "imagenet-photos-100.zip").subset(np.arange(2000) % 100)
        with Batches(dataset, Preprocessing(), batch_size=8, workers=2) as found:
            next(found)
            _worker_processes()[0].send_signal(signal.SIGKILL)
            with pytest.raises(Unavailable, match="a worker process that decodes pictures died"):
                for _ in found:
                    pass

    def test_sets_in_memory_start_none(self) -> None:
        dataset = from_arrays("mine", sample_pictures(5, SMALL))
        with Batches(dataset, SMALL, batch_size=4, workers=2) as found:
            assert len(next(found).labels) == 4
            assert _worker_processes() == []

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_a_program_that_is_ended_leaves_no_worker(
        self, shared_data: Path, tmp_path: Path, how: signal.Signals
    ) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
                import sys, time
                import numpy as np
                from resnet_onnx.data.batches import Batches
                from resnet_onnx.data.datasets import open_dataset
                from resnet_onnx.models.preprocessing import Preprocessing
                if __name__ == "__main__":
                    photos = open_dataset(sys.argv[1]).subset(np.arange(5000) % 100)
                    with Batches(photos, Preprocessing(), batch_size=8, workers=2) as found:
                        next(found)
                        print("ready", flush=True)
                        time.sleep(60)
            """)
        )
        with subprocess.Popen(
            [sys.executable, str(script), str(shared_data / "imagenet-photos-100.zip")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            family = psutil.Process(program.pid).children(recursive=True)
            assert len(family) >= 3
            if how == signal.SIGINT:
                os.killpg(program.pid, how)  # as Ctrl-C does: to the workers too
            else:
                program.send_signal(how)
            _, complaints = program.communicate(timeout=20)
            assert complaints.count("Traceback") == (how == signal.SIGINT)  # the program's own
        psutil.wait_procs(family, timeout=15)
        assert [process for process in family if process.is_running()] == []


def test_memory_does_not_grow_with_the_number_of_pictures(shared_data: Path) -> None:
    photos = open_dataset(shared_data / "cifar10-jpeg.zip")
    process = psutil.Process()

    def pass_over(dataset: PictureSet) -> int:
        highest = 0
        with Batches(dataset, SMALL, batch_size=64) as found:
            for number, _ in enumerate(found):
                if number % 8 == 0:
                    highest = max(highest, process.memory_info().rss)
        return highest

    pass_over(photos.subset(range(640)))
    few = pass_over(photos.subset(range(640)))
    assert pass_over(photos.subset(range(6400))) < 1.05 * few


def test_bad_arguments() -> None:
    dataset = from_arrays("mine", sample_pictures(2, SMALL))
    with pytest.raises(UsageError, match="batch size must be at least 1, not 0"):
        Batches(dataset, SMALL, batch_size=0)
    with pytest.raises(UsageError, match="workers must be 0 or more, not -1"):
        Batches(dataset, SMALL, batch_size=1, workers=-1)


class TestSamples:
    def test_are_distinct_and_depend_on_the_seed_only(self) -> None:
        few, many = sample_pictures(6, SMALL, seed=3), sample_pictures(40, SMALL, seed=3)
        assert few.shape == (6, 32, 32, 3)
        assert few.dtype == np.uint8
        assert np.array_equal(many[:6], few)
        assert len(np.unique(many.reshape(40, -1), axis=0)) == 40
        assert not np.array_equal(few, sample_pictures(6, SMALL, seed=4))

    def test_show_real_colours(self) -> None:
        pictures = sample_pictures(16, Preprocessing())
        assert pictures.shape == (16, 224, 224, 3)
        channels = pictures.reshape(-1, 3).mean(axis=0)
        assert np.ptp(channels) > 5  # so that swapped channels show
        assert pictures.std() > 40

    def test_bad_count(self) -> None:
        with pytest.raises(UsageError, match="at least 1, not 0"):
            sample_pictures(0, SMALL)


def test_digits_are_scaled_up() -> None:
    with Batches(open_dataset("digits"), SMALL, batch_size=64) as found:
        batch = next(found)
    assert batch.pictures.shape == (64, 32, 32, 3)
    small = np.stack([np.asarray(open_dataset("digits").read(index).data) for index in range(8)])
    blocks = batch.pictures[:8].reshape(8, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.95


def test_prepared_pictures_do_not_depend_on_the_workers(shared_data: Path) -> None:
    photos = open_dataset(shared_data / "imagenet-photos-100.zip").subset(range(0, 100, 7))
    taken = []
    for workers in (0, 1, 2):
        with Batches(photos, Preprocessing(), batch_size=4, workers=workers) as found:
            taken.append(np.concatenate([batch.pictures for batch in found]))
    assert np.array_equal(taken[0], taken[1])
    assert np.array_equal(taken[0], taken[2])
    assert Image.open(io.BytesIO(bytes(photos.read(0).data))).size  # the set is still readable here
