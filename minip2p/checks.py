"""What a caller of `generate`, `record` and `invert` may say: PromptError, one line, for anything else."""

import math
from collections.abc import Sequence

from torch import Tensor

from minip2p.ddim import Schedule
from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer


def check_prompts(tokenizer: CLIPTokenizer, prompts: str | Sequence[str], edit=None) -> tuple[str, ...]:
    """One prompt or several, and those the edit was made for, as a tuple."""
    if edit is not None and not callable(edit) and not hasattr(edit, "at"):
        raise PromptError(f"edit is {edit!r:.60}: give a Swap, Add or Reweight, or a function (maps, site) -> maps")
    prompts = (prompts,) if isinstance(prompts, str) else prompts
    if not isinstance(prompts, Sequence) or not prompts:
        raise PromptError(f"there is no prompt in {prompts!r}: give one string or a list of them")
    prompts = tuple(tokenizer.check(prompt) for prompt in prompts)
    edited = getattr(edit, "prompts", prompts)
    if tuple(edited) != prompts:
        raise PromptError(f"the edit was made for {list(edited)} and the prompts are {list(prompts)}: give both the same")
    return prompts


def check_numbers(schedule: Schedule, seed: int, steps: int, guidance: float, negative: str = "") -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise PromptError(f"seed is {seed!r}: give a whole number from 0 up")
    last = schedule.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < last:
        raise PromptError(f"steps is {steps!r}: give a whole number from 1 to {last - 1}")
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
        raise PromptError(f"guidance is {guidance!r}: give a number, 1 for none, 7.5 as usual")
    if negative and guidance == 1:
        raise PromptError(f"negative is {negative!r}, which has no say at guidance 1: leave it out, or raise the guidance")


def check_size(size: int | tuple[int, int], unit: int) -> tuple[int, int]:
    """(height, width) in pixels, multiples of `unit`."""
    size = (size, size) if isinstance(size, int) else size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise PromptError(f"size is {size!r}: give one side in pixels, or (height, width)")
    if any(side <= 0 or side % unit for side in size):
        height, width = size
        good = " x ".join(str(max(unit, round(side / unit) * unit)) for side in size)
        cause = f"both sides must be multiples of {unit}, the nearest is {good}"
        raise PromptError(f"size {height} x {width} is not possible: {cause}")
    return tuple(size)


def check_latents(latents: Tensor, prompts: int, channels: int) -> Tensor:
    """(1, 4, h, w), or one apiece for so many prompts."""
    shape = tuple(getattr(latents, "shape", ()))
    if not isinstance(latents, Tensor) or len(shape) != 4 or shape[0] not in (1, prompts) or shape[1] != channels:
        raise PromptError(f"latents have shape {shape}: give a tensor (1, {channels}, h, w), or ({prompts}, {channels}, h, w)")
    return latents
