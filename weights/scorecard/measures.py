"""What is measured on a picture, or between a picture and its edit."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weights.toyworld.judge import Found, Verdict


def overlap(a: Found | None, b: Found | None) -> float:
    """Intersection over union of two things' boxes; 0 if one was not found."""
    if a is None or b is None:
        return 0.0
    width, height = (min(a.box[i + 2], b.box[i + 2]) - max(a.box[i], b.box[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a.box, b.box)]
    return shared / (sum(areas) - shared)


def psnr_outside(a: Image.Image, b: Image.Image, things: Sequence[Found | None]) -> float | None:
    """How alike two pictures are outside these things' boxes, in dB; None if nothing is outside."""
    outside = np.ones((a.height, a.width), bool)
    for x0, y0, x1, y1 in (thing.box for thing in things if thing):
        outside[max(0, int(y0)) : int(y1) + 1, max(0, int(x0)) : int(x1) + 1] = False
    error = (np.asarray(a, float) - np.asarray(b, float))[outside] / 255
    return float(-10 * np.log10(max(np.square(error).mean(), 1e-10))) if outside.any() else None


def judged(thing: Found | None, other: Found | None, reached: bool, pictures=None) -> dict:
    """One row of a trial. `thing` and `other` are pairs (in the source, in the target). PSNR only where both boxes are known."""
    row = {"reached": bool(reached), "overlap": [overlap(*pair) for pair in (thing, other)]}
    return row | ({"psnr": psnr_outside(*pictures, thing)} if pictures and all(thing) else {})


def points(shares: Tensor, mask: np.ndarray) -> dict:
    """shares (levels, side, side): does the strongest cell lie in the thing, at each level and in the mean?"""
    side = shares.shape[-1]
    cover = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], side)[0].flatten()
    inside = cover >= min(0.5, float(cover.max()))
    levels = inside[shares.flatten(1).argmax(1)].tolist()
    return {"mean": bool(inside[shares.mean(0).argmax()]), "levels": levels, "chance": float(inside.float().mean())}


def specks_in_the_sky(picture: Tensor) -> Tensor:
    """Of (height, width, 3) in [0, 1]: the share of pixels in the upper third that are clearly brighter than the 5 x 5 around
    them: stars, the moon's edge."""
    sky = picture[: len(picture) // 3].mean(-1)[None]
    return (sky - F.avg_pool2d(sky, 5, 1, 2, count_include_pad=False) > 0.2).double().mean()


def grey_in_the_sky(picture: Tensor) -> Tensor:
    """Of (height, width, 3) in [0, 1]: the share of pixels with next to no colour in the upper third."""
    sky = picture[: len(picture) // 3]
    return (sky.amax(-1) - sky.amin(-1) < 0.2).double().mean()


def amount(what: str, image: Image.Image, seen: Verdict, thing: Found | None) -> float:
    """How much of a graded word a picture shows, from about 0 to 1: from its pixels, or else as the judge estimates it."""
    pixels = np.asarray(image, float) / 255
    if what in ("specks", "grey"):
        return float({"specks": specks_in_the_sky, "grey": grey_in_the_sky}[what](torch.from_numpy(pixels)))
    if what == "darkness":
        return float(1 - pixels.mean())
    if what == "redness":  # in the thing's box in the source: red above the mean of green and blue
        x0, y0, x1, y1 = (max(0, int(v)) for v in thing.box) if thing else (0, 0, image.width, image.height)
        part = pixels[y0 : y1 + 1, x0 : x1 + 1]
        return float((part[..., 0] - part[..., 1:].mean(-1)).mean())
    return seen.amounts[what]
