"""Real pictures: find the noise from which the model generates a given picture, so that the picture can be edited.

DDIM inversion (Song et al. 2020; Dhariwal & Nichol 2021) takes the picture back to noise at guidance 1. Sampling from that
noise with guidance does not return to the picture. There are three remedies:
"null-text" (Mokady et al. 2022, arXiv 2211.09794): optimise the unconditional embedding of each step until it does.
"negative-prompt" (Miyake et al. 2023, arXiv 2305.16807): use the source prompt's embedding as the unconditional one.
"direct" (Ju et al. 2023, arXiv 2310.01506): put the source's latents back on the inverted trajectory after every step.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minip2p.attention import AttentionEdit
from minip2p.checks import brief, check_numbers, check_prompts, is_number, is_whole, plain_torch
from minip2p.compose import Chain
from minip2p.errors import RequestError
from minip2p.images import Crop, check_crop, open_image, upright
from minip2p.pipeline import GUIDANCE, STEPS, StableDiffusion
from minip2p.saved import SavedRun
from minip2p.scheduler import ddim_step

METHODS = ("ddim", "null-text", "negative-prompt", "direct")
GRADIENT_SCALE = 2.0**14  # about the number of values in a latent; without it a float16 gradient rounds to zero


@dataclass(frozen=True, repr=False)
class Inversion(SavedRun):
    """A picture as a trajectory through the latents, made by `invert`; give it to `generate`."""

    command: ClassVar[str] = "invert"

    latents: Tensor  # (steps + 1, 4, h, w), float32, from the picture [0] to the noise [-1]: the pivot
    uncond: Tensor | None  # (steps, T, D) of null-text, (1, T, D) of negative-prompt, float32, in sampling order
    weights: Tensor
    prompt: str
    method: str
    steps: int
    guidance: float
    cut: dict
    dtype: str
    nfe: int  # network evaluations; null-text's backward passes are not counted, see `losses`
    losses: tuple[tuple[float, ...], ...] | None  # null-text: per step, the loss before each update and after the last

    def __repr__(self) -> str:
        return f"<Inversion of {self.prompt!r} by {self.method}, {self.steps} steps, guidance {self.guidance:g}>"

    @property
    def start(self) -> Tensor:
        return self.latents[-1:]

    @property
    def null_text(self) -> Tensor | None:
        """(steps, T, D): the optimised unconditional embeddings, in sampling order; None for the other methods."""
        return self.uncond if self.method == "null-text" else None

    def around(self, edit: AttentionEdit) -> AttentionEdit:
        return Chain([Pivot(self.latents.flip(0)), edit]) if self.method == "direct" else edit

    def check(self, fingerprint: Tensor, dtype: torch.dtype, negative=None, guidance=None, **asked) -> None:
        """As in SavedRun, but only null-text is bound to its guidance, and `negative` is refused where `uncond` takes its place."""
        if negative and self.uncond is not None:
            raise RequestError(
                f"negative is {negative!r}, and the {self.method} inversion uses an unconditional embedding of its own: leave it out"
            )
        super().check(fingerprint, dtype, **asked, guidance=guidance if self.method == "null-text" else None)

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], values: dict) -> "Inversion":
        """The inversion that `to_file` took apart. ValueError if its tensors have not one entry for each step."""
        values["losses"] = values["losses"] and tuple(map(tuple, values["losses"]))
        loaded = cls(**tensors, **values)
        rows = {"null-text": loaded.steps, "negative-prompt": 1}.get(loaded.method, 0)
        if len(loaded.latents) != loaded.steps + 1 or rows != (0 if loaded.uncond is None else len(loaded.uncond)):
            raise ValueError
        return loaded


class Pivot(AttentionEdit):
    """Direct inversion: after every step the source's latents are those of the inverted trajectory. No maps are edited."""

    def __init__(self, pivot: Tensor, step: int = 0):
        self.pivot, self.step = pivot, step  # (steps + 1, 4, h, w), in sampling order

    def prepare(self, device, fit_mask=None) -> "Pivot":
        return Pivot(self.pivot.to(device))

    def at(self, step: int, steps: int) -> "Pivot":
        return Pivot(self.pivot, step)

    def wants(self, site) -> bool:
        return False

    def after_step(self, latents: Tensor) -> Tensor:
        return torch.cat([self.pivot[self.step + 1 : self.step + 2], latents[1:]])


