"""What is measured on a picture, or between a picture and its edit."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weights.toyworld.judge import Found


def overlap(a: Found | None, b: Found | None) -> float:
    """Intersection over union of two objects' boxes; 0 if one of them was not found."""
    if a is None or b is None:
        return 0.0
    width, height = (min(a.box[i + 2], b.box[i + 2]) - max(a.box[i], b.box[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a.box, b.box)]
    return shared / (sum(areas) - shared)


def pixels(picture: Image.Image) -> Tensor:
    """(height, width, 3), float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


def outside(boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]) -> Tensor:
    """(height, width) bool: the pixels outside boxes (x0, y0, x1, y1) of a picture of size (width, height)."""
    mask = torch.ones(size[1], size[0], dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        mask[max(0, int(y0)) : int(y1) + 1, max(0, int(x0)) : int(x1) + 1] = False
    return mask


def psnr(a: Image.Image, b: Image.Image, where: Tensor | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB, higher is more alike: below 15 dB pictures differ widely, above 40 dB invisibly.

    where: (height, width) bool, the pixels to compare; None: all. Returns None if there are none.
    """
    error = (pixels(a) - pixels(b)).square().mean(-1)
    error = error if where is None else error[where]
    return float(-10 * error.mean().clamp(min=1e-10).log10()) if error.numel() else None


def layout(a: Image.Image, b: Image.Image) -> float:
    """Layout similarity: the correlation of the pictures' edges, averaged over 16 x 16 cells. 1: outlines in the same places.

    Edges are the gradient magnitude of the grey picture. Unrelated pictures are above 0, since most have a horizon.
    """
    edges = [torch.stack(torch.gradient(pixels(picture).mean(-1))).norm(dim=0) for picture in (a, b)]
    return float(torch.corrcoef(torch.stack([F.adaptive_avg_pool2d(edge[None], 16).flatten() for edge in edges]))[0, 1])


def quantity(word: str, image: Image.Image, place: np.ndarray) -> float:
    """How much of a graded word a picture shows, from 0 to 1, from its pixels. place: where the red object is."""
    rgb = pixels(image)
    third, half = len(rgb) // 3, len(rgb) // 2
    sky, ground = rgb[:third], rgb[half:].reshape(-1, 3)
    if word == "night":  # darkness
        return float(1 - rgb.mean())
    if word == "cloudy":  # grey pixels of the upper third
        return float((sky.amax(-1) - sky.amin(-1) < 0.2).double().mean())
    if word == "starry":  # pixels of the upper third that are clearly brighter than the 5 x 5 around them
        grey = sky.mean(-1)[None]
        return float((grey - F.avg_pool2d(grey, 5, 1, 2, count_include_pad=False) > 0.2).double().mean())
    if word == "snowy":  # nearly white pixels above the ground
        return float((rgb[:half].amin(-1) > 0.85).double().mean())
    if word == "flowers":  # pixels of the ground whose colour is far from the ground's median colour
        return float(((ground - ground.median(0).values).abs().amax(-1) > 0.25).double().mean())
    red = rgb[..., 0] - rgb[..., 1:].mean(-1)  # "red": red above the mean of green and blue, in the object's place
    return float(red[torch.from_numpy(place)].mean())
