"""Pictures as people have them: every mode, turned by the camera, cut, too large, broken."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from minip2p import RequestError, images
from minip2p.images import open_image

SIZE = (32, 48)  # high, wide


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def ramp() -> Image.Image:
    """Grey, 96 wide and 64 high, darker on the left: nothing is cut, so that the ramp must come out as it is."""
    return Image.fromarray(np.broadcast_to(np.linspace(0, 255, 96), (64, 96)).round().astype(np.uint8))


def sixteen_bits(kind: str) -> Image.Image:
    values = (pixels(ramp()) * 257).astype(np.uint16)
    if kind == "I":
        return Image.fromarray(values.astype(np.int32))
    return Image.frombytes(kind, (96, 64), values.astype(">u2" if kind.endswith("B") else "<u2").tobytes())


MODES = {
    **{mode: lambda mode=mode: ramp().convert(mode) for mode in ("L", "LA", "RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV", "F")},
    **{mode: lambda mode=mode: sixteen_bits(mode) for mode in ("I", "I;16", "I;16B")},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_same_picture(mode):
    picture = MODES[mode]()
    assert picture.mode == mode
    fitted = open_image(picture, SIZE)
    assert fitted.mode == "RGB" and fitted.size == (48, 32)
    expected = np.linspace(0, 255, 96).reshape(48, 2).mean(1)
    assert np.abs(pixels(fitted) - expected[None, :, None])[:, 2:-2].max() <= 3


def test_a_16_bit_file_keeps_its_greys(tmp_path):
    sixteen_bits("I;16").save(tmp_path / "deep.png")
    assert np.abs(pixels(open_image(tmp_path / "deep.png", SIZE)) - pixels(open_image(ramp(), SIZE))).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_lies_over_white(mode, tmp_path):
    picture = Image.new("RGBA", (48, 32), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 24, 32))
    if mode == "RGB":  # a colour that a file declares transparent
        picture = picture.convert("RGB")
        picture.info["transparency"] = (0, 0, 0)
        picture.save(tmp_path / "keyed.png", transparency=(0, 0, 0))
        picture = Image.open(tmp_path / "keyed.png")
        assert picture.mode == "RGB"
    elif mode == "P":
        picture.save(tmp_path / "palette.gif")
        picture = Image.open(tmp_path / "palette.gif")
        assert picture.mode == "P"
    else:
        picture = picture.convert(mode)
    fitted = pixels(open_image(picture, SIZE))
    assert (fitted[:, :20] == 255).all()
    assert (fitted[:, 28:, 1] < 100).all()


def test_exif_rotation_is_applied_before_the_crop(tmp_path):
    picture = Image.new("RGB", (32, 64), "black")
    picture.paste("white", (0, 0, 32, 16))  # white on top as stored; turned a quarter clockwise to be seen: on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    fitted = pixels(open_image(tmp_path / "turned.png", (32, 64)))
    assert fitted[:, 52:].min() > 200 and fitted[:, :44].max() < 50
    corner = open_image(tmp_path / "turned.png", (16, 16), crop=(48, 0, 64, 16))  # outside the picture as it is stored
    assert pixels(corner).min() == 255


def test_the_middle_is_kept_and_the_rest_cut():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    assert (pixels(open_image(wide, (100, 100))) == (0, 255, 0)).all()
    high = wide.rotate(90, expand=True)
    assert np.abs(pixels(open_image(high, (64, 64)))[2:-2] - (0, 255, 0)).max() <= 3
    assert np.abs(pixels(open_image(wide, (10, 30)))[:, :7] - (255, 0, 0)).max() <= 3  # nothing to cut


def test_crop_counts_in_pixels_of_the_original():
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    assert (pixels(open_image(picture, (32, 32), crop=(7, 5, 39, 37))) == array[5:37, 7:39]).all()
    assert (pixels(open_image(picture, (40, 50))) == array).all(), "a picture of the right size is left as it is"


@pytest.mark.parametrize(
    "crop", [(0, 0, 51, 10), (-1, 0, 10, 10), (10, 0, 10, 10), (0, 9, 9, 3), (0, 0, 9), (0, 0, 9.5, 9), "middle", 7]
)
def test_a_crop_outside_the_picture_is_refused(crop):
    with pytest.raises(RequestError, match="50 wide and 40 high") as error:
        open_image(Image.new("RGB", (50, 40)), SIZE, crop=crop)
    assert "\n" not in str(error.value)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "identify"),
        (b"a cat\n" * 30, "identify"),
        (png()[:600], "truncated"),
        (png()[:20], ""),
        (png()[:60] + b"\0" * 30 + png()[90:], ""),
        (None, "No such file"),
    ],
)
def test_what_is_no_picture_is_one_line(tmp_path, content, cause):
    file = tmp_path / "photo.png"
    if content is not None:
        file.write_bytes(content)
    for given in (file, str(file)):
        with pytest.raises(RequestError, match="photo.png cannot be read") as error:
            open_image(given, SIZE)
        assert cause in str(error.value) and "\n" not in str(error.value) and "give a whole picture" in str(error.value)


def test_a_picture_opened_by_the_caller_may_be_broken_too(tmp_path):
    (tmp_path / "cut.png").write_bytes(png()[:600])
    with pytest.raises(RequestError, match="cut.png cannot be read"):
        open_image(Image.open(tmp_path / "cut.png"), SIZE)


def test_a_folder_and_other_objects_are_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        open_image(tmp_path, SIZE)
    for thing in (None, 3, b"bytes", np.zeros((4, 4, 3))):
        with pytest.raises(RequestError, match="give a Pillow image or a path") as error:
            open_image(thing, SIZE)
        assert "\n" not in str(error.value)


def test_an_absurdly_large_picture_is_refused_before_it_is_read(tmp_path, monkeypatch):
    header = bytearray(png())
    header[16:24] = (60_000).to_bytes(4, "big") + (60_000).to_bytes(4, "big")
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(header))
    with pytest.raises(RequestError, match="bomb.png has more than 178 million pixels"):
        open_image(tmp_path / "bomb.png", SIZE)
    monkeypatch.setattr(images, "MAX_PIXELS", 1999)
    with pytest.raises(RequestError, match="the image has more than"):
        open_image(Image.new("L", (50, 40)), SIZE)


def test_a_large_picture_is_read_without_a_warning(tmp_path, monkeypatch, recwarn):
    (tmp_path / "large.png").write_bytes(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # Pillow warns from here on, and refuses twice as many
    assert open_image(tmp_path / "large.png", SIZE).size == SIZE[::-1]
    assert not [warning for warning in recwarn if warning.category is Image.DecompressionBombWarning]
