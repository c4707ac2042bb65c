"""How the resize compares with torchvision's and Pillow's: values, decisions of a trained network, time.

    python benchmarks/resize.py PICTURES [--count 100] [--resize 256] [--model cifar-resnet20 --weights FILE --crop 32]

PICTURES is a folder or .zip. For each way to resize, bilinear and bicubic: the largest difference from torchvision in
levels, the share of values that differ, and the CPU time per picture on one core, measured in turns. With a model, how
many decisions on the crops change, beside those that a decoder with a fast DCT and plain upsampling would change (where
simplejpeg is installed). Exit code 1 where a value or a decision of ours differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from resnet_onnx.data.batches import decoded_picture
from resnet_onnx.data.datasets import PictureSet, open_dataset
from resnet_onnx.models import picture_tensor
from resnet_onnx.models.picture_tensor import resize
from resnet_onnx.models.preprocessing import Preprocessing

Picture = NDArray[np.uint8]
Resize = Callable[[Picture, int, str], Picture]


def _target(picture: Picture, side: int) -> tuple[int, int]:
    height, width = picture.shape[:2]
    return int(side * height / min(height, width)), int(side * width / min(height, width))


def by_torchvision(picture: Picture, side: int, interpolation: str) -> Picture:
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    found = F.resize(pixels, [side], interpolation=InterpolationMode(interpolation), antialias=True)
    return found.permute(1, 2, 0).numpy()


def by_pillow(picture: Picture, side: int, interpolation: str) -> Picture:
    height, width = _target(picture, side)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling[interpolation.upper()]))


def by_one_call(picture: Picture, side: int, interpolation: str) -> Picture:
    """cykooz-resizer as its documentation shows it: columns before rows."""
    import cykooz_resizer as wheel

    height, width = _target(picture, side)
    chosen = {"bilinear": wheel.FilterType.bilinear, "bicubic": wheel.FilterType.catmull_rom}[interpolation]
    source = wheel.ImageData(picture.shape[1], picture.shape[0], wheel.PixelType.U8x3, picture.tobytes())
    scaled = wheel.ImageData(width, height, wheel.PixelType.U8x3)
    wheel.Resizer().resize(source, scaled, wheel.ResizeOptions(wheel.ResizeAlg.convolution(chosen)))
    return np.frombuffer(scaled.get_buffer(), np.uint8).reshape(height, width, 3)


def by_numpy(picture: Picture, side: int, interpolation: str) -> Picture:
    """Ours where the wheel is missing."""
    found, picture_tensor._wheel = picture_tensor._wheel, lambda: None
    try:
        return resize(picture, side, interpolation)
    finally:
        picture_tensor._wheel = found


WAYS: dict[str, Resize] = {
    "torchvision": by_torchvision,
    "ours": resize,
    "ours, numpy": by_numpy,
    "wheel, one call": by_one_call,
    "Pillow": by_pillow,
}


def compare(pictures: list[Picture], side: int) -> bool:
    """Prints values and times; returns whether ours equal torchvision's."""
    equal = True
    print(f"{'':<18}{'filter':<10}{'levels':>8}{'values %':>10}{'CPU ms':>8}")
    for interpolation in ("bilinear", "bicubic"):
        seconds, largest = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
        differing, values = dict.fromkeys(WAYS, 0), 0
        for picture in pictures:
            found: dict[str, Picture] = {}
            for name, way in WAYS.items():
                start = time.process_time()
                found[name] = way(picture, side, interpolation)
                seconds[name] += time.process_time() - start
            expected = found["torchvision"].astype(int)
            values += expected.size
            for name, pixels in found.items():
                away = np.abs(pixels - expected)
                largest[name] = max(largest[name], int(away.max()))
                differing[name] += int((away > 0).sum())
        equal &= not largest["ours"] and not largest["ours, numpy"]
        for name in WAYS:
            share, each = 100 * differing[name] / values, 1e3 * seconds[name] / len(pictures)
            print(f"{name:<18}{interpolation:<10}{largest[name]:>8}{share:>10.3f}{each:>8.2f}", flush=True)
    return equal


def decide(found: PictureSet, pictures: list[Picture], args: argparse.Namespace) -> bool:
    """Prints how many decisions change; returns whether ours are torchvision's."""
    from resnet_onnx.models.build import build
    from resnet_onnx.models.catalog import lookup
    from resnet_onnx.models.fitting import fit
    from resnet_onnx.models.weights_file import read_weights_file

    fitted = fit(lookup(args.model).config, read_weights_file(args.weights))
    network = build(fitted.config)
    network.load_state_dict(fitted.state)
    network.eval()
    preprocessing = Preprocessing(image_size=args.crop, resize=args.resize)

    def decisions(way: Resize, among: list[Picture]) -> NDArray[np.int64]:
        cut = [resize(way(each, args.resize, "bilinear"), args.resize, "bilinear", args.crop) for each in among]
        batches = [np.stack(cut[start : start + 250]) for start in range(0, len(cut), 250)]
        with torch.inference_mode():
            rows = [network(torch.from_numpy(preprocessing.normalise(batch))).argmax(1).numpy() for batch in batches]
        return np.concatenate(rows)

    expected = decisions(by_torchvision, pictures)
    changed = {name: int((decisions(way, pictures) != expected).sum()) for name, way in WAYS.items()}
    try:
        import simplejpeg
    except ImportError:
        pass
    else:
        encoded = [found.read(index).data for index in range(len(found))]
        fast = [simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True) for data in encoded]
        changed["another decoder"] = int((decisions(by_torchvision, fast) != expected).sum())
    print(f"{args.model}: decisions changed, of {len(pictures)}: {changed}")
    return changed["ours"] == changed["ours, numpy"] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--model", default="cifar-resnet20")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = open_dataset(args.pictures)
    found = found.subset(np.linspace(0, len(found) - 1, min(args.count, len(found))).astype(int))
    pictures = [decoded_picture(found, index) for index in range(len(found))]
    equal = compare(pictures, args.resize)
    if args.weights is not None:
        equal &= decide(found, pictures, args)
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
