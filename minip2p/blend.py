"""Local blend: keep an edit where its words look, and the source's picture everywhere else.

Hertz et al. 2022 (section 3.2, "local editing"), in the form of the authors' release, with one threshold for both kinds of words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p import align
from minip2p.attention import Site
from minip2p.checks import brief, is_number
from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class Blend:
    """A mask that grows out of the maps of chosen words, summed over the steps so far. Made by `LocalBlend`."""

    prompts: tuple[str, ...]
    inside: Tensor | None  # (1 + N, T): 1 at the tokens whose places may change
    outside: Tensor  # (1 + N, T): 1 at the tokens whose places may not
    start: float
    threshold: float
    drawn: Tensor | None  # (1, 1, height, width), 1 where the picture may change

    def to(self, device: torch.device) -> "Blend":
        moved = {
            name: getattr(self, name).to(device) for name in ("inside", "outside", "drawn") if getattr(self, name) is not None
        }
        return replace(self, **moved)

    def active(self, step: int, steps: int) -> bool:
        return step >= int(self.start * steps)

    def read(self, maps: dict[Site, Tensor]) -> Tensor:
        """What this step's maps {site: (1 + N, P, T)} say: (2, 1 + N, h, w), the inside words' and the outside words' share."""
        site = next(iter(maps))
        mean = torch.stack(list(maps.values())).mean(0)  # over layers; heads are averaged already
        inside = torch.zeros_like(self.outside) if self.inside is None else self.inside
        shares = [(mean * tokens[:, None]).sum(-1) for tokens in (inside, self.outside)]
        return torch.stack(shares).unflatten(-1, (site.height, site.width))

    def mask(self, shares: Tensor, size: tuple[int, int]) -> Tensor:
        """From the sum of `read` over the steps so far to (N, 1, height, width) of 0 and 1, one mask a target."""
        mask = torch.ones(len(self.outside) - 1, 1, *size, dtype=torch.bool, device=shares.device)
        if self.inside is not None:
            mask = mask & self.union(F.max_pool2d(shares[0][:, None], 3, stride=1, padding=1), size)
        mask = mask & ~self.union(shares[1][:, None], size)
        if self.drawn is not None:
            mask = mask & (F.interpolate(self.drawn, size, mode="area") > 0.5)
        return mask.float()

    def union(self, shares: Tensor, size: tuple[int, int]) -> Tensor:
        """Where the source's or the target's share is above the threshold, as a part of that map's own maximum."""
        shares = F.interpolate(shares, size, mode="nearest")
        strong = shares > self.threshold * shares.amax((2, 3), keepdim=True)
        return strong[:1] | strong[1:]

    def apply(self, latents: Tensor, mask: Tensor) -> Tensor:
        """(1 + N, 4, h, w): the targets' latents inside their masks, the source's elsewhere."""
        source, targets = latents[:1], latents[1:]
        return torch.cat([source, source + mask * (targets - source)])


def LocalBlend(
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    words: str | Sequence | None = None,
    exclude: str | Sequence | None = None,
    start: float = 0.2,
    threshold: float = 0.3,
    mask=None,
) -> Blend:
    """Let an edit of `prompts` change the picture only where `words` look.

    words: a word or phrase or a list of them, each looked up in every prompt that has it; or one such list a prompt.
    exclude: words, given likewise, whose places are taken out again. start: the share of the steps before it begins.
    threshold: the share of a map's strongest place that counts as inside. mask: a mask of one's own, a picture or array
    (height, width) of any size, above half of white where the picture may change; without `words` it alone decides.
    """
    prompts = align.check_prompts(tokenizer, prompts)
    for name, value in (("start", start), ("threshold", threshold)):
        if not is_number(value) or not 0 <= value <= 1:
            raise PromptError(f"the local blend's {name} is {value!r}: give a number from 0 to 1")
    inside = None if words is None else token_table(tokenizer, prompts, words)
    outside = token_table(tokenizer, prompts, [] if exclude is None else exclude)
    if mask is None and inside is None or inside is not None and not inside.any():
        raise PromptError("the local blend has no words whose places may change: give some, or a mask alone")
    return Blend(tuple(prompts), inside, outside, start, threshold, None if mask is None else read_mask(mask))


def token_table(tokenizer: CLIPTokenizer, prompts: Sequence[str], words: str | Sequence) -> Tensor:
    """(1 + N, T), 1 at the tokens of the words. PromptError for a word that no prompt, or not its own prompt, has."""
    table = torch.zeros(len(prompts), tokenizer.context)
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, Sequence) or not all(isinstance(entry, (str, list, tuple)) for entry in words):
        raise PromptError(f"the local blend's words are {words!r}: give a word, a list of words, or one such list a prompt")
    if all(isinstance(word, str) for word in words):
        for word in words:
            for row, positions in align.places(tokenizer, prompts, word):
                table[row, positions] = 1.0
        return table
    if len(words) != len(prompts):
        raise PromptError(
            f"the local blend has words for {len(words)} prompts and there are {len(prompts)}: give one list for each"
        )
    for row, (prompt, own) in enumerate(zip(prompts, words)):
        for word in [own] if isinstance(own, str) else own:
            table[row, tokenizer.positions(prompt, word)] = 1.0
    return table


def read_mask(mask) -> Tensor:
    """A picture, array or tensor (height, width), from 0 to 1 or to 255, -> (1, 1, height, width) of 0 and 1."""
    grey = mask.convert("L") if isinstance(mask, Image.Image) else mask.detach().cpu() if isinstance(mask, Tensor) else mask
    try:
        array = np.asarray(grey, dtype=np.float32)
    except (TypeError, ValueError):
        raise PromptError(f"the local blend's mask is {brief(mask)}: give a grey picture or an array (height, width)") from None
    if array.ndim != 2 or not array.size:
        raise PromptError(f"the local blend's mask has shape {array.shape}: give a grey picture or an array (height, width)")
    # A resized mask may overshoot 1 a little; one that goes to 255 does not stop at 2.
    return torch.tensor(array > (127.5 if array.max() > 2 else 0.5), dtype=torch.float32)[None, None]
