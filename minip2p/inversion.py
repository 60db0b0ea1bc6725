"""Real photographs: find the noise from which the model makes a given picture, so that the picture can be edited.

DDIM inversion (Song et al. 2020; Dhariwal & Nichol 2021) walks the picture back to noise at guidance 1. Sampling from there
with guidance does not return to the picture; three remedies:
"null-text" (Mokady et al. 2022, arXiv 2211.09794): fit the embedding of the empty prompt, one a step, until it comes back.
"negative-prompt" (Miyake et al. 2023, arXiv 2305.16807): the source prompt's embedding in its place, and no fitting.
"direct" (Ju et al. 2023, arXiv 2310.01506): put the source's latent back on its path after every step.
The last two, and "ddim" without mending, are lines of the loop in pipeline.py; what they need from here is only the path.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minip2p.checks import check_numbers, check_prompts, is_number, is_whole
from minip2p.ddim import ddim_step
from minip2p.errors import PromptError
from minip2p.images import Crop, open_image
from minip2p.saved import Kept, fingerprint

METHODS = ("ddim", "null-text", "negative-prompt", "direct")
GRADIENT_SCALE = 2.0**14  # about the number of values in a latent: without it a float16 gradient rounds to zero


@dataclass(frozen=True)
class Inversion(Kept):
    """A photograph as a path through the latents, made by `invert`; hand it to `generate`."""

    verb: ClassVar[str] = "invert"

    latents: Tensor  # (steps + 1, 4, h, w), float32, from the clean picture [0] to the noise [-1]: the pivot
    null_text: Tensor | None  # (steps, T, D), float32, in sampling order; with method "null-text"
    weights: Tensor  # (2, numbers), the fingerprint of the model, see saved.py
    prompt: str
    method: str
    steps: int
    guidance: float
    crop: Crop | None  # what was cut out of the photograph before it was fitted to the latents' size
    image: str  # the fingerprint of the fitted picture: SHA-256 of its RGB bytes
    dtype: str  # of the model that made it
    evaluations: int  # how often the UNet was asked about one latent; null-text also went back through it, see losses
    losses: tuple[tuple[float, ...], ...] | None  # null-text: for each step the loss before each update, and the one left

    @property
    def start(self) -> Tensor:
        """(1, 4, h, w): the noise."""
        return self.latents[-1:]

    @property
    def path(self) -> Tensor | None:
        """(steps + 1, 4, h, w) in sampling order, if the source is to be put back there after each step."""
        return self.latents.flip(0) if self.method == "direct" else None

    @property
    def without(self) -> Tensor | None:
        return self.null_text

    def check(self, sd, source: str, steps: int | None, guidance: float | None, negative: str) -> None:
        """PromptError unless a run of `sd` with these (None: not said) is one that this inversion was made for."""
        if negative and self.method in ("null-text", "negative-prompt"):
            raise PromptError(
                f"negative is {negative!r}, but a {self.method} inversion puts its own embedding in that place: leave it out"
            )
        self.fits(sd, prompt=source, steps=steps, guidance=guidance)

    def parts(self) -> tuple[dict[str, Tensor], dict]:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return tensors, {name: value for name, value in vars(self).items() if name not in tensors and name != "null_text"}

    @classmethod
    def from_parts(cls, tensors: dict[str, Tensor], said: dict) -> "Inversion":
        """The way back from `parts`. ValueError if they do not fit together."""
        said["crop"] = said["crop"] and tuple(said["crop"])
        said["losses"] = said["losses"] and tuple(map(tuple, said["losses"]))
        loaded = cls(**{"null_text": None} | tensors | said)
        if len(loaded.latents) != loaded.steps + 1 or (loaded.null_text is None) == (loaded.method == "null-text"):
            raise ValueError
        return loaded


@torch.no_grad()
def invert(
    sd,
    image: str | Path | Image.Image,
    prompt: str,
    method: str = "null-text",
    steps: int = 50,
    guidance: float = 7.5,
    inner_steps: int = 10,
    lr: float = 0.01,
    size: int | tuple[int, int] | None = None,
    crop: Crop | None = None,
    checkpointing: bool = False,
    progress: bool = True,
) -> Inversion:
    """A photograph (a Pillow image or a path) that `prompt` describes -> what `sd.generate(inversion=...)` starts from.

    method: "ddim", "null-text", "negative-prompt" or "direct". guidance: that of the generation to come; inverting itself is
    done at 1. inner_steps, lr: of null-text's optimiser, as published for 50 steps; fewer steps want a larger lr. size, as in
    `generate`: the photograph is resized to it, its longer side cut at both ends; crop: (left, top, right, bottom) in its own
    pixels, cut out first. checkpointing: null-text with less memory and more time, see `UNet.forward`.
    """
    if method not in METHODS:
        raise PromptError(f"method is {method!r}: use one of {', '.join(METHODS)}")
    _, steps, guidance = check_numbers(sd.schedule, 0, steps, guidance)
    if method == "null-text":
        check_optimiser(guidance, inner_steps, lr)
    [prompt] = check_prompts(sd.tokenizer, [prompt])
    picture = open_image(image, sd.check_size(size), crop)
    text = sd.encode_text(prompt)
    latents = ddim_inversion(sd, sd.encode_image(picture), text, steps, progress)
    sd.check_finite(latents)
    null_text, losses, evaluations = None, None, steps
    if method == "null-text":
        null_text, losses = fit_null_text(sd, latents, text, guidance, inner_steps, lr, checkpointing, progress)
        evaluations += sum(1 + len(of_step) for of_step in losses)  # once with the prompt, the others without
        sd.check_finite(null_text)
    digest, dtype = hashlib.sha256(picture.tobytes()).hexdigest(), str(sd.dtype).removeprefix("torch.")
    return Inversion(
        latents,
        null_text,
        fingerprint(sd),
        prompt,
        method,
        steps,
        guidance,
        crop and tuple(crop),
        digest,
        dtype,
        evaluations,
        losses,
    )


def ddim_inversion(sd, z: Tensor, text: Tensor, steps: int, progress: bool = True) -> Tensor:
    """From a clean latent z (1, 4, h, w) to noise: all (steps + 1, 4, h, w) latents, [0] the clean one.

    Generation's own step the other way, at guidance 1. The noise in the latent to come is not known yet, so the network is
    asked for that timestep with the latent at hand; all of DDIM inversion's error is in that substitution.
    """
    timesteps, alphas = sd.schedule.timesteps(steps), sd.schedule.alphas(steps)
    pivot = [z]
    for i in tqdm(range(steps - 1, -1, -1), "to noise", disable=not progress, delay=2, leave=False):
        noise = sd.guided_noise(z, timesteps[i], text, 1, None, alphas[i])
        z = ddim_step(z, noise, alphas[i + 1], alphas[i])
        pivot.append(z)
    return torch.cat(pivot)


def fit_null_text(
    sd,
    pivot: Tensor,
    text: Tensor,
    guidance: float,
    inner_steps: int,
    lr: float,
    checkpointing: bool = False,
    progress: bool = True,
) -> tuple[Tensor, tuple[tuple[float, ...], ...]]:
    """One embedding of the empty prompt for each step, (steps, T, D), such that guided steps follow the pivot back
    (algorithm 1 of Mokady et al.); and the losses. Each starts from the one before, with a fresh Adam.

    The authors' learning rate 0.01 (1 - i / 100) and threshold 1e-5 + 2e-5 i are for 50 steps: here both go with i / steps.
    """
    steps = len(pivot) - 1
    timesteps, alphas = sd.schedule.timesteps(steps), sd.schedule.alphas(steps)
    z, null = pivot[-1:], sd.encode_text("").float()
    null_text, losses = [], []
    bar = tqdm(timesteps, "null-text", disable=not progress, delay=2, leave=False)
    for i, t in enumerate(bar):
        target = pivot[steps - 1 - i : steps - i]
        enough = 1e-5 + 1e-3 * i / steps
        with_text = sd.guided_noise(z, t, text, 1, None, alphas[i])
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr * (1 - 0.5 * i / steps))
        of_step = []
        for update in range(inner_steps + 1):  # the last round only looks where the last update has led
            with torch.enable_grad():
                output = sd.unet(z.to(sd.dtype), t, null.to(sd.dtype), checkpointing=checkpointing).float()
                without = sd.schedule.noise(output, z, alphas[i])
                after = ddim_step(z, without + guidance * (with_text - without), alphas[i], alphas[i + 1])
                loss = F.mse_loss(after, target)
                scaled = loss * GRADIENT_SCALE
            of_step.append(loss.item())
            if update == inner_steps or update and of_step[-2] < enough:
                break
            [gradient] = torch.autograd.grad(scaled, null)
            null.grad = gradient / GRADIENT_SCALE
            adam.step()
        z = after.detach()
        null_text.append(null.detach())
        losses.append(tuple(of_step))
        bar.set_postfix(loss=f"{of_step[-1]:.1e}")
    return torch.cat(null_text), tuple(losses)


def check_optimiser(guidance: float, inner_steps: int, lr: float) -> None:
    """PromptError unless null-text has something to fit, and usable numbers to fit it with."""
    if guidance == 1:
        raise PromptError("guidance is 1, where the null text has no say: use method 'ddim', or the guidance you will edit with")
    if not is_whole(inner_steps) or inner_steps < 1:
        raise PromptError(f"inner_steps is {inner_steps!r}: give a whole number from 1 up")
    if not is_number(lr) or not 0 < lr < math.inf:
        raise PromptError(f"lr is {lr!r}: give a number above 0, usually 0.01")
