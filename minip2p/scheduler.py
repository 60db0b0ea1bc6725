"""DDIM: the noise schedule, and one deterministic step along it in either direction.

Song et al. 2020 (arXiv 2010.02502). `a` is alphas_cumprod[t], the share of the picture's variance that is left at timestep t.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAIN_STEPS = 1000  # every Stable Diffusion 1 and 2 was trained on the timesteps 0 .. 999


@dataclass(frozen=True)
class Schedule:
    """The noise levels a model was trained on, and how sampling walks them. The defaults are Stable Diffusion's."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"  # the square roots of the betas are evenly spaced; "linear": the betas are
    steps_offset: int = 1
    set_alpha_to_one: bool = False  # the last step ends at a = 1; False: at alphas_cumprod[0]
    prediction_type: str = "epsilon"  # the network predicts the noise; "v_prediction": a mixture of noise and picture
    timestep_spacing: str = "leading"  # "trailing": the first step starts at 999 (SD-Turbo and other few-step models)

    @property
    def alphas_cumprod(self) -> Tensor:
        """(1000,), float32 on the CPU, descending: a[0] is almost the picture, a[999] almost noise."""
        options = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's own defaults are
        if self.beta_schedule == "scaled_linear":
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, TRAIN_STEPS, **options) ** 2
        else:
            betas = torch.linspace(self.beta_start, self.beta_end, TRAIN_STEPS, **options)
        return (1 - betas).cumprod(0)

    def timesteps(self, steps: int) -> list[int]:
        """The timesteps of a run, the noisiest first, as diffusers' DDIMScheduler computes them.

        50 steps are 981, 961, ..., 1 with leading spacing (and offset 1), and 999, 979, ..., 19 with trailing spacing.
        """
        if self.timestep_spacing == "trailing":
            starts = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps)[:steps]  # numpy's rounding, as diffusers has it
            return [round(start) - 1 for start in starts.tolist()]
        stride = TRAIN_STEPS // steps
        return [i * stride + self.steps_offset for i in reversed(range(steps))]

    def levels(self, steps: int) -> list[tuple[int, float, float]]:
        """(t, a_from, a_to) of every step, the noisiest first. A step of DDIM goes from a_from to a_to; inversion goes back.

        As in diffusers, a step ends at t - 1000 // steps. With leading spacing this is the next step's timestep. With
        trailing spacing and a number of steps that does not divide 1000, it can be one beside the next timestep.
        """
        a = self.alphas_cumprod.tolist()
        final = 1.0 if self.set_alpha_to_one else a[0]
        ends = [t - TRAIN_STEPS // steps for t in self.timesteps(steps)]
        return [(t, a[t], a[end] if end >= 0 else final) for t, end in zip(self.timesteps(steps), ends)]

    def alphas(self, steps: int) -> list[float]:
        """The steps + 1 noise levels of a run: the first step's start, then every step's end (see `levels`)."""
        levels = self.levels(steps)
        return [levels[0][1]] + [a_to for _, _, a_to in levels]

    def to_eps(self, output: Tensor, z: Tensor, a: float) -> Tensor:
        """The predicted noise eps, from the network's output for latents z at level a.

        v = sqrt(a) eps - sqrt(1 - a) z_0 (Salimans & Ho 2022, arXiv 2202.00512).
        """
        if self.prediction_type == "epsilon":
            return output
        return a**0.5 * output + (1 - a) ** 0.5 * z


def pred_x0(z: Tensor, eps: Tensor, a: float) -> Tensor:
    """z_0, the clean latents that z would come from if eps were exactly the noise in z (eq. 9)."""
    return (z - (1 - a) ** 0.5 * eps) / a**0.5


def ddim_step(z: Tensor, eps: Tensor, a_from: float, a_to: float) -> Tensor:
    """z moved from noise level a_from to a_to along the predicted noise (eq. 12 with sigma = 0).

    a_to > a_from removes noise, a_to < a_from adds noise: generation and inversion are the same formula.
    """
    return a_to**0.5 * pred_x0(z, eps, a_from) + (1 - a_to) ** 0.5 * eps
