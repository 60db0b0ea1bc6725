"""What `generate` returns, and pictures side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from minip2p.attention import AttentionEdit
from minip2p.attention_store import Maps


@dataclass(frozen=True, repr=False)
class Result:
    """What `generate` returns. B is the number of prompts."""

    images: list[Image.Image]
    latents: Tensor  # (B, 4, h, w), of the pictures
    start: Tensor  # (1 or B, 4, h, w), the noise that the run began with
    trajectory: Tensor  # (steps + 1, B, 4, h, w), from the noise to the pictures
    pred_x0: Tensor  # (steps, B, 4, h, w), the clean latents that each step predicted
    prompts: tuple[str, ...]
    steps: int
    guidance: float
    seed: int | None = None  # of the noise; None if an inversion, a recording or latents brought it
    edit: AttentionEdit | None = None  # that `generate` was given; None for none, and for a plain function
    maps: Maps | None = None  # record=True: the cross-attention maps, after the edit
    own_maps: Maps | None = None  # record="all": the maps before the edit
    masks: Tensor | None = None  # with a local blend: (steps, B - 1, 1, h, w), where the targets may differ from the source

    def __repr__(self) -> str:
        width, height = self.images[0].size
        return f"<Result of {len(self.images)} pictures, {width} x {height}, {self.steps} steps, guidance {self.guidance:g}>"

    def _repr_png_(self) -> bytes:
        """The pictures side by side, for a notebook."""
        stream = BytesIO()
        side_by_side(self.images).save(stream, "png")
        return stream.getvalue()


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures in one row, pixel for pixel."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * width, 0))
    return sheet
