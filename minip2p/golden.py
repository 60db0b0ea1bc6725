"""Published pixel values of the real models: whoever has the weights can check this package without installing diffusers.

The figures are those of diffusers' own tests (huggingface/diffusers, Apache 2.0): tests/pipelines/stable_diffusion/
test_stable_diffusion.py at 0214037 and tests/pipelines/stable_diffusion_2/test_stable_diffusion.py at 01310e7.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minip2p.errors import RequestError
from minip2p.pipeline import StableDiffusion

PROMPT, STEPS, GUIDANCE, SIZE = "a photograph of an astronaut riding a horse", 3, 7.5, 512


@dataclass(frozen=True)
class Golden:
    """The blue channel of the last 3 x 3 pixels, as floats from 0 to 1 before rounding, row by row."""

    model: str
    expected: tuple[float, ...]
    tolerance: float  # largest difference that counts as agreement; the published values come from a GPU


GOLDEN = {  # by the width of the text embedding
    768: Golden(
        "CompVis/stable-diffusion-v1-4",
        (0.38019, 0.28647, 0.27321, 0.40377, 0.3829, 0.35446, 0.39218, 0.38165, 0.42239),
        2e-3,
    ),
    1024: Golden(
        "stabilityai/stable-diffusion-2-base",
        (0.49493, 0.47896, 0.40798, 0.54214, 0.53212, 0.48202, 0.47656, 0.46329, 0.48506),
        7e-3,
    ),
}


def corner(sd: StableDiffusion) -> np.ndarray:
    """(9,): the pixels that the published values are about, from noise that numpy draws, in the model's own precision."""
    latents = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 4, SIZE // 8, SIZE // 8))).float()
    result = sd.generate(PROMPT, steps=STEPS, guidance=GUIDANCE, latents=latents, progress=False)
    with torch.no_grad():
        scaled = (result.latents / sd.vae.config.scaling_factor).to(sd.device, sd.dtype)
        picture = (sd.vae.decode(scaled).float() / 2 + 0.5).clamp(0, 1)  # (1, 3, 512, 512)
    return picture[0, 2, -3:, -3:].flatten().cpu().numpy()


def check(path: str | Path, device: str | torch.device | None = None) -> tuple[list[str], bool]:
    """(lines that compare a model in float32 with the published values, whether they agree). RequestError for a model without."""
    sd = StableDiffusion.load(path, device, "float32")
    golden = GOLDEN.get(sd.text_encoder.config.hidden_size)
    if golden is None or len(sd.unet.config.block_out_channels) != 4 or not sd.unet.config.mid_block:
        known = " and ".join(golden.model for golden in GOLDEN.values())
        raise RequestError(f"{path} is neither {known}, the only models with published values: give one of these")
    found = corner(sd)
    difference = float(np.abs(found - golden.expected).max())
    agrees = difference <= golden.tolerance
    verdict = (
        f"they agree: the largest difference is {difference:.1e}, and {golden.tolerance:g} is allowed"
        if agrees
        else f"they differ by up to {difference:.1e}, where {golden.tolerance:g} is allowed. If these are the float32 weights of "
        f"{golden.model}, please report this; any other model, also 1.5, has other values"
    )
    lines = [
        f"{PROMPT!r}, {STEPS} steps, guidance {GUIDANCE}, float32, {sd.device}: nine pixels of the picture",
        f"published for {golden.model} by diffusers: {' '.join(f'{value:.4f}' for value in golden.expected)}",
        f"here: {' '.join(f'{value:.4f}' for value in found)}",
        verdict,
    ]
    return lines, agrees
