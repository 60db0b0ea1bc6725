"""Pictures of floats and of 32-bit numbers, and a user's mask for a picture that is cut."""

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p import RequestError
from minip2p.images import fit_mask, open_image

SIZE = (32, 48)  # height, width
RAMP = np.broadcast_to(np.linspace(0, 1, 96), (64, 96))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def grey(values: np.ndarray, dtype) -> Image.Image:
    return Image.fromarray(values.astype(dtype))


@pytest.mark.parametrize(
    "high, dtype, mode", [(1, np.float32, "F"), (255, np.float32, "F"), (255, np.int32, "I"), (65535, np.int32, "I")]
)
def test_wide_numbers_give_the_same_picture_as_8_bits(tmp_path, high, dtype, mode):
    picture = grey(RAMP * high, dtype)
    assert picture.mode == mode
    expected = pixels(open_image(grey(RAMP * 255, np.uint8), SIZE))
    assert expected.max() > 250 and np.abs(pixels(open_image(picture, SIZE)) - expected).max() <= 1
    picture.save(tmp_path / "scientific.tiff")
    assert np.abs(pixels(open_image(tmp_path / "scientific.tiff", SIZE)) - expected).max() <= 1


@pytest.mark.parametrize(
    "values, dtype, message",
    [
        (RAMP * 1000, np.float32, r"the image holds floats from 0 to 1000: scale them to 0 to 1 or 0 to 255 first"),
        (RAMP - 0.5, np.float32, r"the image holds floats from -0.5 to 0.5: scale"),
        (RAMP * np.nan, np.float32, r"the image holds floats from nan to nan: scale"),
        (np.full((4, 4), np.inf), np.float32, r"the image holds floats from inf to inf: scale"),
        (RAMP * 10**6, np.int32, r"the image holds 32-bit numbers from 0 to 1e\+06: scale them to 0 to 255 or 0 to 65535 first"),
        (RAMP * 255 - 9, np.int32, r"the image holds 32-bit numbers from -9 to 246: scale"),
    ],
)
def test_numbers_of_another_range_are_refused(values, dtype, message):
    with pytest.raises(RequestError, match=message) as error:
        open_image(grey(values, dtype), SIZE)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- masks

CROPS = [None, (0, 0, 60, 60), (10, 4, 74, 52), (30, 0, 90, 64)]


def disc(size: tuple[int, int], where: tuple[float, float, float] = (0.4, 0.4, 0.2)) -> np.ndarray:
    """A disc on a picture of size (width, height), by shares of the width."""
    x, y, radius = (share * size[0] for share in where)
    row, column = np.mgrid[: size[1], : size[0]]
    return ((column - x) ** 2 + (row - y * size[1] / size[0]) ** 2 < radius**2).astype(np.uint8)


def tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.tensor(mask, dtype=torch.float32)[None, None]


@pytest.mark.parametrize("crop", CROPS, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 24)], ids=str)
@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_a_mask_goes_where_the_picture_goes(crop, size, scale):
    """The mask as a picture, cut by open_image, is the mask; drawn at another resolution it is nearly that."""
    picture = Image.fromarray(disc((96, 64)) * 255)
    expected = np.asarray(open_image(picture, size, crop).convert("L")) / 255
    found = fit_mask(tensor(disc((int(96 * scale), int(64 * scale)))), size, (96, 64), crop)
    assert found.shape == (1, 1, *size) and found.dtype == torch.float32
    wrong = (found[0, 0].numpy() > 0.5) != (expected > 0.5)
    assert 0.02 < (expected > 0.5).mean() < 0.98 and wrong.mean() < (0.02 if scale == 1 else 0.06)


def test_a_squeezed_mask_would_be_elsewhere():
    """What happened before: the whole mask was resized to the cut picture."""
    mask = tensor(disc((96, 64)))
    squeezed = torch.nn.functional.interpolate(mask, (32, 32), mode="area")
    assert ((fit_mask(mask, (32, 32), (96, 64)) > 0.5) != (squeezed > 0.5)).float().mean() > 0.1


def test_a_mask_of_the_cut_picture_stays_as_it_is():
    mask = tensor(disc((32, 32)))
    assert torch.equal(fit_mask(mask, (32, 32), (96, 64), (30, 0, 90, 64)), mask)
    double = mask.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(fit_mask(double, (32, 32), (96, 64)), mask)
    # Where picture and cut picture have the same proportions, a mask of the cut picture's exact size lies on the cut picture.
    assert torch.equal(fit_mask(mask, (32, 32), (100, 100), (0, 0, 50, 50)), mask)
    assert not torch.equal(fit_mask(tensor(disc((100, 100))), (32, 32), (100, 100), (0, 0, 50, 50)), mask)


def test_a_mask_of_other_proportions_is_refused():
    message = (
        r"mask is 50 wide and 20 high: give one of the picture's size, 96 wide and 64 high, or of the fitted picture's, 32 wide"
    )
    with pytest.raises(RequestError, match=message):
        fit_mask(torch.zeros(1, 1, 20, 50), (32, 32), (96, 64))
