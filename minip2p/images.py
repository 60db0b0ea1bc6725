"""Pictures in: any picture that Pillow can open -> RGB pixels of the size that a model works at."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, from_numpy

from minip2p.checks import is_whole
from minip2p.errors import RequestError

MAX_PIXELS = 178_000_000  # a little below the size at which Pillow itself refuses a file
FIX = "give a whole picture in a common format, such as .png or .jpg"
Crop = tuple[int, int, int, int]


def open_image(image: str | Path | Image.Image, size: tuple[int, int], crop: Crop | None = None) -> Image.Image:
    """A picture, or the path of one, as RGB of exactly size = (height, width): resized, the longer side cut at both ends.

    The EXIF orientation is applied, transparency lies over white, 16 bits and floats become 8 bits. crop: (left, top, right,
    bottom) in pixels of the upright picture, cut out first. RequestError, one line, for a file that is no whole picture.
    """
    picture = upright(image)
    if crop is not None:
        picture = picture.crop(check_crop(crop, picture.size))
    return ImageOps.fit(to_rgb(picture), (size[1], size[0]), Image.Resampling.LANCZOS)


def upright(image: str | Path | Image.Image) -> Image.Image:
    """The picture with every pixel read and with its EXIF orientation applied; `.size` is then (width, height) as seen."""
    if not isinstance(image, (str, Path, Image.Image)):
        raise RequestError(f"the image is a {type(image).__name__}: give a Pillow image or a path")
    path = getattr(image, "filename", "") if isinstance(image, Image.Image) else Path(os.path.expanduser(image))
    name = str(path) or "the image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked below
            picture = image if isinstance(image, Image.Image) else Image.open(path)
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError:
        raise RequestError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller first") from None
    except Exception as error:  # Pillow's readers raise many kinds of error for a broken file
        cause = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"{name} cannot be read as a picture ({cause}): {FIX}") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB from any mode. Pillow alone would clip wide numbers at 255 and forget transparency."""
    picture = to_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    try:
        return picture.convert("RGB")
    except ValueError:
        raise RequestError(f"the image's mode {picture.mode} has no conversion to RGB: {FIX}") from None


def to_8_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, 32 bits or floats as mode L; any other picture as it is.

    Modes I;16 hold 0 to 65535. Mode I (32 bits) and mode F (floats) do not say which value is white: the largest value decides
    between 255 and 65535, and for floats also 1. RequestError for values outside these ranges.
    """
    if not picture.mode.startswith("I") and picture.mode != "F":
        return picture
    values = np.asarray(picture).astype(np.float64)
    low, high = values.min(), values.max()
    whites = {"F": (1, 255), "I": (255, 65535)}.get(picture.mode, (65535,))
    white = next((white for white in whites if high <= white), None)
    if white is None or not low >= 0:  # also for nan, which is neither
        kind = "floats" if picture.mode == "F" else "32-bit numbers"
        ranges = " or ".join(f"0 to {white}" for white in whites)
        raise RequestError(f"the image holds {kind} from {low:g} to {high:g}: scale them to {ranges} first")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def check_crop(crop: Crop, size: tuple[int, int]) -> Crop:
    """The crop as Python's own numbers; RequestError unless it lies inside a picture of size (width, height)."""
    numbers = isinstance(crop, (tuple, list)) and len(crop) == 4 and all(map(is_whole, crop))
    if not numbers or not (0 <= crop[0] < crop[2] <= size[0] and 0 <= crop[1] < crop[3] <= size[1]):
        sides = f"{size[0]} wide and {size[1]} high"
        raise RequestError(f"crop is {crop!r}: give (left, top, right, bottom) in pixels of the picture, which is {sides}")
    return tuple(map(int, crop))


def fit_mask(mask: Tensor, size: tuple[int, int], picture: tuple[int, int], crop: Crop | None = None) -> Tensor:
    """A user's mask (1, 1, H, W) of 0 and 1, cut and resized as open_image(picture, size, crop) does with the picture.

    picture: the upright original's (width, height), as `upright(image).size`. A mask with the original's proportions is taken
    to lie on the original. A mask with the proportions of size = (height, width) is taken to lie on the cut picture. A mask
    that has exactly one of the two sizes is taken to lie on that one. RequestError for other proportions.
    Returns (1, 1, *size), float32, 0 to 1.
    """
    width, height = mask.shape[-1], mask.shape[-2]
    fitted = size[1], size[0]
    grey = Image.fromarray((mask[0, 0].cpu().numpy() * 255).round().astype(np.uint8))
    if (width, height) != fitted and same_proportions((width, height), picture) or (width, height) == picture:
        grey = grey if grey.size == picture else grey.resize(picture, Image.Resampling.NEAREST)
        grey = grey if crop is None else grey.crop(check_crop(crop, picture))
        grey = ImageOps.fit(grey, fitted, Image.Resampling.BOX)
    elif same_proportions((width, height), fitted):
        grey = grey.resize(fitted, Image.Resampling.BOX)
    else:
        raise RequestError(
            f"the local blend's mask is {width} wide and {height} high: give one of the picture's size, "
            f"{picture[0]} wide and {picture[1]} high, or of the fitted picture's, {fitted[0]} wide and {fitted[1]} high"
        )
    return from_numpy(np.array(grey, dtype=np.float32) / 255)[None, None]


def same_proportions(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether scaling size a to the width of b changes its height by at most one pixel, of either picture."""
    return abs(a[1] * b[0] - b[1] * a[0]) <= max(a[0], b[0])
