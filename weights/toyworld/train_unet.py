"""Trains the toy's UNet and text encoder together: to find the noise in a latent, and each word to attend to what it names.

A stage of `make toy` (train.py). The losses of the attention maps are in grounding.py.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minip2p.save import write_whole
from minip2p.scheduler import Schedule
from minip2p.tokenizer import CLIPTokenizer
from weights.toyworld import vocabulary
from weights.toyworld.grounding import COPY_WEIGHT, NONE, PIXEL_WEIGHT, SHARES, TOKEN_WEIGHT, KeepMaps, copies, grounding
from weights.toyworld.loop import Run
from weights.toyworld.sizes import Denoiser, Size
from weights.toyworld.train_vae import loaded

DROPPED = 0.1  # the share of pictures whose caption is left out, for classifier-free guidance
VALIDATED = 512  # unseen pictures on which the log measures
LEAST = 0.3  # the weight of the grounding terms where the noise hides the layout


def latent_scale(run: Path) -> float:
    """What the run's latents are multiplied with for the UNet: 1 / their standard deviation, or the scale of `--start`."""
    file = run / "scale.json"
    if not file.exists():
        scale = 1 / float(np.load(run / "latents.npy").astype(np.float32).std())
        write_whole(file, lambda path: path.write_text(json.dumps(round(scale, 5))))
    return json.loads(file.read_text())


class Examples:
    """What the UNet is trained on, from the files of a run: latents, token ids, where each word's thing is and how much of it."""

    def __init__(self, run: Path, held_out: int, device):
        self.latents = loaded(run / "latents.npy", device)  # (N, 4, 16, 16) float16
        self.scale = latent_scale(run)
        self.tokens = loaded(run / "tokens.npy", device)  # (N, T)
        self.masks = loaded(run / "masks.npy", device)  # (N, R, 16, 16) uint8
        self.regions = loaded(run / "regions.npy", device)  # (N, T) int8
        self.shares = loaded(run / "amounts.npy", device) * torch.tensor([*SHARES.values()], device=device)  # (N, R)
        tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
        self.nothing, self.end = tokenizer("")[0].to(device), tokenizer.end
        self.vocab_size = len(tokenizer.bpe.get_vocab())
        self.count = len(self.latents) - held_out  # of pictures to train on; the others are for validation

    def batch(self, index: Tensor, dropped: float) -> tuple[Tensor, ...]:
        """Latents, token ids, masks, shares and regions of these pictures; `dropped` of them have no caption and no regions."""
        gone = torch.rand(len(index), 1, device=index.device) < dropped
        tokens = torch.where(gone, self.nothing, self.tokens[index])
        regions = self.regions[index].long().masked_fill(gone, NONE)
        return self.latents[index].float() * self.scale, tokens, self.masks[index].float() / 255, self.shares[index], regions


def train_unet(run: Path, size: Size, steps: int, held_out: int, device, bf16: bool) -> None:
    """Noise prediction, grounding and the copy term. held_out: so many pictures, the last ones, are for validation.

    Each timestep is drawn as often as min(SNR, 5) / SNR says, which is the weight of Hang et al. 2023.

    The error that remains at a timestep goes roughly with sqrt(alphas_cumprod). The noisiest latents, on which the layout is
    decided, have the smallest errors. Each error is divided by that root, so that they count as much as the others.
    """
    examples = Examples(run, held_out, device)
    torch.manual_seed(0)
    model = Denoiser(size, examples.vocab_size).to(device, memory_format=torch.channels_last)
    a = Schedule().alphas_cumprod.to(device)
    often, evenly = (chances.cumsum(0) / chances.sum() for chances in ((5 * (1 - a) / a).clamp(max=1), torch.ones_like(a)))

    def look(index, chances, dropped):
        """Squared errors (B,), alphas_cumprod (B,), the copy term, the maps and the batch."""
        z, tokens, masks, _, regions = batch = examples.batch(index, dropped)
        t = torch.searchsorted(chances, torch.rand(len(z), device=device)).clamp(max=len(a) - 1)
        noise, a_t = torch.randn_like(z), a[t][:, None, None, None]
        noisy = (a_t.sqrt() * z + (1 - a_t).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        keep = KeepMaps()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            text = model.text_encoder(tokens)
            output = model.unet(noisy, t, text, keep)
            hidden = torch.rand(masks.shape[:2], device=device) < 0.5
            copied = copies(model.text_encoder, tokens, text, regions, hidden, examples.end)
        return (output.float() - noise).square().mean((1, 2, 3)), a[t], copied, keep.maps, batch

    def loss_of():
        index = torch.randint(examples.count, (size.batch,), device=device)
        error, a_t, copied, maps, (_, _, *truth) = look(index, often, DROPPED)
        token, pixel = grounding(maps, *truth, a_t.sqrt().clamp(min=LEAST))
        return (error / a_t.sqrt()).mean() + TOKEN_WEIGHT * token + PIXEL_WEIGHT * pixel + COPY_WEIGHT * copied

    @torch.no_grad()
    def validate():
        """On the same unseen pictures, noises and evenly drawn timesteps each time."""
        torch.manual_seed(1)
        seen = []
        for index in torch.arange(examples.count, len(examples.latents), device=device)[-VALIDATED:].split(32):
            error, _, copied, maps, (_, tokens, *truth) = look(index, evenly, 0.0)
            words = (tokens != examples.end).float()
            words[:, 0] = 0
            share = torch.stack([(m * words[:, None]).sum(-1).mean() for layers in maps.values() for m in layers]).mean()
            terms = grounding(maps, *truth, torch.ones(len(index), device=device))
            seen.append(torch.stack([error.mean(), share, *terms, copied]))
        mse, share, token, pixel, copied = torch.stack(seen).mean(0).tolist()
        terms = f"token term {token:.4f} pixel term {pixel:.4f} copies {copied:.4f}"
        return f"attention on words {share:.3f} {terms} validation mse {mse:.4f}"

    training = Run(run / "unet.pt", model, size.lr, steps)
    training.train(loss_of, validate)
