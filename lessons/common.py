"""What every lesson shares: its settings from the environment, saving a figure, and two measures of a picture."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minip2p import CheckpointError, PromptError, StableDiffusion
from minip2p.files import write_whole

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What `make lessonN NAME=value` can change."""

    weights: str
    device: str | None
    seed: int
    steps: int
    seeds: int  # how many seeds the summary at the end is measured on
    out: Path


def settings(lesson: str) -> Settings:
    """WEIGHTS, DEVICE, SEED, STEPS, SEEDS from the environment; a value that cannot be used ends the lesson in one line."""

    def number(name: str, default: int, least: int) -> int:
        text = os.environ.get(name) or str(default)
        if not text.isdecimal() or int(text) < least:
            stop(f"{name}={text} is not a whole number from {least} up")
        return int(text)

    out = Path(os.environ.get("OUT") or ROOT / "out") / lesson
    out.mkdir(parents=True, exist_ok=True)
    weights = os.environ.get("WEIGHTS") or str(ROOT / "weights" / "toy")
    return Settings(weights, os.environ.get("DEVICE") or None, number("SEED", 0, 0), number("STEPS", 50, 1), number("SEEDS", 8, 1), out)


def load(chosen: Settings) -> StableDiffusion:
    """The model the settings name; what is wrong with it, in one line."""
    try:
        return StableDiffusion.load(chosen.weights, chosen.device)
    except (CheckpointError, PromptError) as error:
        stop(str(error))


def stop(message: str):
    print(message, file=sys.stderr)
    raise SystemExit(2)


def save(figure: Figure, chosen: Settings, name: str) -> None:
    path = chosen.out / f"{name}.png"
    write_whole(path, figure.savefig)
    print(f"-> {path}", flush=True)


# ---------------------------------------------------------------- measures


def psnr(a: Image.Image, b: Image.Image, where: Tensor | None = None) -> float:
    """How alike two pictures are, in dB, over the pixels where a mask (h, w) of any size is 1: 20 is a loose likeness, 40 none sees."""
    a, b = (torch.tensor(list(picture.convert("RGB").getdata())).view(picture.height, picture.width, 3) / 255 for picture in (a, b))
    error = (a - b).square().mean(-1)
    if where is not None:
        where = torch.nn.functional.interpolate(where[None, None].float(), error.shape, mode="nearest")[0, 0]
        error = error[where > 0.5]
    return float(-10 * error.mean().clamp(min=1e-10).log10())


@torch.no_grad()
def explains(sd: StableDiffusion, latents: Tensor, prompts: list[str], samples: int = 16) -> int:
    """Which of the prompts explains a picture (1, 4, h, w) best: the one whose text predicts noise added to it best.

    A diffusion classifier (Li et al. 2023, arXiv 2303.16203): the model judges its own picture, at `samples` noise levels.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((samples, *latents.shape[1:]), generator=generator).to(latents)
    t = torch.linspace(200, 800, samples).long().to(latents.device)
    a = sd.schedule.alphas_cumprod.to(latents)[t.cpu()].to(latents)[:, None, None, None]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    errors = []
    for prompt in prompts:
        text = sd.encode_text(prompt).expand(samples, -1, -1)
        output = sd.unet(noisy.to(sd.dtype), t, text).float()
        predicted = torch.cat([sd.schedule.noise(o[None], z[None], float(a_t)) for o, z, a_t in zip(output, noisy, a)])
        errors.append(float((predicted - noise).square().mean()))
    return errors.index(min(errors))
