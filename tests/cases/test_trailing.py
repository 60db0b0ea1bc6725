"""Models with trailing timesteps (SD-Turbo and other few-step models): generation and inversion as in diffusers."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from minip2p import StableDiffusion, invert
from minip2p.images import open_image
from tests.cases.loads import template
from tests.inversions import PROMPT, input_picture
from tests.pipelines import difference


@pytest.fixture(scope="module")
def turbo():
    folder, reference = template("turbo")
    return StableDiffusion.load(folder, "cpu"), reference


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 12])
def test_generation_equals_diffusers(turbo, steps):
    """3, 7 and 12 do not divide 1000: there a step does not end at the next step's timestep."""
    sd, reference = turbo
    assert isinstance(reference.scheduler, DDIMScheduler)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for guidance in (1, 3.0):
        ours = sd.generate(PROMPT, steps=steps, guidance=guidance, latents=latents, progress=False)
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "height": 32, "width": 32}
        theirs = reference([PROMPT], latents=latents, negative_prompt=[""], output_type="latent", **settings).images
        assert difference(ours.latents, theirs) < 1e-4


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_inversion_walks_the_same_steps_back(turbo, steps):
    """Each step of inversion is a step of generation with start and end exchanged, at that step's timestep."""
    sd, _ = turbo
    inversion = invert(sd, input_picture(), PROMPT, "ddim", steps=steps, size=32, progress=False)
    z, text = sd.encode_image(open_image(input_picture(), (32, 32))), sd.encode_text(PROMPT)
    levels = sd.schedule.levels(steps)
    for t, a_from, a_to in levels[::-1]:
        with torch.no_grad():
            eps = sd.unet(z, t, text)
        z = a_from**0.5 * (z - (1 - a_to) ** 0.5 * eps) / a_to**0.5 + (1 - a_from) ** 0.5 * eps
    assert difference(inversion.start, z) < 1e-4
    assert levels[0][0] == 999


def test_timesteps_are_those_of_diffusers_inverse_scheduler(turbo):
    """DDIMInverseScheduler visits the same timesteps, from the picture to the noise."""
    sd, reference = turbo
    for steps in (1, 2, 4, 5, 10, 20, 50):
        inverse = DDIMInverseScheduler.from_config(reference.scheduler.config)
        inverse.set_timesteps(steps)
        assert sd.schedule.timesteps(steps)[::-1] == inverse.timesteps.tolist()
