"""Checks of what a caller gives: RequestError or PromptError, in one line, for a value that cannot be used."""

import math
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from numbers import Integral, Real

import torch
from torch import Tensor

from minip2p.errors import PromptError, RequestError
from minip2p.scheduler import TRAIN_STEPS
from minip2p.tokenizer import CLIPTokenizer


@contextmanager
def plain_torch(device: torch.device):
    """A block of code without the caller's autocast and inference mode, and without gradients.

    Autocast would change the pictures (it rounds the null text's updates to nothing), inference mode would stop null-text's
    gradients. The default dtype and device need no guard, because every new tensor here says its own.
    """
    has_autocast = torch.amp.is_autocast_available(device.type)
    off = torch.autocast(device.type, torch.bfloat16, enabled=False) if has_autocast else nullcontext()
    with torch.inference_mode(False), off, torch.no_grad():
        yield


# ---------------------------------------------------------------- numbers and sizes


def is_number(value) -> bool:
    """Python's and numpy's real numbers; True and False are not numbers here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value) -> bool:
    """Python's and numpy's whole numbers."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def brief(value) -> str:
    """A value as it appears in a message of one line."""
    return " ".join(repr(value).split())[:60]


def check_numbers(seed: int, steps: int, guidance: float, negative: str = "") -> tuple[int, int, float]:
    """Seed, steps and guidance as Python's own numbers."""
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise RequestError(f"seed is {brief(seed)}: give a whole number from 0 up")
    if not is_whole(steps) or not 1 <= steps < TRAIN_STEPS:
        raise RequestError(f"steps is {brief(steps)}: give a whole number from 1 to {TRAIN_STEPS - 1}")
    if not is_number(guidance) or not math.isfinite(guidance):
        raise RequestError(f"guidance is {brief(guidance)}: give a number, 1 for no guidance, 7.5 as usual")
    if negative and guidance == 1:
        raise RequestError(f"negative is {negative!r}, which has no effect at guidance 1: leave it out, or raise the guidance")
    return int(seed), int(steps), float(guidance)


def check_size(size: int | tuple[int, int], unit: int) -> tuple[int, int]:
    """(height, width) in pixels, multiples of `unit`."""
    size = (size, size) if is_whole(size) else size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(map(is_whole, size)):
        raise RequestError(f"size is {brief(size)}: give one side in pixels, or (height, width)")
    if any(side <= 0 or side % unit for side in size):
        height, width = size
        nearest = " x ".join(str(max(unit, round(side / unit) * unit)) for side in size)
        raise RequestError(
            f"size {height} x {width} is not possible: both sides must be multiples of {unit}, the nearest is {nearest}"
        )
    return int(size[0]), int(size[1])


# ---------------------------------------------------------------- prompts and edits


def check_prompts(tokenizer: CLIPTokenizer, prompts: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several as a tuple."""
    prompts = (prompts,) if isinstance(prompts, str) else prompts
    if not isinstance(prompts, Sequence) or not prompts:
        raise PromptError(f"there is no prompt in {brief(prompts)}: give one string or a list of them")
    return tuple(tokenizer.check(prompt) for prompt in prompts)


def check_edit_prompts(tokenizer: CLIPTokenizer, prompts: Sequence[str], same: bool = True) -> tuple[str, ...]:
    """The prompts of an edit: a source and at least one target; no target is empty or, unless `same`, the source prompt."""
    if not isinstance(tokenizer, CLIPTokenizer):
        raise RequestError(f"the tokenizer of an edit is {brief(tokenizer)}: give that of the model, sd.tokenizer")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) < 2:
        raise PromptError(
            f"the prompts of an edit are {prompts!r}: give a list of them, the source first and at least one target"
        )
    prompts = tuple(tokenizer.check(prompt) for prompt in prompts)
    if not all(prompt.strip() for prompt in prompts[1:]):
        raise PromptError("a target prompt of the edit is empty: say what the edited picture shows")
    if not same and prompts[0] in prompts[1:]:
        raise PromptError(f"a target is the source prompt {prompts[0]!r}: change a word, or give a word another weight (Reweight)")
    return prompts


def check_prompt(prompts: Sequence[str], prompt: int, first: int = 0) -> None:
    """RequestError unless this is the number of a prompt, from `first` on: 1 if it must be a target."""
    if not is_whole(prompt) or not first <= prompt < len(prompts):
        kind, last = "target" if first else "prompt", len(prompts) - 1
        numbers = f"give a number from {first} to {last}" if last >= first else "there is none"
        raise RequestError(f"{kind} is {brief(prompt)} and there are {len(prompts)} prompts, counted from 0: {numbers}")


def check_made_for(edit, tokenizer: CLIPTokenizer, prompts: tuple[str, ...], name: str = "edit"):
    """The edit or blend; PromptError if it was made for other prompts, RequestError if for other tokens of these prompts."""
    if edit.prompts is not None and tuple(edit.prompts) != prompts:
        raise PromptError(f"the {name} was made for {list(edit.prompts)} and the prompts are {list(prompts)}: give both the same")
    if edit.prompt_tokens is not None and not torch.equal(edit.prompt_tokens, tokenizer(prompts)):
        raise RequestError(f"the {name} was made with the tokenizer of another model: make it again with sd.tokenizer of this one")
    return edit


def check_window(value: float | tuple[float, float], name: str) -> tuple[float, float]:
    """A number b as (0, b), a pair as it is: shares of the steps, 0 <= b0 <= b1 <= 1."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
    if len(pair) != 2 or not all(map(is_number, pair)) or not 0 <= pair[0] <= pair[1] <= 1:
        raise RequestError(f"{name} is {brief(value)}: give a share of the steps from 0 to 1, or a pair of them in order")
    return float(pair[0]), float(pair[1])


def word_positions(tokenizer: CLIPTokenizer, prompts: Sequence[str], word: str) -> list[tuple[int, list[int]]]:
    """(index of the prompt, token positions) of a word or phrase in every prompt that has it; PromptError if none has."""
    found = [(row, tokenizer.find(prompt, word)) for row, prompt in enumerate(prompts)]
    found = [(row, positions) for row, positions in found if positions]
    if not found:
        listing = "; ".join(tokenizer.listing(prompt) for prompt in prompts)
        raise PromptError(f"{word!r} is in none of the prompts {list(prompts)}: use one of their words: {listing}")
    return found


def check_rows(attn: Tensor, prompts: Sequence[str]) -> None:
    """RequestError unless there is one row of maps for each prompt of an edit."""
    if len(attn) != len(prompts):
        raise RequestError(
            f"the edit is of {len(prompts)} prompts and received the maps of {len(attn)}: give the UNet these prompts, and n_uncond "
            "if unconditional rows stand before them"
        )


def check_edited(edited: Tensor, attn: Tensor, site) -> Tensor:
    """The maps that an edit returned; RequestError unless they have the shape and the dtype of those that it received."""
    return check_returned(edited, attn, f"at {site.name}", "maps")


def check_returned(found: Tensor, given: Tensor, where: str, kind: str) -> Tensor:
    """What an edit returned; RequestError unless it is a tensor of the shape and the dtype that the edit was given."""
    if not isinstance(found, Tensor) or found.shape != given.shape or found.dtype != given.dtype:
        returned = f"{tuple(found.shape)} in {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise RequestError(
            f"the edit returned {returned} {where}, where it received {tuple(given.shape)} in {given.dtype}: "
            f"return {kind} of the same shape and dtype"
        )
    return found
