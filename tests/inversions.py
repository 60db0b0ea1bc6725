"""What the tests of inversion invert: a picture, the prompts about it, and the settings."""

import numpy as np
from PIL import Image

PROMPT, DOG, NIGHT = "a red cat on the grass", "a red dog on the grass", "a red cat on the grass at night"
STEPS, SIZE, QUIET = 4, 32, {"progress": False}
RATE = 0.1  # null-text's learning rate in these tests: at 0.01, ten updates change little on random weights


def input_picture() -> Image.Image:
    """64 wide and 48 high: smooth, with an edge, larger than the model's size and not square."""
    y, x = np.mgrid[:48, :64] / 64
    return Image.fromarray((np.stack([x, y, (x + y > 0.8) * 1.0], axis=-1) * 255).astype(np.uint8))
