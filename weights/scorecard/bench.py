"""What every trial of the scorecard is given, and what they share.

A trial is a function of the bench and a number, and returns what it measured. Its prompts and seeds follow from the
number alone, so every run measures the same pictures; its scenes come from seeds that no training saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from minip2p import StableDiffusion
from weights.toyworld.judge import Judge

UNSEEN = 3_000_000  # first of the seeds of scenes that neither the toy nor the judge was trained on
GUIDANCE = 7.5
LESS_GUIDANCE = 5.0  # the prompts are tried with this too


@dataclass(frozen=True)
class Bench:
    """Everything a trial needs. steps: of every picture it generates."""

    sd: StableDiffusion
    judge: Judge
    steps: int

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], edit=None, guidance: float = GUIDANCE) -> list[Image.Image]:
        noise = torch.cat([self.sd.noise(seed) for seed in seeds])
        return self.sd.generate(prompts, latents=noise, steps=self.steps, guidance=guidance, edit=edit, progress=False).images
