"""DDIM: the noise schedule, and one deterministic step along it in either direction.

Song et al. 2020 (arXiv 2010.02502). `a` is alphas_cumprod, the share of the picture (in variance) left at a timestep.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The noise levels a model was trained on; the defaults are Stable Diffusion's."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"  # betas whose square roots are evenly spaced; "linear": themselves are
    num_train_timesteps: int = 1000
    steps_offset: int = 1
    set_alpha_to_one: bool = False  # is the last step's end a clean picture, or the least noisy timestep, 0?
    prediction_type: str = "epsilon"  # what the network returns: "epsilon" (the noise) or "v_prediction"

    @property
    def alphas_cumprod(self) -> Tensor:
        """(num_train_timesteps,), float32, descending: a[0] is almost the picture, a[-1] almost noise."""
        n, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.beta_schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, n) ** 2
        else:
            betas = torch.linspace(start, end, n)
        return (1 - betas).cumprod(0)

    def timesteps(self, steps: int) -> list[int]:
        """The noisiest first, evenly spaced from `steps_offset` on: 981, 961, ... 1 for 50 steps of 1000."""
        stride = self.num_train_timesteps // steps
        return [i * stride + self.steps_offset for i in reversed(range(steps))]

    def alphas(self, steps: int) -> list[float]:
        """`a` at each of `timesteps(steps)` and, last, where the final step ends: steps + 1 numbers."""
        a = self.alphas_cumprod
        final = 1.0 if self.set_alpha_to_one else a[0].item()
        stride = self.num_train_timesteps // steps
        ts = self.timesteps(steps)
        return [a[t].item() for t in ts] + [a[ts[-1] - stride].item() if ts[-1] >= stride else final]

    def noise(self, output: Tensor, z: Tensor, a: float) -> Tensor:
        """The noise that the network's `output` for latent z means. v = sqrt(a) e - sqrt(1 - a) z_0 (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return output
        return a**0.5 * output + (1 - a) ** 0.5 * z


def predict_clean(z: Tensor, noise: Tensor, a: float) -> Tensor:
    """z_0, the clean latent that z would be if `noise` were exactly the noise in it (eq. 9)."""
    return (z - (1 - a) ** 0.5 * noise) / a**0.5


def ddim_step(z: Tensor, noise: Tensor, a_from: float, a_to: float) -> Tensor:
    """Move z from one noise level to another along the predicted noise (eq. 12, sigma = 0).

    a_to > a_from takes noise away, a_to < a_from puts it back: generation and inversion are the same line.
    """
    return a_to**0.5 * predict_clean(z, noise, a_from) + (1 - a_to) ** 0.5 * noise
