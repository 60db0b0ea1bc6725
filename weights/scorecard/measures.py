"""What is measured on a picture, or between a picture and its edit."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from weights.toyworld.judge import Found


def overlap(a: Found | None, b: Found | None) -> float:
    """Intersection over union of two objects' boxes; 0 if one of them was not found."""
    if a is None or b is None:
        return 0.0
    width, height = (min(a.box[i + 2], b.box[i + 2]) - max(a.box[i], b.box[i]) for i in (0, 1))
    shared = max(0.0, width) * max(0.0, height)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a.box, b.box)]
    return shared / (sum(areas) - shared)


def psnr(a: Image.Image, b: Image.Image, boxes: Sequence[Found | None] = ()) -> float | None:
    """PSNR in dB of two pictures outside the boxes of these objects; None if nothing is outside."""
    outside = np.ones((a.height, a.width), bool)
    for x0, y0, x1, y1 in (found.box for found in boxes if found):
        outside[max(0, int(y0)) : int(y1) + 1, max(0, int(x0)) : int(x1) + 1] = False
    error = (np.asarray(a, float) - np.asarray(b, float))[outside] / 255
    return float(-10 * np.log10(max(np.square(error).mean(), 1e-10))) if outside.any() else None


def layout(a: Image.Image, b: Image.Image) -> float:
    """The correlation of the two pictures' edges, averaged over 16 x 16 cells; 1: outlines in the same places."""
    greys = [torch.from_numpy(np.asarray(picture, np.float32)).mean(-1) for picture in (a, b)]
    edges = [torch.stack(torch.gradient(grey)).norm(dim=0) for grey in greys]
    return float(torch.corrcoef(torch.stack([F.adaptive_avg_pool2d(edge[None], 16).flatten() for edge in edges]))[0, 1])


def quantity(word: str, image: Image.Image, place: np.ndarray) -> float:
    """How much of a graded word a picture shows, from 0 to 1, from its pixels. place: where the red object is."""
    rgb = torch.from_numpy(np.asarray(image, np.float32) / 255)
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
