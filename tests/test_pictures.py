"""Decoding: every size and mode of picture, hostile ones refused by name, decisions equal to a Pillow pipeline's."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.data.pictures import MAX_PIXELS, decode
from resnet_onnx.data.transforms import prepare
from resnet_onnx.models.preprocessing import Preprocessing
from runtimes.errors import BadPicture


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Smooth enough for JPEG, different in every corner and channel."""
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([4 * x % 256, 5 * y, 255 - 2 * x], axis=2).astype(np.uint8)
    return Image.fromarray(pixels)


class TestModes:
    def test_lossless_rgb_is_unchanged(self, scene: Image.Image) -> None:
        for format in ("PNG", "BMP", "PPM", "TIFF"):
            assert np.array_equal(decode(encoded(scene, format), "a"), np.asarray(scene)), format

    def test_grey_is_repeated(self, scene: Image.Image) -> None:
        grey = scene.convert("L")
        for format in ("PNG", "JPEG"):
            found = decode(encoded(grey, format), "a")
            assert found.shape == (48, 64, 3)
            assert np.array_equal(found[..., 0], found[..., 1])
            assert np.array_equal(found[..., 0], found[..., 2])
        assert np.array_equal(decode(encoded(grey, "PNG"), "a")[..., 0], np.asarray(grey))

    def test_alpha_is_dropped_as_in_the_published_pipelines(self, scene: Image.Image) -> None:
        clear = scene.copy()
        clear.putalpha(3)
        assert np.array_equal(decode(encoded(clear, "PNG"), "a"), np.asarray(scene))
        grey = scene.convert("LA")
        assert np.array_equal(decode(encoded(grey, "PNG"), "a")[..., 1], np.asarray(scene.convert("L")))

    def test_cmyk_jpeg_has_the_colours_of_its_rgb_original(self, scene: Image.Image) -> None:
        found = decode(encoded(scene.convert("CMYK"), "JPEG", quality=98), "a")
        assert np.abs(found.astype(int) - np.asarray(scene)).mean() < 4

    @pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
    def test_palette(self, scene: Image.Image, transparency: int | bytes | None) -> None:
        paletted = scene.quantize(16)
        options = {} if transparency is None else {"transparency": transparency}
        expected = np.asarray(paletted.convert("RGB"))
        assert np.array_equal(decode(encoded(paletted, "PNG", **options), "a"), expected)

    def test_sixteen_bit_grey_is_scaled_not_clipped(self) -> None:
        wide = np.array([[0, 257, 32896, 65535]], np.uint16)
        found = decode(encoded(Image.fromarray(wide), "PNG"), "a")
        assert found[0, :, 0].tolist() == [0, 1, 128, 255]

    def test_float_grey_tiff(self) -> None:
        levels = np.array([[0.0, 0.5, 1.0]], np.float32)
        assert decode(encoded(Image.fromarray(levels), "TIFF"), "a")[0, :, 2].tolist() == [0, 128, 255]
        with pytest.raises(BadPicture, match=r"run from -1 to 1"):
            decode(encoded(Image.fromarray(levels * 2 - 1), "TIFF"), "a")

    def test_one_bit(self) -> None:
        dots = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
        assert decode(encoded(dots, "PNG"), "a")[..., 0].tolist() == [[0, 255], [255, 0]]

    def test_first_frame_of_an_animation(self, scene: Image.Image) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert decode(data, "a")[0, 0].tolist() == [255, 0, 0]

    def test_several_pictures_in_one_jpeg_file(self, scene: Image.Image) -> None:
        data = encoded(scene, "MPO", save_all=True, append_images=[scene])
        assert np.array_equal(decode(data, "a"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    def test_a_png_that_is_called_jpeg_is_decoded_by_what_it_is(self, scene: Image.Image) -> None:
        # ILSVRC2012 itself has one: n02105855_2933.JPEG
        assert np.array_equal(decode(encoded(scene, "PNG"), "n02105855_2933.JPEG"), np.asarray(scene))

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, scene: Image.Image, format: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 100} if format in ("JPEG", "WEBP") else {}
        data = encoded(scene, format, exif=exif, **options)
        upright: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1),
            7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
            8: lambda a: np.rot90(a, 1),
        }[orientation]
        expected = upright(np.asarray(scene)).astype(int)
        found = decode(data, "a")
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 3

    def test_nonsense_exif_does_not_stop_a_good_picture(self, scene: Image.Image) -> None:
        data = encoded(scene, "JPEG", exif=b"Exif\x00\x00" + b"MM\x00\x2a\xff\xff\xff\xff" + bytes(range(64)))
        assert decode(data, "a").shape == (48, 64, 3)


