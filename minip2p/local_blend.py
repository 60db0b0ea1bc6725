"""Local blend: the edit changes the picture where chosen words attend, and the source's picture stays elsewhere.

Hertz et al. 2022 (section 3.2, "local editing"), in the form of the authors' release.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.attention_store import finest_low_resolution
from minip2p.checks import brief, check_edit_prompts, check_rows, is_number, word_positions
from minip2p.errors import RequestError
from minip2p.images import to_8_bits, upright
from minip2p.tokenizer import CLIPTokenizer


class LocalBlend(AttentionEdit):
    """Keeps the source's latents wherever neither the source nor the target attends to the chosen words.

    words: a word or phrase or a list of them, each looked up in every prompt that has it; or one such list per prompt.
    exclude: words, given likewise, whose places stay as in the source. start: the share of the steps before the blend begins.
    threshold: the share of a map's maximum above which a pixel belongs to the mask. mask: a picture or array (height, width)
    of any size, stretched over the generated picture, above half of white where that may change; without `words` it alone
    decides. With an inversion it refers to the picture that was given to `invert`, and is cropped with it.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        prompts: Sequence[str],
        words: str | Sequence | None = None,
        exclude: str | Sequence | None = None,
        start: float = 0.2,
        threshold: float = 0.3,
        mask=None,
    ):
        self.prompts = check_edit_prompts(tokenizer, prompts)
        self.prompt_tokens = tokenizer(self.prompts)
        for name, value in (("start", start), ("threshold", threshold)):
            if not is_number(value) or not 0 <= value <= 1:
                raise RequestError(f"the local blend's {name} is {value!r}: give a number from 0 to 1")
        self.include = None if words is None else token_table(tokenizer, self.prompts, words)  # (1 + N, T) of 0 and 1
        self.exclude = token_table(tokenizer, self.prompts, [] if exclude is None else exclude)
        if mask is None and words is None or words is not None and not self.include.any():
            raise RequestError("the local blend has no words whose places may change: give some words, or a mask alone")
        self.start, self.threshold = float(start), float(threshold)
        self.user_mask = None if mask is None else read_mask(mask)  # (1, 1, height, width) of 0 and 1
        self.at(0, 1)

    def prepare(self, device, fit_mask=None) -> "LocalBlend":
        """A copy for one run, on the device; it holds what the run adds up."""
        blend = copy(self)
        blend.include = None if self.include is None else self.include.to(device)
        blend.exclude = self.exclude.to(device)
        if self.user_mask is not None:
            blend.user_mask = (fit_mask(self.user_mask) if fit_mask else self.user_mask).to(device)
        return blend

    def at(self, step: int, steps: int) -> "LocalBlend":
        """The blend at one step, with the attention of the steps before; step 0 forgets what an earlier run added up."""
        if step == 0:
            self.sums, self.masks = (0.0, 0.0), []  # of the attention to the included and the excluded words so far
        self.active = step >= int(self.start * steps)
        self.maps: dict[Site, Tensor] = {}
        return self

    def wants(self, site: Site) -> bool:
        return site.kind == "cross" and site.low_resolution

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        check_rows(attn, self.prompts)
        self.maps[site] = attn.mean(1)  # (1 + N, P, T), over heads
        return attn

    def after_step(self, latents: Tensor) -> Tensor:
        """(1 + N, 4, h, w): the targets' latents inside their masks, the source's elsewhere."""
        mask = self.update_mask(latents.shape[-2:])
        self.masks.append(mask)
        source, targets = latents[:1], latents[1:]
        return torch.cat([source, source + mask * (targets - source)]) if self.active else latents

    def update_mask(self, size: tuple[int, int]) -> Tensor:
        """(N, 1, h, w) of 0 and 1, one mask per target, from the maps of all steps so far."""
        sites = finest_low_resolution(list(self.maps))
        mean = torch.stack([self.maps[site] for site in sites]).mean(0)  # (1 + N, P, T), over layers
        tables = (torch.zeros_like(self.exclude) if self.include is None else self.include, self.exclude)
        grid = (sites[0].height, sites[0].width)
        shares = [(mean * table[:, None]).sum(-1).unflatten(-1, grid)[:, None] for table in tables]
        self.sums = tuple(total + share for total, share in zip(self.sums, shares))  # each (1 + N, 1, height, width)

        mask = torch.ones(len(self.prompts) - 1, 1, *size, dtype=torch.bool, device=mean.device)
        if self.include is not None:
            mask &= self.union(F.max_pool2d(self.sums[0], 3, stride=1, padding=1), size)
        mask &= ~self.union(self.sums[1], size)
        if self.user_mask is not None:
            mask &= F.interpolate(self.user_mask, size, mode="area") > 0.5
        return mask.float()

    def union(self, shares: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, 1, h, w): where the source's or the target's share exceeds the threshold, relative to its own maximum."""
        shares = F.interpolate(shares, size, mode="nearest")
        strong = shares > self.threshold * shares.amax((2, 3), keepdim=True)
        return strong[:1] | strong[1:]


def token_table(tokenizer: CLIPTokenizer, prompts: Sequence[str], words: str | Sequence) -> Tensor:
    """(1 + N, T), 1 at the tokens of the words. PromptError for a word that no prompt, or not its own prompt, has."""
    table = torch.zeros(len(prompts), tokenizer.context, dtype=torch.float32, device="cpu")
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, Sequence) or not all(isinstance(entry, (str, list, tuple)) for entry in words):
        raise RequestError(f"the local blend's words are {words!r}: give a word, a list of words, or one such list per prompt")
    if all(isinstance(word, str) for word in words):
        for word in words:
            for row, positions in word_positions(tokenizer, prompts, word):
                table[row, positions] = 1.0
        return table
    if len(words) != len(prompts):
        raise RequestError(
            f"the local blend has words for {len(words)} prompts and there are {len(prompts)}: give one list for each prompt"
        )
    for row, (prompt, own) in enumerate(zip(prompts, words)):
        for word in [own] if isinstance(own, str) else own:
            table[row, tokenizer.positions(prompt, word)] = 1.0
    return table


def read_mask(mask) -> Tensor:
    """A picture, array or tensor (height, width), from 0 to 1 or to 255, -> (1, 1, height, width) of 0 and 1."""
    if isinstance(mask, Image.Image):  # its white is 255, even if it is dark; in an array the largest value decides
        mask = np.asarray(to_8_bits(upright(mask)).convert("L")) / 255
        if mask.size and mask.max() <= 0.5:
            raise RequestError("the local blend's mask is a dark picture, so nothing may change: make the places white that may")
    try:
        array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask, dtype=np.float32)
    except (TypeError, ValueError):
        raise RequestError(f"the local blend's mask is {brief(mask)}: give a grey picture or an array (height, width)") from None
    if array.ndim != 2 or not array.size:
        raise RequestError(f"the local blend's mask has shape {array.shape}: give a grey picture or an array (height, width)")
    # A resized mask may exceed its white a little, so more than 2 means that white is 255.
    if not array.max() <= 2 * 255:  # also for nan
        raise RequestError(f"the local blend's mask has values up to {array.max():g}: scale them to 0 to 1, or to 0 to 255")
    return torch.tensor(array > (127.5 if array.max() > 2 else 0.5), dtype=torch.float32, device="cpu")[None, None]
