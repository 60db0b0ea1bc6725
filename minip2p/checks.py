"""What a caller of `generate`, `record` and `invert` may say: PromptError, one line, for anything else."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

from torch import Tensor

from minip2p.ddim import Schedule
from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer


def is_number(value) -> bool:
    """Python's and numpy's numbers, whole or not; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def brief(value) -> str:
    """What was given, for a message of one line."""
    return " ".join(repr(value).split())[:60]


def check_prompts(tokenizer: CLIPTokenizer, prompts: str | Sequence[str], edit=None) -> tuple[str, ...]:
    """One prompt or several, and those the edit was made for, as a tuple."""
    if edit is not None and not callable(edit) and not hasattr(edit, "at"):
        raise PromptError(f"edit is {brief(edit)}: give a Swap, Add or Reweight, or a function (maps, site) -> maps")
    prompts = (prompts,) if isinstance(prompts, str) else prompts
    if not isinstance(prompts, Sequence) or not prompts:
        raise PromptError(f"there is no prompt in {prompts!r}: give one string or a list of them")
    prompts = tuple(tokenizer.check(prompt) for prompt in prompts)
    edited = getattr(edit, "prompts", prompts)
    if tuple(edited) != prompts:
        raise PromptError(f"the edit was made for {list(edited)} and the prompts are {list(prompts)}: give both the same")
    return prompts


def check_numbers(schedule: Schedule, seed: int, steps: int, guidance: float, negative: str = "") -> tuple[int, int, float]:
    """Seed, steps and guidance as Python's own numbers, whoever's they were."""
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise PromptError(f"seed is {seed!r}: give a whole number from 0 up")
    last = schedule.num_train_timesteps
    if not is_whole(steps) or not 1 <= steps < last:
        raise PromptError(f"steps is {steps!r}: give a whole number from 1 to {last - 1}")
    if not is_number(guidance) or not math.isfinite(guidance):
        raise PromptError(f"guidance is {guidance!r}: give a number, 1 for none, 7.5 as usual")
    if negative and guidance == 1:
        raise PromptError(f"negative is {negative!r}, which has no say at guidance 1: leave it out, or raise the guidance")
    return int(seed), int(steps), guidance if isinstance(guidance, (int, float)) else float(guidance)


def check_size(size: int | tuple[int, int], unit: int) -> tuple[int, int]:
    """(height, width) in pixels, multiples of `unit`."""
    size = (size, size) if is_whole(size) else size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(map(is_whole, size)):
        raise PromptError(f"size is {size!r}: give one side in pixels, or (height, width)")
    if any(side <= 0 or side % unit for side in size):
        height, width = size
        good = " x ".join(str(max(unit, round(side / unit) * unit)) for side in size)
        cause = f"both sides must be multiples of {unit}, the nearest is {good}"
        raise PromptError(f"size {height} x {width} is not possible: {cause}")
    return int(size[0]), int(size[1])


def check_latents(latents: Tensor, prompts: int, channels: int) -> Tensor:
    """(1, 4, h, w), or one apiece for so many prompts."""
    shape = tuple(getattr(latents, "shape", ()))
    if not isinstance(latents, Tensor) or len(shape) != 4 or shape[0] not in (1, prompts) or shape[1] != channels:
        raise PromptError(f"latents have shape {shape}: give a tensor (1, {channels}, h, w), or ({prompts}, {channels}, h, w)")
    return latents
