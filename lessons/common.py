"""What every lesson shares: its settings from the environment, saving a figure, and measures of a picture."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minip2p import CheckpointError, PromptError, StableDiffusion
from minip2p.files import write_whole
from weights.toyworld import judge

ROOT = Path(__file__).resolve().parent.parent
BEGUN = time.perf_counter()


@dataclass(frozen=True)
class Settings:
    """What `make lessonN NAME=value` can change."""

    weights: str
    device: str | None
    seed: int
    steps: int
    seeds: int  # how many seeds the summary at the end is measured on
    out: Path


def settings(lesson: str, steps: int = 50) -> Settings:
    """WEIGHTS, DEVICE, SEED, STEPS, SEEDS from the environment; a value that cannot be used ends the lesson in one line.

    steps: where STEPS is not given. Fewer than 5 are refused: too coarse for the windows of the edits.
    """

    def number(name: str, default: int, least: int, most: int = 10**9) -> int:
        text = os.environ.get(name) or str(default)
        if not text.isdecimal() or not least <= int(text) <= most:
            stop(f"{name}={text} is not a whole number from {least} to {most}")
        return int(text)

    out = Path(os.environ.get("OUT") or ROOT / "out") / lesson
    out.mkdir(parents=True, exist_ok=True)
    weights = os.environ.get("WEIGHTS") or str(ROOT / "weights" / "toy")
    return Settings(
        weights,
        os.environ.get("DEVICE") or None,
        number("SEED", 0, 0),
        number("STEPS", steps, 5, 999),
        number("SEEDS", 4, 1),
        out,
    )


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


def spent() -> None:
    """Say how long the lesson took, and how much memory at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # bytes, or KiB
    print(f"\n{time.perf_counter() - BEGUN:.0f} s on {torch.get_num_threads()} CPU threads, at most {peak:.0f} MiB of memory")


# ---------------------------------------------------------------- measures


def psnr(a: Image.Image, b: Image.Image) -> float:
    """How alike two pictures are, in dB: below 15 they differ widely, from 40 on nobody sees it."""
    return float(-10 * (as_array(a) - as_array(b)).square().mean().clamp(min=1e-10).log10())


def changed(a: Image.Image, b: Image.Image, by: float = 0.15) -> float:
    """The share of pixels in which some colour differs by more than this part of its range."""
    return float(((as_array(a) - as_array(b)).abs().amax(-1) > by).float().mean())


def darkness(array: Tensor) -> Tensor:
    """Of `as_array(picture)`: 0 for white, 1 for black."""
    return 1 - array.mean()


def greyness(array: Tensor) -> Tensor:
    """Of `as_array(picture)`: 1 where all pixels are grey, 0 where each has one colour in full and another not at all."""
    return 1 - (array.amax(-1) - array.amin(-1)).mean()


def layout(a: Image.Image, b: Image.Image) -> float:
    """How far two pictures have their outlines in the same places: the correlation of their edges, which are the gradient
    magnitude of the grey picture, averaged over 16 x 16 cells. 1 for the same picture, also if it is lighter or darker as a
    whole; unrelated pictures are not at 0, for most have a horizon and a thing on the ground."""
    greys = [torch.stack(torch.gradient(as_array(picture).mean(-1))).norm(dim=0) for picture in (a, b)]
    return float(torch.corrcoef(torch.stack([F.adaptive_avg_pool2d(edges[None], 16).flatten() for edges in greys]))[0, 1])


def as_array(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


@torch.no_grad()
def explains(sd: StableDiffusion, latents: Tensor, prompts: list[str], levels: int = 16) -> int:
    """Which prompt explains a picture (1, 4, h, w) best: the one with whose text the model predicts added noise best.

    A diffusion classifier (Li et al. 2023, arXiv 2303.16203): the model judges its picture, at `levels` noise levels.
    """
    noise = torch.randn((levels, *latents.shape[1:]), generator=torch.Generator().manual_seed(0)).to(latents.device)
    t = torch.linspace(200, 800, levels).long()
    a = sd.schedule.alphas_cumprod[t].to(latents.device)[:, None, None, None]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    errors = []
    for prompt in prompts:
        output = sd.unet(noisy.to(sd.dtype), t.to(latents.device), sd.encode_text(prompt).expand(levels, -1, -1)).float()
        errors.append((sd.schedule.noise(output, noisy, a) - noise).square().mean())
    return int(torch.stack(errors).argmin())


the_judge = cache(judge.load)  # read once, asked often


def judged(picture: Image.Image) -> judge.Verdict:
    """What a detector that was trained on the toy's world sees (weights/toyworld/judge.py); `.find("cat")` is None if it finds
    no cat. It knows the toy's ten nouns, in pictures as the toy draws them."""
    return the_judge().look([picture.resize((judge.SIDE, judge.SIDE))])[0]


def swapped(picture: Image.Image, old: str, new: str) -> bool:
    """Is one noun in the other's place? The judge must find the new noun and no longer the old one."""
    seen = judged(picture)
    return seen.find(new) is not None and seen.find(old) is None