def invert(
    sd: StableDiffusion,
    image: str | Path | Image.Image,
    prompt: str,
    method: str = "null-text",
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    inner_steps: int = 10,
    lr: float = 0.01,
    size: int | tuple[int, int] | None = None,
    crop: Crop | None = None,
    checkpointing: bool = False,
    progress: bool = True,
) -> Inversion:
    """A picture (a Pillow image or a path) that `prompt` describes -> the Inversion from which `sd.generate` edits it.

    method: "ddim", "null-text", "negative-prompt" or "direct". guidance: that of the later generation; the inversion itself
    runs at guidance 1, and only null-text is bound to it. inner_steps, lr: of null-text's optimiser, as published for 50
    steps. size, as in `generate`: the picture is resized to it and its longer side is cut at both ends. crop: (left, top, right,
    bottom) in the picture's own pixels, cut out first. checkpointing: null-text with less memory and more time, see
    `UNet.forward`.
    """
    if method not in METHODS:
        raise RequestError(f"method is {brief(method)}: use one of {', '.join(METHODS)}")
    _, steps, guidance = check_numbers(0, steps, guidance)
    if method == "null-text":
        check_optimiser(guidance, inner_steps, lr)
    [prompt] = check_prompts(sd.tokenizer, [prompt])
    size = sd.check_size(size)
    original = upright(image)
    picture = open_image(original, size, crop)
    uncond, losses, nfe = None, None, steps
    with plain_torch(sd.device):
        cond = sd.encode_text(prompt)
        latents = ddim_inversion(sd, sd.encode_image(picture), cond, steps, progress)
        sd.check_finite(latents, "the UNet")
        if method == "null-text":
            uncond, losses = optimise_null_text(sd, latents, cond, guidance, inner_steps, lr, checkpointing, progress)
            sd.check_finite(uncond, "null-text optimisation")
            nfe += sum(1 + len(step_losses) for step_losses in losses)  # one conditional evaluation, and one for each loss
        if method == "negative-prompt":
            uncond = cond.float()
        weights = sd.fingerprint(prompt)
    cut = {"size": size, "picture": original.size, "crop": None if crop is None else check_crop(crop, original.size)}
    dtype = str(sd.dtype).removeprefix("torch.")
    return Inversion(latents, uncond, weights, prompt, method, steps, guidance, cut, dtype, nfe, losses)


def ddim_inversion(sd: StableDiffusion, z: Tensor, cond: Tensor, steps: int, progress: bool = True) -> Tensor:
    """From clean latents z (1, 4, h, w) to noise: all (steps + 1, 4, h, w) latents, [0] the clean ones.

    This is the step of generation in the other direction, at guidance 1. The noise in the next, noisier latents is not known
    yet, so the network is given their timestep with the present latents. This is the only error of DDIM inversion.
    """
    pivot = [z]
    for t, a, a_next in tqdm(sd.schedule.levels(steps)[::-1], "to noise", disable=not progress, delay=2, leave=False):
        eps = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, cond), z, a)
        z = ddim_step(z, eps, a_next, a)
        pivot.append(z)
    return torch.cat(pivot)


def optimise_null_text(
    sd: StableDiffusion,
    pivot: Tensor,
    cond: Tensor,
    guidance: float,
    inner_steps: int,
    lr: float,
    checkpointing: bool = False,
    progress: bool = True,
) -> tuple[Tensor, tuple[tuple[float, ...], ...]]:
    """One unconditional embedding per step, (steps, T, D), with which guided sampling follows the pivot; and the losses.

    Algorithm 1 of Mokady et al. For each step, the embedding minimises the squared distance between the guided DDIM step and
    the pivot's next latents. It starts from the previous step's embedding, with a fresh Adam. The authors' learning rate
    0.01 (1 - i / 100) and threshold 1e-5 + 2e-5 i are for 50 steps; here both depend on i / steps.
    """
    steps = len(pivot) - 1
    z, null = pivot[-1:], sd.encode_text("").float()
    embeddings, losses = [], []
    bar = tqdm(sd.schedule.levels(steps), "null-text", disable=not progress, delay=2, leave=False)
    for i, (t, a, a_next) in enumerate(bar):
        target = pivot[steps - 1 - i : steps - i]
        threshold = 1e-5 + 1e-3 * i / steps
        eps_cond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, cond), z, a)
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr * (1 - 0.5 * i / steps))
        step_losses = []
        for update in range(inner_steps + 1):  # the last round only measures the loss after the last update
            with torch.enable_grad():
                output = sd.unet(z.to(sd.dtype), t, null.to(sd.dtype), checkpointing=checkpointing)
                eps_uncond = sd.schedule.to_eps(output, z, a)
                z_next = ddim_step(z, eps_uncond + guidance * (eps_cond - eps_uncond), a, a_next)
                loss = F.mse_loss(z_next, target)
                scaled = loss * GRADIENT_SCALE
            step_losses.append(loss.item())
            if update == inner_steps or update and step_losses[-2] < threshold:
                break
            [gradient] = torch.autograd.grad(scaled, null)
            null.grad = gradient / GRADIENT_SCALE
            adam.step()
        z = z_next.detach()
        embeddings.append(null.detach())
        losses.append(tuple(step_losses))
        bar.set_postfix(loss=f"{step_losses[-1]:.1e}")
    return torch.cat(embeddings), tuple(losses)


def check_optimiser(guidance: float, inner_steps: int, lr: float) -> None:
    """RequestError unless null-text has something to optimise, and usable numbers to do it with."""
    if guidance == 1:
        raise RequestError(
            "guidance is 1, where the null text has no effect: use method 'ddim', or the guidance of the later generation"
        )
    if not is_whole(inner_steps) or inner_steps < 1:
        raise RequestError(f"inner_steps is {brief(inner_steps)}: give a whole number from 1 up")
    if not is_number(lr) or not 0 < lr < math.inf:
        raise RequestError(f"lr is {brief(lr)}: give a number above 0, usually 0.01")
