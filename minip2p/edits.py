"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626): swap a word, add a phrase, re-weight a word.

All three are one formula. With S the source's cross-attention maps, A the target's own:

    edited = ((S @ M) * keep + A * (1 - keep)) * weights
    maps   = window * edited + (1 - window) * A

M and keep come from align.py, weights from the caller, window is 1 in the steps of the edit and 0 outside. Rows are not
normalised again afterwards: a re-weighted word really contributes more or less. Self-attention maps of small feature
maps are the source's own within a window of their own.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minip2p import align
from minip2p.attention import Site
from minip2p.blend import Blend
from minip2p.checks import brief, is_number
from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer

SELF_PIXELS = 16 * 16  # self-attention is replaced in feature maps of at most so many pixels, at 512 x 512
Window = float | tuple[float, float]


@dataclass(frozen=True)
class Edit:
    """One source prompt, N target prompts, and what happens to the targets' maps. prompts[0] is the source."""

    prompts: tuple[str, ...]
    M: Tensor  # (N, T, T): source tokens down, target tokens across
    keep: Tensor  # (N, T): 1 where the target token has a source
    weights: Tensor  # (N, T)
    cross_window: Tensor  # (N, T, 2): first and last share of the steps, for each token
    self_window: tuple[float, float]
    blend: Blend | None = None

    def at(self, step: int, steps: int) -> "StepEdit":
        """The edit of step number `step` (from 0) of `steps`: what the UNet is handed. A window is [int(b0 n), int(b1 n))."""
        first, last = (self.cross_window.double() * steps).floor().unbind(-1)
        window = ((first <= step) & (step < last)).float()  # (N, T)
        in_self_window = int(self.self_window[0] * steps) <= step < int(self.self_window[1] * steps)
        window_or_none = window[:, None, None].to(self.M.device, non_blocking=True) if window.any() else None
        return StepEdit(self, window_or_none, in_self_window)

    def to(self, device: torch.device) -> "Edit":
        """The same edit with the tensors of its formula on a device; the windows stay where Python reads them."""
        blend = self.blend.to(device) if self.blend else None
        return replace(self, M=self.M.to(device), keep=self.keep.to(device), weights=self.weights.to(device), blend=blend)


