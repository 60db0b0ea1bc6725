"""The photograph that the tests of inversion invert, what is said of it, and how."""

import numpy as np
from PIL import Image

PROMPT, DOG, NIGHT = "a red cat on the grass", "a red dog on the grass", "a red cat on the grass at night"
STEPS, SIZE, QUIET = 4, 32, {"progress": False}
METHODS = ("ddim", "null-text", "negative-prompt", "direct")
RATE = 0.1  # of null-text in these tests: on random weights ten updates of 0.01 are only a beginning


def photograph() -> Image.Image:
    """Smooth, with an edge, larger than the model's size and not square."""
    y, x = np.mgrid[:48, :64] / 64
    return Image.fromarray((np.stack([x, y, (x + y > 0.8) * 1.0], axis=-1) * 255).astype(np.uint8))
