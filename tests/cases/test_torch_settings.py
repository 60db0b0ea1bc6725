"""Torch's global settings while a model is loaded: no effect on its numbers, nor on the gradients that need it later."""

import pytest
import torch

from minip2p import StableDiffusion
from minip2p.scheduler import Schedule
from tests.checkpoints import copy
from tests.torch_settings import SETTINGS


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_while_loading_has_no_effect(sd1, tmp_path, setting):
    folder = copy(sd1.folder, tmp_path / "model")
    with setting():
        sd = StableDiffusion.load(folder, "cpu")
        tokens = sd.tokenizer("a red cat")
        alphas = sd.schedule.alphas_cumprod
    assert torch.equal(tokens, sd1.ours.tokenizer("a red cat"))
    assert alphas.dtype == torch.float32 and alphas.device.type == "cpu" and torch.equal(alphas, Schedule().alphas_cumprod)
    for ours, theirs in zip(networks(sd), networks(sd1.ours)):
        for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and not a.is_inference() and not a.requires_grad, name
    text = sd.encode_text("a red cat").detach().requires_grad_()
    sd.unet(torch.ones(1, 4, 16, 16), 41, text).sum().backward()
    assert text.grad.norm() > 0
    run = {"prompts": "a red cat", "steps": 2, "size": 32, "progress": False}
    assert torch.equal(sd.generate(**run).latents, sd1.ours.generate(**run).latents)


def networks(sd: StableDiffusion) -> tuple[torch.nn.Module, ...]:
    return sd.text_encoder, sd.unet, sd.vae
