"""Grounding: while the toy is trained, each word is taught to attend to the pixels of what it names.

After TokenCompose (Wang et al. 2023, arXiv 2312.03626), which adds two terms to the denoising loss: one pulls a word's
attention into the mask of its object, the other says for each pixel whether the word should attend there. TokenCompose finds
its masks with a segmentation model. The toy's pictures are drawn, so that their masks are known.

Stable Diffusion learns such maps without this from 2 billion pictures. A toy that sees 40,000 does not (weights/README.md).
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.tokenizer import CLIPTokenizer
from weights.toyworld.picture import Rendered
from weights.toyworld.scene import COLOURS, Scene

SIDES = (16, 8)  # of the cross-attention maps that are taught; those of 4 x 4 are too coarse
# What a token of a prompt can name, and how much of a pixel's attention a word should have there. Colours have the masks of their
# things. Little for the words that are re-weighted: the weight 4 of a word with a large share would drown the rest.
SHARES = {"first thing": 0.8, "second thing": 0.8, "ground": 0.8, "sky": 0.12, "cloudy": 0.12, "snowy": 0.12,
          "with flowers": 0.12, "starry": 0.12, "first colour": 0.1, "second colour": 0.1}  # fmt: skip
REGIONS = tuple(SHARES)
WORDS = {"cloudy": "cloudy", "snowy": "snowy", "flowers": "with flowers", "starry": "starry", "night": "sky"}
NONE = -1  # the region of a token that names no place in the picture
TOKEN_WEIGHT, PIXEL_WEIGHT = 0.3, 0.1  # of the two terms, beside the denoising loss
TOGETHER = 0.95  # the most for all tokens of one region: "bi" and "cycle" share the bicycle


# ---------------------------------------------------------------- the truth


def region_masks(truth: Rendered) -> np.ndarray:
    """(R, 16, 16) uint8: how much of each cell belongs to each of REGIONS, 255 where all of it does."""
    named = truth.regions.copy()
    for number, mask in zip(("first", "second"), truth.masks):
        named |= {f"{number} thing": mask, f"{number} colour": mask}
    side = SIDES[0]
    masks = np.zeros((len(REGIONS), side, side), np.uint8)
    for i, region in enumerate(REGIONS):
        if region in named:
            cells = named[region].reshape(side, -1, side, named[region].shape[1] // side).mean((1, 3))
            masks[i] = np.round(255 * cells)
    return masks


def token_regions(tokenizer: CLIPTokenizer, caption: str, scene: Scene) -> np.ndarray:
    """(T,) int8: for each token of the caption an index into REGIONS, or NONE.

    A noun and the colour before it belong to their thing. Two things of the same noun are left out: their words
    cannot be told apart.
    """
    nouns = [thing.noun for thing in scene.things]
    things = {noun: i for i, noun in enumerate(nouns) if nouns.count(noun) == 1}
    place = scene.place.split()[-1]
    regions = np.full(tokenizer.context, NONE, np.int8)
    words = tokenizer.words(caption)
    for i, (word, positions) in enumerate(words):
        after = words[i + 1][0] if i + 1 < len(words) else ""
        if word in things:
            regions[positions] = REGIONS.index(("first thing", "second thing")[things[word]])
        elif word in COLOURS and after in things:
            regions[positions] = REGIONS.index(("first colour", "second colour")[things[after]])
        elif word == place:
            regions[positions] = REGIONS.index("ground")
        elif word in WORDS:
            regions[positions] = REGIONS.index(WORDS[word])
    return regions


# ---------------------------------------------------------------- the loss


@dataclass
class KeepMaps(AttentionEdit):
    """An edit that changes nothing and keeps the cross-attention maps, averaged over heads."""

    maps: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # by side, each (B, P, T)

    def wants(self, site: Site) -> bool:
        return site.kind == "cross" and site.height in SIDES

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        self.maps[site.height].append(attn.mean(1))
        return attn


def grounding(maps: dict[int, list[Tensor]], masks: Tensor, regions: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor]:
    """The token term and the pixel term, each a mean over layers, pictures and grounded tokens, weighted by `certainty`.

    maps: of each side, the layers' maps (B, P, T). masks (B, R, 16, 16), from 0 to 1. regions (B, T). certainty (B,).
    token term: (1 - sum(A mask) / sum(A))^2, which is 0 if all of a token's attention A lies inside its mask.
    pixel term: binary cross-entropy of A against its share inside the mask and 0 outside, mean over pixels.
    """
    where = regions.clamp(min=0)
    tokens = F.one_hot(where, len(REGIONS)) * (regions >= 0)[..., None]  # (B, T, R)
    share = (TOGETHER / tokens.sum(1).clamp(min=1)).minimum(torch.tensor([*SHARES.values()]).to(masks)).gather(1, where)  # (B, T)
    terms = []
    for side, layers in maps.items():
        mask = F.adaptive_avg_pool2d(masks, side).flatten(2)  # (B, R, P)
        top = mask.amax(-1, keepdim=True)
        mask = mask / top.clamp(min=1e-6)  # flakes and stars are smaller than a cell: their fullest cells count as full
        mask = mask.gather(1, where[..., None].expand(-1, -1, mask.shape[-1]))  # (B, T, P)
        seen = (regions >= 0) & (top[..., 0] > 0).gather(1, where)
        weight = seen * certainty[:, None]  # (B, T)
        weight = weight / weight.sum().clamp(min=1e-6)
        for layer in layers:
            A = layer.transpose(1, 2)  # (B, T, P)
            inside = (A * mask).sum(-1) / A.sum(-1)
            A = A.clamp(1e-6, 1 - 1e-6)
            target = share[..., None] * mask
            pixel = -(target * A.log() + (1 - target) * (1 - A).log()).mean(-1)
            terms.append(torch.stack([(weight * (1 - inside).square()).sum(), (weight * pixel).sum()]))
    token, pixel = torch.stack(terms).mean(0)
    return token, pixel

