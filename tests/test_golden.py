"""The real models give the pixel values that diffusers' own tests publish. Skipped where the weights are not in weights/."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from minip2p import RequestError, StableDiffusion, golden

WEIGHTS = Path(__file__).parent.parent / "weights"
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", golden.GOLDEN)
def test_published_pixels(width, device):
    published = golden.GOLDEN[width]
    folder = WEIGHTS / published.model.split("/")[-1]
    if not folder.is_dir():
        pytest.skip(f"{published.model} is not in weights/, and cannot be fetched by every machine (make weights MODEL=1.4)")
    sd = StableDiffusion.load(folder, device, "float32")
    assert np.abs(golden.corner(sd) - published.expected).max() <= published.tolerance


def test_the_pixels_are_those_of_the_diffusers_pipeline(deep, monkeypatch):
    """The procedure, on a small random model: the same noise, steps, decoding and corner as in diffusers' test."""
    monkeypatch.setattr(golden, "SIZE", 64)
    monkeypatch.setattr(golden, "PROMPT", "a red cat on the grass")
    latents = np.random.RandomState(0).standard_normal((1, 4, 8, 8))
    settings = {"num_inference_steps": 3, "guidance_scale": 7.5, "negative_prompt": "", "height": 64, "width": 64}
    picture = deep.reference(golden.PROMPT, latents=torch.from_numpy(latents).float(), output_type="np", **settings).images
    expected = picture[0, -3:, -3:, -1].flatten()
    found = golden.corner(deep.ours)
    assert np.abs(found - expected).max() < 1e-4 and np.ptp(expected) > 1e-3

    published = golden.Golden("a model", tuple(expected.tolist()), 1e-4)
    monkeypatch.setattr(golden, "GOLDEN", {64: published})
    lines, agrees = golden.check(deep.folder, "cpu")
    assert agrees and lines[-1].startswith("they agree: the largest difference is ")
    other = dataclasses.replace(published, expected=tuple((expected + 0.01).tolist()))
    monkeypatch.setattr(golden, "GOLDEN", {64: other})
    lines, agrees = golden.check(deep.folder, "cpu")
    assert not agrees and lines[-1].startswith("they differ by up to 1.0e-02, where 0.0001 is allowed. ")


def test_a_model_without_published_pixels_is_refused(sd1):
    with pytest.raises(RequestError, match=r"is neither CompVis/stable-diffusion-v1-4 and .*: give one of these"):
        golden.check(sd1.folder, "cpu")