def png_header(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def jpeg_with_size(scene: Image.Image, width: int, height: int) -> bytes:
    data = bytearray(encoded(scene, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


HOSTILE: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "empty file": (lambda s: b"", "empty"),
    "text called .jpg": (lambda s: b"dear model, I am a cat\n" * 20, "not a picture of a known format"),
    "page of html": (lambda s: b"<!DOCTYPE html><html>404</html>", "not a picture of a known format"),
    "svg": (lambda s: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture of a known format"),
    "format that is not on the list": (lambda s: encoded(s, "ICO"), "not a picture of a known format"),
    "postscript, which would start a program": (lambda s: encoded(s, "EPS"), "not a picture of a known format"),
    "png bomb of ten gigapixels": (lambda s: png_header(100_000, 100_000), "decompression bomb"),
    "png just above the limit": (lambda s: png_header(9_460, 9_460), "decompression bomb"),
    "png of the largest size there is": (lambda s: png_header(2**31 - 1, 2**31 - 1), "bomb|header can't be read"),
    "jpeg of 65,500 squared": (lambda s: jpeg_with_size(s, 65_500, 65_500), "decompression bomb"),
    "ppm bomb in eighteen bytes": (lambda s: b"P6 60000 60000 255\n", "decompression bomb"),
    "bmp bomb": (
        lambda s: encoded(s, "BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + encoded(s, "BMP")[26:],
        "decompression bomb",
    ),
    "jpeg larger than its data": (lambda s: jpeg_with_size(s, 6_400, 4_800), "damaged or incomplete"),
    "jpeg without pixels": (lambda s: jpeg_with_size(s, 0, 0), "nothing to decode|not a picture"),
    "png without pixels": (lambda s: png_header(0, 0), "nothing to decode|header can't be read|not a picture"),
    "jpeg of markers only": (lambda s: b"\xff\xd8\xff\xd9", "not a picture|header can't be read|damaged"),
    "jpeg magic and noise": (
        lambda s: b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(5000),
        "not a picture|header can't be read|damaged",
    ),
    "png with a flipped bit in its pixels": (lambda s: flipped(encoded(s, "PNG"), 60), "damaged|header can't"),
    "png with too few pixels": (lambda s: png_header(640, 480, b"\0" * 1000), "damaged or incomplete"),
    "jpeg cut and closed with an end marker": (
        lambda s: encoded(s, "JPEG")[:-150] + b"\xff\xd9",
        "data ends before the picture does",
    ),
    "truncated png": (lambda s: encoded(s, "PNG")[:-40], "damaged or incomplete"),
    "truncated bmp": (lambda s: encoded(s, "BMP")[:1000], "damaged or incomplete"),
    "truncated ppm": (lambda s: encoded(s, "PPM")[:1000], "damaged or incomplete"),
    "truncated gif": (lambda s: encoded(s, "GIF")[:900], "damaged or incomplete"),
    "truncated tiff": (lambda s: encoded(s, "TIFF")[:1000], "damaged|header can't|not a picture"),
    "truncated webp": (lambda s: encoded(s, "WEBP", lossless=True)[:-60], "damaged|header can't|not a picture"),
    "truncated cmyk jpeg": (lambda s: encoded(s.convert("CMYK"), "JPEG")[:-200], "damaged or incomplete"),
    "truncated progressive jpeg": (lambda s: encoded(s, "JPEG", progressive=True)[:-100], "damaged or incomplete"),
}


class TestHostile:
    @pytest.mark.parametrize("which", HOSTILE)
    def test_is_refused_by_name(self, scene: Image.Image, which: str) -> None:
        make, expected = HOSTILE[which]
        with pytest.raises(BadPicture, match=expected) as refused:
            decode(make(scene), "holiday.jpg")
        assert refused.value.message.startswith("holiday.jpg: ")
        assert refused.value.exit_code == 2
        assert "\n" not in refused.value.message
        assert ".cpp" not in refused.value.message

    def test_a_jpeg_cut_anywhere_is_refused(self, shared_data: Path) -> None:
        with zipfile.ZipFile(shared_data / "imagenet-photos-100.zip") as archive:
            photos = [archive.read(name) for name in sorted(archive.namelist())[:5]]
        for photo in photos:
            for cut in [*np.linspace(1, len(photo) - 1, 20).astype(int), len(photo) - 2]:
                with pytest.raises(BadPicture, match=r"^photo\.jpg: "):
                    decode(photo[:cut], "photo.jpg")

    def test_a_jpeg_cut_and_closed_again_is_refused(self, shared_data: Path) -> None:
        with zipfile.ZipFile(shared_data / "imagenet-photos-100.zip") as archive:
            photos = [archive.read(name) for name in sorted(archive.namelist())[:10]]
        for photo in photos:
            for share in (0.3, 0.6, 0.9, 0.97):
                with pytest.raises(BadPicture, match=r"^photo\.jpg: "):
                    decode(photo[: int(share * len(photo))] + b"\xff\xd9", "photo.jpg")

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
    def test_a_whole_picture_in_middle_grey_is_not_taken_for_a_cut_one(
        self, mode: str, options: dict[str, int]
    ) -> None:
        grey = Image.new(mode, (100, 75), 128 if mode == "L" else (128, 128, 128))
        thumbnail = b"Exif\x00\x00" + encoded(grey, "JPEG")
        for extra in ({}, {"exif": thumbnail}):
            data = encoded(grey, "JPEG", **options, **extra)
            assert (decode(data, "grey.jpg") == 128).all()
            assert (decode(data + b"\0" * 9, "grey.jpg") == 128).all()

    def test_the_bomb_is_refused_before_any_pixel_is_made(self) -> None:
        import tracemalloc

        bomb = png_header(9_500, 9_500, b"\0" * (9_500 * 3 + 1) * 9_500)  # really unpacks to 270 MB
        tracemalloc.start()
        with pytest.raises(BadPicture, match="bomb"):
            decode(bomb, "bomb.png")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000

    def test_the_limit_does_not_hang_on_pillows_global(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(BadPicture, match=f"pictures of up to {MAX_PIXELS:,} are decoded"):
            decode(png_header(9_500, 9_500), "big.png")

    def test_any_flipped_byte_decodes_or_is_refused_without_another_error(self, scene: Image.Image) -> None:
        random = np.random.default_rng(1)
        for format in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
            data = encoded(scene, format)
            for at in random.integers(0, len(data), 60):
                with contextlib.suppress(BadPicture):
                    assert decode(flipped(data, int(at)), "a").dtype == np.uint8


def pillow_pipeline(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What torchvision's classic transforms do: all in Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    resize, size = preprocessing.resize, preprocessing.image_size
    short = min(width, height)
    wanted = (int(resize * width / short), int(resize * height / short))
    picture = picture.resize(wanted, Image.Resampling.BILINEAR)
    left, top = round((wanted[0] - size) / 2.0), round((wanted[1] - size) / 2.0)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


class TestPrepare:
    def test_a_picture_of_the_target_size_goes_through_untouched(self) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert np.array_equal(prepare(picture, Preprocessing(image_size=32, resize=32)), picture)
        assert np.array_equal(prepare(picture, Preprocessing(image_size=28, resize=32)), picture[2:30, 2:30])

    @pytest.mark.parametrize("shape", [(1, 1), (1, 60_000), (60_000, 1), (8, 8), (223, 224), (3, 500), (300, 100)])
    def test_any_shape_fits(self, shape: tuple[int, int]) -> None:
        picture = np.full((*shape, 3), 77, np.uint8)
        for size in (32, 224):
            found = prepare(picture, Preprocessing(image_size=size, resize=size + 32))
            assert found.shape == (size, size, 3)
            assert found.flags.c_contiguous
            assert (found == 77).all()

    def test_read_only_and_turned_arrays(self) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        picture.flags.writeable = False
        small = Preprocessing(image_size=32, resize=32)
        turned = prepare(picture[::-1], small)
        assert np.abs(turned.astype(int) - prepare(picture, small)[::-1]).max() <= 1

    def test_bicubic_differs_from_bilinear(self, shared_data: Path) -> None:
        photo = decode(_photo(shared_data), "a")
        bilinear = prepare(photo, Preprocessing())
        bicubic = prepare(photo, Preprocessing(interpolation="bicubic"))
        assert 0.2 < np.abs(bilinear.astype(int) - bicubic).mean() < 10

    def test_photos_equal_the_pillow_pipeline_almost_everywhere(self, shared_data: Path) -> None:
        photos = open_dataset(shared_data / "imagenet-photos-100.zip")
        for index in range(len(photos)):
            item = photos.read(index)
            assert isinstance(item.data, bytes)
            ours = prepare(decode(item.data, item.name), Preprocessing())
            theirs = pillow_pipeline(item.data, Preprocessing())
            difference = np.abs(ours.astype(int) - theirs)
            assert difference.max() <= 2, item.name
            assert (difference > 1).mean() < 1e-4, item.name

    def test_trained_net_decides_as_with_the_pillow_pipeline(self, shared_data: Path) -> None:
        import torch

        from resnet_onnx.models.build import build
        from resnet_onnx.models.catalog import lookup
        from resnet_onnx.models.fitting import fit
        from resnet_onnx.models.weights_file import read_weights_file

        entry = lookup("cifar-resnet20")
        fitted = fit(entry.config, read_weights_file(shared_data / "cifar-resnet20.th"))
        net = build(fitted.config)
        net.load_state_dict(fitted.state)
        net.eval()
        photos = open_dataset(shared_data / "imagenet-photos-100.zip")
        preprocessing = Preprocessing(image_size=32, resize=36)
        ours, theirs = [], []
        for index in range(len(photos)):
            item = photos.read(index)
            assert isinstance(item.data, bytes)
            ours.append(prepare(decode(item.data, item.name), preprocessing))
            theirs.append(pillow_pipeline(item.data, preprocessing))
        with torch.inference_mode():
            decided = [
                net(torch.from_numpy(preprocessing.normalise(np.stack(pictures)))).argmax(1).numpy()
                for pictures in (ours, theirs)
            ]
        assert len(np.unique(decided[0])) >= 5  # it does look at the pictures
        assert np.array_equal(decided[0], decided[1])

    def test_random_net_decides_as_with_the_pillow_pipeline(self, shared_data: Path) -> None:
        import torch

        from resnet_onnx.models.build import build
        from resnet_onnx.models.catalog import lookup

        torch.manual_seed(0)
        net = build(lookup("resnet18").config)
        photos = open_dataset(shared_data / "imagenet-photos-100.zip")
        items = [photos.read(index) for index in range(len(photos))]
        preprocessing = Preprocessing(image_size=64, resize=72)
        ours = np.stack([prepare(decode(bytes(item.data), item.name), preprocessing) for item in items])
        theirs = np.stack([pillow_pipeline(bytes(item.data), preprocessing) for item in items])
        with torch.inference_mode():
            net.train()
            net(torch.from_numpy(preprocessing.normalise(theirs[:50])))
            net.eval()
            net.fc.bias -= net(torch.from_numpy(preprocessing.normalise(theirs))).mean(0)  # or one class wins always
            decided = [net(torch.from_numpy(preprocessing.normalise(p))).argmax(1).numpy() for p in (ours, theirs)]
        assert len(np.unique(decided[0])) >= 5
        assert np.array_equal(decided[0], decided[1])


def _photo(shared_data: Path) -> bytes:
    with zipfile.ZipFile(shared_data / "imagenet-photos-100.zip") as archive:
        return archive.read(sorted(archive.namelist())[0])


def test_jpeg_pixels_are_pillows(shared_data: Path) -> None:
    photos = open_dataset(shared_data / "imagenet-photos-100.zip")
    for index in range(0, len(photos), 4):
        item = photos.read(index)
        assert isinstance(item.data, bytes)
        theirs = np.asarray(Image.open(io.BytesIO(item.data)).convert("RGB"))
        assert np.array_equal(decode(item.data, item.name), theirs), item.name


def test_decoding_warns_of_nothing(scene: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
            prepare(decode(encoded(scene, format), "a"), Preprocessing())
