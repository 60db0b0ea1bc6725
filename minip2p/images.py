"""Photographs in: any picture Pillow can open -> RGB pixels of the size a model works at."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from minip2p.checks import is_whole
from minip2p.errors import PromptError

MAX_PIXELS = 178_000_000  # Pillow refuses files a little above this itself
FIX = "give a whole picture in a common format, such as .png or .jpg"
Crop = tuple[int, int, int, int]


def open_image(image: str | Path | Image.Image, size: tuple[int, int], crop: Crop | None = None) -> Image.Image:
    """A picture, or the path of one -> RGB of exactly size = (height, width), cut out of the middle.

    Turned upright by its EXIF tag; transparency over white; 16 bits become 8. crop: (left, top, right, bottom) in pixels
    of the upright original, cut out first. PromptError, one line, for what is no picture, cut short or absurdly large.
    """
    picture = upright(image)
    if crop is not None:
        picture = picture.crop(check_crop(crop, picture.size))
    return ImageOps.fit(to_rgb(picture), (size[1], size[0]), Image.Resampling.LANCZOS)


def upright(image: str | Path | Image.Image) -> Image.Image:
    """Every pixel read and turned as the camera was held."""
    if not isinstance(image, (str, Path, Image.Image)):
        raise PromptError(f"the image is a {type(image).__name__}: give a Pillow image or a path")
    path = getattr(image, "filename", "") if isinstance(image, Image.Image) else Path(image).expanduser()
    name = str(path) or "the image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            picture = image if isinstance(image, Image.Image) else Image.open(path)
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError:
        raise PromptError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller first") from None
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
        cause = getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(f"{name} cannot be read as a picture ({cause}): {FIX}") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB. Pillow would cut 16 bits off at 255 and drop transparency as if it were not there."""
    if picture.mode.startswith("I"):  # I;16 and its byte orders, and 16 bits kept in 32
        picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    try:
        return picture.convert("RGB")
    except ValueError:
        raise PromptError(f"the image's mode {picture.mode} has no conversion to RGB: {FIX}") from None


def check_crop(crop: Crop, size: tuple[int, int]) -> Crop:
    """PromptError unless the crop is four whole numbers inside a picture of size (width, height)."""
    numbers = isinstance(crop, (tuple, list)) and len(crop) == 4 and all(map(is_whole, crop))
    if not numbers or not (0 <= crop[0] < crop[2] <= size[0] and 0 <= crop[1] < crop[3] <= size[1]):
        raise PromptError(
            f"crop is {crop!r}: give (left, top, right, bottom) in pixels of the picture, which is {size[0]} wide and {size[1]} high"
        )
    return tuple(map(int, crop))
