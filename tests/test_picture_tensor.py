"""One resize and one way from a picture to a tensor: torchvision's bytes, with or without the wheel, and without us."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnet_onnx.data.feeds import PictureInput
from resnet_onnx.data.pictures import decode
from resnet_onnx.data.transforms import prepare
from resnet_onnx.models import picture_tensor
from resnet_onnx.models.picture_tensor import pixels, resize, tensor
from resnet_onnx.models.preprocessing import Layout, Preprocessing
from runtimes.spec import TensorSpec

SHAPES = [(375, 500), (500, 333), (64, 64), (40, 31), (1, 7), (7, 1), (3, 24), (255, 257), (700, 300), (1100, 1500)]
"""Heights and widths that are scaled down and up, by whole and by other factors, and hardly at all."""


def plain(preprocessing: Preprocessing, layout: Layout = "NCHW", channels: str = "RGB") -> dict[str, Any]:
    """What stands in a bundle."""
    return {
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
        "crop": preprocessing.image_size,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "layout": layout,
        "channels": channels,
    }


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture in which every pixel counts."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvision_resize(picture: NDArray[np.uint8], side: int, interpolation: str) -> NDArray[np.uint8]:
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    found = F.resize(pixels, [side], interpolation=InterpolationMode(interpolation), antialias=True)
    return found.permute(1, 2, 0).numpy()


def photos(shared_data: Path) -> list[bytes]:
    with zipfile.ZipFile(shared_data / "imagenet-photos-100.zip") as archive:
        return [archive.read(name) for name in sorted(archive.namelist()) if not name.endswith("/")]


@pytest.fixture(params=["wheel", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes: cykooz-resizer, and NumPy where it is not installed."""
    if request.param == "wheel":
        pytest.importorskip("cykooz_resizer", reason="cykooz-resizer has no wheel for this platform")
    else:
        monkeypatch.setattr(picture_tensor, "_wheel", lambda: None)
    return str(request.param)


