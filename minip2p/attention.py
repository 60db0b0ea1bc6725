"""Attention, and the one line where its maps can be read or changed.

Shapes in this package: B batch, H heads, P pixels of a feature map (height x width), T tokens (in self-attention: pixels
again), C channels, D width of the text embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.checks import check_edited


@dataclass(frozen=True)
class Site:
    """One attention layer at one size of feature map: what an edit is told about the maps that it receives."""

    name: str  # the layer's name in the checkpoint, e.g. "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    kind: str  # "cross" (pixels attend to tokens) or "self" (pixels attend to pixels)
    place: str  # "down", "mid" or "up"
    height: int
    width: int
    low_resolution: bool = True  # whether the maps hold the layout and not the details, see `Attention.site`


class AttentionEdit:
    """The interface of everything that reads or changes attention maps during generation; a subclass overrides what it needs.

    `generate` calls `prepare` once, and `at` once per step. Each attention layer then calls `wants` once (with CUDA graphs, all
    layers call it first), and passes its maps through the edit if the answer is true. After the DDIM step `generate` calls
    `after_step` with the new latents.
    """

    prompts: tuple[str, ...] | None = None  # the prompts the edit was made for, the source first; None: any prompts
    prompt_tokens: Tensor | None = None  # (prompts, T), their tokens; None: any
    masks: Sequence[Tensor] = ()  # of a local blend: one (targets, 1, h, w) per step of the last run

    def prepare(self, device: torch.device, fit_mask: Callable[[Tensor], Tensor] | None = None) -> "AttentionEdit":
        """The same edit on a device. fit_mask: cuts a user's mask as an inverted picture was cut, see `SavedRun.fit_mask`."""
        return self

    def at(self, step: int, steps: int) -> "AttentionEdit":
        """The same edit at one step, counted from 0, in order; step 0 begins a new run. May keep a state and return self."""
        return self

    def wants(self, site: Site) -> bool:
        """True if this layer's maps must be computed and edited. Where the answer is no, attention is fused, which is faster."""
        return site.kind == "cross" or site.low_resolution

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        """attn (prompts, H, P, T), float32, after the softmax, of the conditional half only -> maps of the same shape."""
        return attn

    def after_step(self, latents: Tensor) -> Tensor:
        """Latents (prompts, 4, h, w) after a DDIM step -> the latents to go on with."""
        return latents


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, eq. 1), with Q from the picture and K, V from `context`."""

    def __init__(self, channels: int, context_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.name, self.level, self.coarsest = "", 0, False  # set by the UNet
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list because the checkpoint says to_out.0

    def site(self, height: int, width: int) -> Site:
        """This layer at a feature map of height x width; the latent is 2^level times as high and as wide.

        Low resolution: at most 16 x 16 (the authors' limit at 512 x 512), or a quarter of the latent's side if that is more, and
        always the coarsest layers.
        """
        kind = "cross" if self.name.endswith("attn2") else "self"
        quarter = (height << self.level) * (width << self.level) // 16
        low_resolution = self.coarsest or height * width <= max(16 * 16, quarter)
        return Site(self.name, kind, self.name.split("_")[0], height, width, low_resolution)

    def split_heads(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, H, N, C / H)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor, site: Site, edit: AttentionEdit | None = None, n_uncond: int = 0) -> Tensor:
        """x (B, P, C), context (B, T, D) -> (B, P, C). `edit` never receives the maps of the first `n_uncond` rows."""
        q = self.split_heads(self.to_q(x))
        k = self.split_heads(self.to_k(context))
        v = self.split_heads(self.to_v(context))
        if edit is None or not edit.wants(site):
            out = F.scaled_dot_product_attention(q, k, v)  # the same formula, fused: the maps are never in memory
        else:
            # With classifier-free guidance the batch is [uncond, cond]. Only the cond rows are edited, so only their maps are
            # materialised. They are float32, because the scores of some models exceed float16's range.
            n, scale = n_uncond, q.shape[-1] ** -0.5
            attn = (q[n:].float() * scale @ k[n:].float().transpose(-1, -2)).softmax(-1)  # (prompts, H, P, T)
            edited = edit(attn, site)  # <-- the seam: every edit of attention happens in this line
            attn = check_edited(edited, attn, site)
            out = attn.to(v.dtype) @ v[n:]
            out = torch.cat([F.scaled_dot_product_attention(q[:n], k[:n], v[:n]), out]) if n else out
        return self.to_out[0](out.transpose(1, 2).flatten(2))