def holds_layout(site: Site) -> bool:
    """Is this self-attention map small enough to hold the layout and not the detail? The authors' 16 x 16 are a quarter of a
    latent's side; larger pictures than theirs keep the share, or 768 x 768 would have nearly no such layer."""
    return site.height * site.width <= max(SELF_PIXELS, site.latent_pixels // 16)


@dataclass(frozen=True)
class StepEdit:
    """An edit at one step: a function from maps to new maps."""

    edit: Edit
    window: Tensor | None  # (N, 1, 1, T), or None where no cross-attention is edited at this step
    in_self_window: bool

    def wants(self, site: Site) -> bool:
        if site.kind == "cross":
            return self.window is not None
        return self.in_self_window and holds_layout(site)

    def __call__(self, maps: Tensor, site: Site) -> Tensor:
        """maps (1 + N, H, P, T), the source first -> the same, with the targets' rows edited."""
        if not self.wants(site):
            return maps
        source, own = maps[:1], maps[1:]
        if site.kind == "self":
            return torch.cat([source, source.expand_as(own)])
        edit = self.edit if self.edit.M.device == maps.device else self.edit.to(maps.device)
        window = self.window.to(maps.device)
        M, keep, weights = edit.M[:, None], edit.keep[:, None, None], edit.weights[:, None, None]
        edited = ((source @ M) * keep + own * (1 - keep)) * weights
        return torch.cat([source, window * edited + (1 - window) * own])


def Swap(tokenizer: CLIPTokenizer, prompts: list[str], cross_replace_steps=0.8, self_replace_steps=0.4, blend=None) -> Edit:
    """Replace words: a new word takes the map, and so the place, of the word it replaces (section 3.2, "word swap").

    Words may be added or dropped as well, if one is swapped: they are treated as `Add` does. PromptError where it is not
    clear what replaces what. Windows: a number b means the first b of the steps, a pair [b0, b1), and for the cross maps a
    dict {word of a target, or "default_": number or pair}.
    """
    return make(tokenizer, prompts, align.for_swapping, cross_replace_steps, self_replace_steps, blend)


def Add(tokenizer: CLIPTokenizer, prompts: list[str], cross_replace_steps=0.8, self_replace_steps=0.4, blend=None) -> Edit:
    """Add a phrase: tokens that both prompts share keep the source's maps, new ones bring their own ("prompt refinement").

    Dropped words lose their columns. Windows as in `Swap`.
    """
    return make(tokenizer, prompts, align.for_adding, cross_replace_steps, self_replace_steps, blend)


def Reweight(
    tokenizer: CLIPTokenizer,
    prompts: list[str],
    weights: dict[str, float],
    base: Edit | None = None,
    cross_replace_steps=None,
    self_replace_steps=None,
    blend=None,
) -> Edit:
    """Multiply words' maps by numbers, within the cross window ("attention re-weighting"; published examples: -2 to 10).

    On top of `base` (a Swap or an Add of the same prompts); without one, of the maps the words have in the source, which
    may be the same prompt. Windows and blend that are not given are the base's, or 0.8 and 0.4 and none.
    """
    if not isinstance(weights, dict):
        raise PromptError(f"the weights are {brief(weights)}: give a dict of words and numbers, such as {{'night': 2.0}}")
    if base is not None and not isinstance(base, Edit):
        raise PromptError(f"base is {brief(base)}: give the Swap or Add on top of which to re-weight, or leave it out")
    edit = Add(tokenizer, prompts, 0.8, 0.4) if base is None else base
    if list(edit.prompts) != align.check_prompts(tokenizer, prompts):
        raise PromptError(f"the base edit is of {list(edit.prompts)}, not of {list(prompts)}: give both the same prompts")
    table = edit.weights.clone()
    for word, number in weights.items():
        if not is_number(number) or not math.isfinite(number):
            raise PromptError(f"the weight of {word!r} is {number!r}: give a finite number")
        for row, positions in align.places(tokenizer, edit.prompts[1:], word):
            table[row, positions] = float(number)
    edit = replace(edit, weights=table)
    if cross_replace_steps is not None:
        edit = replace(edit, cross_window=cross_windows(tokenizer, edit.prompts[1:], cross_replace_steps))
    if self_replace_steps is not None:
        edit = replace(edit, self_window=window(self_replace_steps, "self_replace_steps"))
    return replace(edit, blend=check_blend(blend, edit.prompts)) if blend is not None else edit


def make(tokenizer: CLIPTokenizer, prompts: list[str], alignment, cross_replace_steps, self_replace_steps, blend) -> Edit:
    """An Edit of these prompts whose M and keep come from one of align.py's functions; all weights are 1."""
    prompts = align.check_prompts(tokenizer, prompts)
    M, keep = (torch.stack(part) for part in zip(*(alignment(tokenizer, prompts[0], target) for target in prompts[1:])))
    cross = cross_windows(tokenizer, prompts[1:], cross_replace_steps)
    own = window(self_replace_steps, "self_replace_steps")
    return Edit(tuple(prompts), M, keep, torch.ones_like(keep), cross, own, check_blend(blend, prompts))


# ---------------------------------------------------------------- what a caller may say


def check_blend(blend: Blend | None, prompts: list[str]) -> Blend | None:
    """The blend itself; PromptError unless it is one, and of the same prompts."""
    if blend is not None and not isinstance(blend, Blend):
        raise PromptError(f"blend is {brief(blend)}: make one with LocalBlend(tokenizer, prompts, words)")
    if blend is not None and list(blend.prompts) != list(prompts):
        raise PromptError(f"the local blend is of {list(blend.prompts)}, not of {list(prompts)}: give both the same prompts")
    return blend


def cross_windows(tokenizer: CLIPTokenizer, targets: list[str], given) -> Tensor:
    """(N, T, 2) from a number, a pair, or a dict of them; words of a dict without "default_" get [0, 1) by default."""
    table = given if isinstance(given, dict) else {"default_": given}
    windows = torch.empty(len(targets), tokenizer.context, 2, dtype=torch.float64)
    windows[:] = torch.tensor(window(table.get("default_", 1.0), "cross_replace_steps"), dtype=torch.float64)
    for word, value in table.items():
        if word != "default_":
            for row, positions in align.places(tokenizer, targets, word):
                windows[row, positions] = torch.tensor(window(value, f"cross_replace_steps[{word!r}]"), dtype=torch.float64)
    return windows


def window(value: Window, name: str) -> tuple[float, float]:
    """A number b as (0, b), a pair as it is; PromptError unless 0 <= b0 <= b1 <= 1."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (0.0, value)
    numbers = len(pair) == 2 and all(map(is_number, pair))
    if not numbers or not 0 <= pair[0] <= pair[1] <= 1:
        raise PromptError(f"{name} is {value!r}: give a share of the steps from 0 to 1, or a pair of them in order")
    return float(pair[0]), float(pair[1])