@pytest.mark.usefixtures("engine")
class TestResize:
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_equals_torchvisions_bit_for_bit(self, interpolation: str) -> None:
        for index, (height, width) in enumerate(SHAPES):
            picture = noise(height, width, index)
            for side in (32, 100, 256):
                found = resize(picture, side, interpolation)
                expected = torchvision_resize(picture, side, interpolation)
                assert np.array_equal(found, expected), (height, width, side)
                for size in (side, side - 1, side * 7 // 8):
                    top, left = (round((extent - size) / 2) for extent in expected.shape[:2])
                    cut = resize(picture, side, interpolation, size)
                    assert np.array_equal(cut, expected[top : top + size, left : left + size]), (height, width, size)
                    assert cut.flags.c_contiguous

    def test_equals_torchvisions_on_photos(self, shared_data: Path, engine: str) -> None:
        for photo in photos(shared_data)[:: 1 if engine == "wheel" else 10]:
            picture = decode(photo, "a")
            assert np.array_equal(resize(picture, 256, "bilinear"), torchvision_resize(picture, 256, "bilinear"))

    def test_contrast_is_clipped_not_wrapped(self) -> None:
        edges = np.zeros((60, 60, 3), np.uint8)
        edges[:, ::7] = edges[20:40] = 255
        assert np.array_equal(resize(edges, 47, "bicubic"), torchvision_resize(edges, 47, "bicubic"))

    def test_what_is_made_can_be_written_to(self) -> None:
        picture = noise(20, 30)
        picture.flags.writeable = False
        assert resize(picture[::-1], 10, "bilinear").flags.writeable


def resampled(jpeg: bytes, factors: int) -> bytes:
    """Says of a square JPEG that its luminance has other sampling factors with as many blocks to a unit.

    Pillow does not write these samplings. The blocks land elsewhere, which a decoder does not mind.
    """
    at = jpeg.index(b"\xff\xc0") + 11  # ITU-T T.81, B.2.2
    return jpeg[:at] + bytes([factors]) + jpeg[at + 1 :]


def modes() -> dict[str, bytes]:
    """Files of every format and mode that is read."""
    y, x = np.mgrid[0:75, 0:101]
    scene = Image.fromarray(np.stack([2 * x, 3 * y, 255 - 2 * x], axis=2).astype(np.uint8))
    clear, exif = scene.copy(), Image.Exif()
    clear.putalpha(Image.fromarray((2 * x).astype(np.uint8)))
    exif[0x0112] = 6
    files = {
        "JPEG progressive": encoded(scene, "JPEG", progressive=True),
        "JPEG grey": encoded(scene.convert("L"), "JPEG"),
        "JPEG CMYK": encoded(scene.convert("CMYK"), "JPEG"),
        "JPEG restarts": encoded(scene, "JPEG", restart_marker_blocks=4),
        "JPEG exif nonsense": encoded(scene, "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + bytes(64)),
        "MPO": encoded(scene, "MPO", save_all=True, append_images=[scene]),
        "PNG 16 bit": encoded(Image.fromarray((x * 257).astype(np.uint16)), "PNG"),
        "PNG palette": encoded(scene.quantize(16), "PNG", transparency=0),
        "TIFF float": encoded(Image.fromarray((x / 100).astype(np.float32)), "TIFF"),
        "PPM": encoded(scene, "PPM"),
        "GIF": encoded(scene, "GIF"),
        "BMP": encoded(scene, "BMP"),
        "AVIF": encoded(scene, "AVIF"),
    }
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for quality in (30, 75, 95):
            files[f"JPEG {subsampling} {quality}"] = encoded(scene, "JPEG", subsampling=subsampling, quality=quality)
    square = scene.resize((96, 96))
    files["JPEG 4:4:0"] = resampled(encoded(square, "JPEG", subsampling="4:2:2"), 0x12)
    files["JPEG 4:1:1"] = resampled(encoded(square, "JPEG", subsampling="4:2:0"), 0x41)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        files[f"PNG {mode}"] = encoded(clear.convert(mode), "PNG")
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        files[f"{format} turned"] = encoded(scene, format, exif=exif)
    return files


class TestTensor:
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("which", modes())
    def test_equals_the_programs_for_every_mode(self, which: str, tmp_path: Path) -> None:
        data, preprocessing = modes()[which], Preprocessing(image_size=48, resize=56)
        (tmp_path / "picture").write_bytes(data)
        taken = PictureInput(spec=TensorSpec("x", np.dtype(np.float32), ("n", 3, 48, 48)), layout="NCHW", size=48)
        expected = taken.feeds(prepare(decode(data, which), preprocessing)[None], preprocessing)["x"]
        found = tensor([data, tmp_path / "picture", Image.open(io.BytesIO(data))], plain(preprocessing))
        assert found.dtype == np.float32
        for each in found:
            assert np.array_equal(each, expected[0])

    def test_equals_the_programs_on_photos(self, shared_data: Path) -> None:
        preprocessing = Preprocessing()
        for photo in photos(shared_data):
            expected = preprocessing.normalise(prepare(decode(photo, "a"), preprocessing)[None])
            assert np.array_equal(tensor([photo], plain(preprocessing)), expected)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    def test_has_the_models_type_layout_and_order_of_channels(self, layout: Layout, dtype: type) -> None:
        pictures, preprocessing = np.stack([noise(8, 8, seed) for seed in range(2)]), Preprocessing(
            image_size=8, resize=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3)
        )  # fmt: skip
        expected = pictures if dtype is np.uint8 else (pictures / 255 - preprocessing.mean) / preprocessing.std
        for channels in ("RGB", "BGR"):
            found = tensor(list(pictures), plain(preprocessing, layout, channels), dtype)
            assert found.dtype == dtype
            assert found.flags.c_contiguous
            shown = found if layout == "NHWC" else found.transpose(0, 2, 3, 1)
            wanted = expected if channels == "RGB" else expected[..., ::-1]
            np.testing.assert_allclose(shown.astype(np.float64), wanted, atol=0 if dtype is np.uint8 else 2e-3)

    def test_the_file_works_by_itself_and_loads_nothing_of_ours(self, tmp_path: Path) -> None:
        source = Path(picture_tensor.__file__)
        (tmp_path / "preprocessing.py").write_bytes(source.read_bytes())
        picture, preprocessing = noise(60, 80), Preprocessing(image_size=32, resize=40)
        Image.fromarray(picture).save(tmp_path / "picture.png")
        program = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            f"sys.modules['torch'] = sys.modules['resnet_onnx'] = sys.modules['runtimes'] = None\n"
            f"import numpy, preprocessing\n"
            f"found = preprocessing.tensor([{str(tmp_path / 'picture.png')!r}], {plain(preprocessing)!r})\n"
            f"numpy.save({str(tmp_path / 'found.npy')!r}, found)"
        )
        subprocess.run([sys.executable, "-I", "-c", program], check=True)
        expected = preprocessing.normalise(prepare(picture, preprocessing)[None])
        assert np.array_equal(np.load(tmp_path / "found.npy"), expected)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "floats": (lambda: pixels(np.zeros((4, 4, 3))), r"expected uint8 \[height, width, 3\], not float64 \[4, 4, 3\]"),
    "grey array": (lambda: pixels(np.zeros((4, 4), np.uint8)), r"not uint8 \[4, 4\]"),
    "channels first": (lambda: pixels(np.zeros((3, 4, 4), np.uint8)), r"not uint8 \[3, 4, 4\]"),
    "another filter": (lambda: resize(noise(4, 4), 2, "lanczos"), "bilinear or bicubic, not 'lanczos'"),
    "crop too large": (lambda: resize(noise(4, 4), 2, "bilinear", 3), "resize 2 and crop 3"),
    "another layout": (
        lambda: tensor([noise(4, 4)], {**plain(Preprocessing(image_size=4, resize=4)), "layout": "CHWN"}),
        "NCHW or NHWC",
    ),
    "large picture": (lambda: pixels(encoded(Image.new("1", (9_500, 9_500)), "PNG")), "9500×9500"),
}


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("which", REFUSED)
def test_refused(which: str) -> None:
    made, message = REFUSED[which]
    with pytest.raises(ValueError, match=message):
        made()
