"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626): swap a word, add a phrase, re-weight a word.

All three are one formula. With the source's cross-attention maps S and the target's own maps A, for each target token:

    edited = (S @ mapper + A * (1 - has_source)) * equalizer
    maps   = edited where the token's window is open at this step, A elsewhere

mapper and has_source come from align.py, equalizer from the caller. The rows are not normalised again: a re-weighted word
contributes more or less. Low-resolution self-attention maps become the source's in a window of their own.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minip2p.align import refinement_mapper, replacement_mapper
from minip2p.attention import AttentionEdit, Site
from minip2p.checks import check_edit_prompts, check_rows
from minip2p.edit_options import check_base, checked_options, weight_positions
from minip2p.local_blend import LocalBlend
from minip2p.tokenizer import CLIPTokenizer

CROSS, SELF = 0.8, 0.4  # the windows that the authors use to swap a word


@dataclass(frozen=True, eq=False)
class Edit(AttentionEdit):
    """One source prompt, N target prompts, and what happens to the targets' maps. Made by `Swap`, `Add` and `Reweight`."""

    prompts: tuple[str, ...] = field()  # the source, then N targets (a field: the base class has None)
    prompt_tokens: Tensor = field()  # (1 + N, T)
    mapper: Tensor  # (N, T, T), source tokens down, target tokens across
    has_source: Tensor  # (N, T), 1 where a target token takes the source's map
    equalizer: Tensor  # (N, T), the factor of each target token
    cross_replace: Tensor  # (N, T, 2), each token's window [b0, b1) in shares of the steps
    self_replace: tuple[float, float]  # the window of self-attention
    blend: LocalBlend | None = None
    cross_open: Tensor = torch.ones(1, dtype=torch.bool, device="cpu")  # (N, 1, 1, T): whose window is open at this step
    any_open: bool = True  # of the cross windows, known without asking the device
    self_open: bool = True  # all windows are open until `at` sets them for a step

    @property
    def masks(self):
        return self.blend.masks if self.blend else ()

    def prepare(self, device, fit_mask=None) -> "Edit":
        tensors = {name: getattr(self, name).to(device) for name in ("mapper", "has_source", "equalizer", "cross_open")}
        return replace(self, **tensors, blend=self.blend and self.blend.prepare(device, fit_mask))

    def at(self, step: int, steps: int) -> "Edit":
        """The windows at one step: a window [b0, b1) is open in steps int(b0 n) to int(b1 n) - 1."""
        first, last = (self.cross_replace * steps).floor().unbind(-1)
        cross_open = (first <= step) & (step < last)  # (N, T), on the CPU
        on_device = cross_open[:, None, None].to(self.mapper.device, non_blocking=True)
        self_open = int(self.self_replace[0] * steps) <= step < int(self.self_replace[1] * steps)
        blend = self.blend and self.blend.at(step, steps)
        return replace(self, cross_open=on_device, any_open=bool(cross_open.any()), self_open=self_open, blend=blend)

    def wants(self, site: Site) -> bool:
        if site.kind == "self":
            return self.self_open and site.low_resolution
        return self.any_open or self.blend is not None and self.blend.wants(site)

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        """attn (1 + N, H, P, T), the source first -> the same with the targets' rows edited."""
        check_rows(attn, self.prompts)
        source, own = attn[:1], attn[1:]  # S and A
        if site.kind == "self":
            return torch.cat([source, source.expand_as(own)])
        if self.any_open:
            mapper, has_source, equalizer = self.mapper[:, None], self.has_source[:, None, None], self.equalizer[:, None, None]
            edited = (source @ mapper + own * (1 - has_source)) * equalizer
            attn = torch.cat([source, torch.where(self.cross_open, edited, own)])
        return self.blend(attn, site) if self.blend and self.blend.wants(site) else attn

    def after_step(self, latents: Tensor) -> Tensor:
        return self.blend.after_step(latents) if self.blend else latents


def Swap(
    tokenizer: CLIPTokenizer, prompts: list[str], cross_replace_steps=CROSS, self_replace_steps=SELF, blend: LocalBlend | None = None
) -> Edit:
    """Replaces words: a new word takes the maps, and so the place, of the word that it replaces (section 3.2, "word swap").

    Words may be added or dropped as well if at least one is swapped. PromptError where it is ambiguous which word replaces
    which. A window is a number b for the first b of the steps or a pair [b0, b1). For cross-attention it may also be a dict
    {word of a target, or "default_": number or pair}; without "default_" the other words keep the source's maps in all steps.
    """
    return _edit(tokenizer, prompts, replacement_mapper, cross_replace_steps, self_replace_steps, blend)


def Add(
    tokenizer: CLIPTokenizer, prompts: list[str], cross_replace_steps=CROSS, self_replace_steps=SELF, blend: LocalBlend | None = None
) -> Edit:
    """Adds a phrase: tokens that both prompts share take the source's maps, new tokens keep their own ("prompt refinement").

    Tokens that the target drops lose their columns. Windows as in `Swap`.
    """
    return _edit(tokenizer, prompts, refinement_mapper, cross_replace_steps, self_replace_steps, blend)


def Reweight(
    tokenizer: CLIPTokenizer, prompts: list[str], weights: dict[str, float], base: Edit | None = None,
    cross_replace_steps=None, self_replace_steps=None, blend: LocalBlend | None = None,
) -> Edit:  # fmt: skip
    """Multiplies words' maps by numbers inside the cross window ("attention re-weighting"; published examples: -2 to 10).

    base: a Swap or an Add of the same prompts to re-weight on top of; without it, an Add. Windows and blend that are not
    given are those of the base. The target may be the source prompt.
    """
    base = _edit(tokenizer, prompts, refinement_mapper, same=True) if base is None else check_base(base, Edit, tokenizer, prompts)
    equalizer = base.equalizer.clone()
    for row, positions, weight in weight_positions(tokenizer, base.prompts[1:], weights):
        equalizer[row, positions] = weight
    options = checked_options(tokenizer, base.prompts, cross_replace_steps, self_replace_steps, blend, has_base=True)
    return replace(base, equalizer=equalizer, **options)


def _edit(tokenizer, prompts, mapper_of, cross_replace_steps=CROSS, self_replace_steps=SELF, blend=None, same=False) -> Edit:
    """The edit of `prompts`, each target aligned with the source by `mapper_of`; all weights are 1. same: targets may be the source."""
    prompts = check_edit_prompts(tokenizer, prompts, same)
    options = checked_options(tokenizer, prompts, cross_replace_steps, self_replace_steps, blend)
    mapper, has_source = map(torch.stack, zip(*(mapper_of(tokenizer, prompts[0], target) for target in prompts[1:])))
    return Edit(prompts, tokenizer(prompts), mapper, has_source, torch.ones_like(has_source), **options)
