"""Grounding: while the toy is trained, each word is taught to attend to the pixels of what it names.

After TokenCompose (Wang et al. 2023, arXiv 2312.03626), which adds two terms to the denoising loss: one pulls a word's
attention into the mask of its object, the other says for each pixel whether the word should attend there. TokenCompose finds
its masks with a segmentation model. The toy's pictures are drawn, so that their masks are known.

A third term makes each word the only place where the model finds what it says: the tokens after a word shall not copy it. Only a
noun reads its colour, because nobody would know otherwise whose colour it is. So an edit of one word reaches nothing else, and a
weight reaches all of a word. Words of sky, weather and colour also get the more attention, the more of them the picture shows.

Stable Diffusion learns such maps without this from 2 billion pictures. A toy that sees 40,000 does not (weights/README.md).
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.tokenizer import CLIPTokenizer
from weights.toyworld.picture import Rendered
from weights.toyworld.scene import COLOURS, DARKNESS, EXTRAS, SATURATION, Scene

SIDES = (16, 8)  # of the cross-attention maps that are taught; those of 4 x 4 are too coarse
# What a token of a prompt can name, and how much of a pixel's attention a word should have there. Colours have the masks of their
# things. Words of sky, weather and colour have this share where the picture shows the most of them, and less where it shows less.
SHARES = {"first thing": 0.85, "second thing": 0.85, "ground": 0.85, "first colour": 0.1, "second colour": 0.1,
          "sky": 0.25, "cloudy": 0.25, "snowy": 0.25, "with flowers": 0.25, "starry": 0.25}  # fmt: skip
REGIONS = tuple(SHARES)
READS = {"first thing": "first colour", "second thing": "second colour"}  # who must have read whom, see `copies`
WORDS = {"cloudy": "cloudy", "snowy": "snowy", "flowers": "with flowers", "starry": "starry", "night": "sky"}
NONE = -1  # the region of a token that names no place in the picture
TOKEN_WEIGHT, PIXEL_WEIGHT, COPY_WEIGHT = 0.3, 0.1, 1.0  # of the three terms, beside the denoising loss
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


def region_amounts(scene: Scene) -> np.ndarray:
    """(R,) float32: of how much of a graded word the scene has, from 0.1 (least) to 1 (most); 1 for all else."""
    ranges = EXTRAS | {"sky": DARKNESS, "first colour": SATURATION, "second colour": SATURATION}
    found = dict(scene.extras) | {"sky": scene.darkness}
    found |= {f"{number} colour": thing.saturation for number, thing in zip(("first", "second"), scene.things)}
    amounts = np.ones(len(REGIONS), np.float32)
    for i, region in enumerate(REGIONS):
        if found.get(region):
            least, most = ranges[region]
            amounts[i] = 0.1 + 0.9 * (found[region] - least) / (most - least)
    return amounts


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


def grounding(
    maps: dict[int, list[Tensor]], masks: Tensor, shares: Tensor, regions: Tensor, certainty: Tensor
) -> tuple[Tensor, Tensor]:
    """The token term and the pixel term, each a mean over layers, pictures and grounded tokens, weighted by `certainty`.

    maps: of each side, the layers' maps (B, P, T). masks (B, R, 16, 16), from 0 to 1. shares (B, R): of a pixel's attention, what
    each region's word should have. regions (B, T). certainty (B,).
    token term: (1 - sum(A mask) / sum(A))^2, which is 0 if all of a token's attention A lies inside its mask.
    pixel term: binary cross-entropy of A against its share inside the mask and 0 outside, mean over pixels.
    """
    where = regions.clamp(min=0)
    tokens = F.one_hot(where, len(REGIONS)) * (regions >= 0)[..., None]  # (B, T, R)
    share = shares.minimum(TOGETHER / tokens.sum(1).clamp(min=1)).gather(1, where)  # (B, T)
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


def copies(encode: Callable[[Tensor], Tensor], tokens: Tensor, text: Tensor, regions: Tensor, hidden: Tensor, end: int) -> Tensor:
    """The copy term: how much tokens have read of the hidden words before them, as a share of the squares of their embeddings.

    Where the padding has read "cloudy", a weight on "cloudy" reaches only one of two copies of the word. Where "tree" has read
    "cat", another animal beside the tree changes the tree too. So some words are replaced by the end token, and the other
    tokens' embeddings should not notice. Those that are not replaced count, except a noun whose colour is (READS).

    encode: token ids (B, T) -> text embedding (B, T, D); `text` is that of `tokens`. regions (B, T). hidden (B, R) bool: the
    regions whose words are replaced.
    """
    gone = (regions >= 0) & hidden.gather(1, regions.clamp(min=0))  # (B, T)
    excused = gone
    for reader, read in READS.items():
        excused = excused | (regions == REGIONS.index(reader)) & hidden[:, REGIONS.index(read), None]
    with torch.no_grad():
        without = encode(tokens.masked_fill(gone, end)).float()
    change = (text.float() - without).square().sum(-1) * ~excused
    return change.sum() / without.square().sum()
