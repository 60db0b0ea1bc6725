"""Attention with a seam: queries, keys, values, a softmax, and the one line where its maps can be read or changed.

Shapes in this package: B batch, H heads, P pixels (height x width of the feature map), T tokens (or, in self-attention,
pixels again), C channels, D width of the text embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """Where in the network a map was made: the layer, what it attends to, and the size of its feature map."""

    name: str  # the layer's name in the checkpoint, e.g. "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    kind: str  # "cross" (pixels look at tokens) or "self" (pixels look at pixels)
    place: str  # "down", "mid" or "up"
    height: int
    width: int
    level: int = 0  # how often the latent was halved on the way here

    @property
    def latent_pixels(self) -> int:
        return (self.height << self.level) * (self.width << self.level)


def wants(edit, site: Site) -> bool:
    """Does this edit read or change the maps of this site? A plain function without `.wants` is asked everywhere."""
    return edit is not None and (not hasattr(edit, "wants") or edit.wants(site))


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, eq. 1), with Q from the picture and K, V from `context`."""

    def __init__(self, channels: int, context_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.name, self.level = "", 0  # set by the UNet, which knows them
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list only because the checkpoint says to_out.0

    def site(self, height: int, width: int) -> Site:
        kind = "cross" if self.name.endswith("attn2") else "self"
        return Site(self.name, kind, self.name.split("_")[0], height, width, self.level)

    def split_heads(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, H, N, C / H)
        B, N, C = x.shape
        return x.view(B, N, self.heads, C // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor, site: Site, edit=None) -> Tensor:
        """x (B, P, C), context (B, T, D) -> (B, P, C). `edit` takes maps (B, H, P, T) and the site, returns new maps.

        Those of the last `edit.rows` of the batch if it says so: with guidance, nobody reads the maps of the half without text.
        """
        q = self.split_heads(self.to_q(x))
        k = self.split_heads(self.to_k(context))
        v = self.split_heads(self.to_v(context))
        if wants(edit, site):
            others = len(q) - getattr(edit, "rows", len(q))
            without_maps = F.scaled_dot_product_attention(q[:others], k[:others], v[:others]) if others else None
            q, k, v = q[others:], k[others:], v[others:]
            scale = q.shape[-1] ** -0.5
            # In float32, and so are edits and recordings: the scores of some models leave float16's range.
            maps = (q.float() * scale @ k.float().transpose(-1, -2)).softmax(-1)
            maps = edit(maps, site)  # <-- the seam: Prompt-to-Prompt happens here and nowhere else
            out = maps.to(v.dtype) @ v
            out = torch.cat([without_maps, out]) if others else out
        else:
            out = F.scaled_dot_product_attention(q, k, v)  # the same sum, without writing the maps down
        return self.to_out[0](out.transpose(1, 2).flatten(2))
