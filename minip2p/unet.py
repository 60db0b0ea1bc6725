"""The denoising UNet of Stable Diffusion 1 and 2: noisy latent + time + text -> the noise in it.

Rombach et al. 2022 (arXiv 2112.10752). Every module carries the name it has in the checkpoint.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minip2p.attention import Attention, Site
from minip2p.blocks import Downsample, ResnetBlock, Upsample


@dataclass(frozen=True)
class UNetConfig:
    """The numbers that tell one UNet from another; the defaults are Stable Diffusion 1's."""

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64  # side of the latent the network was trained on
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_attention: tuple[bool, ...] = (True, True, True, False)  # which levels look at the text, from the finest
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    heads: tuple[int, ...] = (8, 8, 8, 8)  # one number a level
    use_linear_projection: bool = False  # proj_in, proj_out: linear (SD 2) or 1x1 convolution (SD 1)
    norm_num_groups: int = 32
    norm_eps: float = 1e-5


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): one half of a wide layer gates the other, then back to C channels."""

    def __init__(self, channels: int):
        super().__init__()
        gated = nn.Module()
        gated.proj = nn.Linear(channels, 8 * channels)
        self.net = nn.ModuleList([gated, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.net[0].proj(x).chunk(2, dim=-1)
        return self.net[2](hidden * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Pixels look at each other (attn1), then at the words (attn2), then each thinks for itself (ff)."""

    def __init__(self, channels: int, text_channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, text_channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, text: Tensor, size: tuple[int, int], edit) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h, self.attn1.site(*size), edit)
        x = x + self.attn2(self.norm2(x), text, self.attn2.site(*size), edit)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A feature map becomes a list of pixels, passes a transformer block, and becomes a feature map again."""

    def __init__(self, channels: int, text_channels: int, heads: int, groups: int, linear: bool):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.linear = linear
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, text_channels, heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor, edit) -> Tensor:
        B, C, height, width = x.shape
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # (B, P, C)
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, text, (height, width), edit)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).reshape(B, C, height, width)
        return x + (h if self.linear else self.proj_out(h))


class DownBlock(nn.Module):
    """One level on the way down: residual blocks, attention if this level has it, then halve."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig, level: int, halve: bool):
        super().__init__()
        widths = [channels] + [out_channels] * (config.layers_per_block - 1)
        self.resnets = nn.ModuleList(_resnet(width, out_channels, config) for width in widths)
        if config.down_attention[level]:
            self.attentions = nn.ModuleList(_transformer(out_channels, config, level) for _ in widths)
        if halve:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, symmetric=True)])

    def forward(self, x: Tensor, time: Tensor, text: Tensor, edit) -> list[Tensor]:
        """Returns every intermediate feature map; the last goes on down, all of them wait for the way up."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, text, edit)
            outputs.append(x)
        if hasattr(self, "downsamplers"):
            outputs.append(self.downsamplers[0](x))
        return outputs


class MidBlock(nn.Module):
    """The bottom of the U: the coarsest feature map."""

    def __init__(self, channels: int, config: UNetConfig):
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(channels, channels, config) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(channels, config, level=-1)])

    def forward(self, x: Tensor, time: Tensor, text: Tensor, edit) -> Tensor:
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, text, edit)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """One level on the way up: join the waiting feature maps, residual blocks, attention, then double."""

    def __init__(self, channels: int, skips: list[int], out_channels: int, config: UNetConfig, level: int, double: bool):
        super().__init__()
        widths = [channels] + [out_channels] * (len(skips) - 1)
        self.resnets = nn.ModuleList(_resnet(w + skip, out_channels, config) for w, skip in zip(widths, skips))
        if config.down_attention[level]:
            self.attentions = nn.ModuleList(_transformer(out_channels, config, level) for _ in skips)
        if double:
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, text: Tensor, edit) -> Tensor:
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips)):
            x = resnet(torch.cat([x, skip], dim=1), time)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, text, edit)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class UNet(nn.Module):
    """eps(z_t, t, text): predicts the noise (or v) in a latent; `edit` is handed to every attention layer."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.levels = len(widths)
        time_channels = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(widths[0], time_channels)
        self.time_embedding.linear_2 = nn.Linear(time_channels, time_channels)

        self.down_blocks = nn.ModuleList()
        channels, waiting = widths[0], [widths[0]]  # waiting: the widths of the feature maps kept for the way up
        for level, width in enumerate(widths):
            halve = level < self.levels - 1
            self.down_blocks.append(DownBlock(channels, width, config, level, halve))
            waiting += [width] * (config.layers_per_block + halve)
            channels = width
        self.mid_block = MidBlock(channels, config)
        self.up_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            skips = [waiting.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(channels, skips, width, config, level, double=level > 0))
            channels = width
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.name, module.level = name, self.level_of(name)

    def forward(self, latents: Tensor, t: int | Tensor, text: Tensor, edit=None, checkpointing: bool = False) -> Tensor:
        """latents (B, 4, h, w), t an int or (B,), text (B, T, D) -> (B, 4, h, w).

        checkpointing: where a gradient is wanted, keep only what passes between blocks and compute the inside of each block
        again on the way back (Chen et al. 2016, arXiv 1604.06174). Less memory, more time; `edit` is then asked twice.
        """
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False) if checkpointing else lambda block, *x: block(*x)
        time = time_features(t, self.config.block_out_channels[0], latents)
        time = self.time_embedding.linear_2(F.silu(self.time_embedding.linear_1(time)))
        x = self.conv_in(latents)
        waiting = [x]
        for block in self.down_blocks:
            waiting += run(block, waiting[-1], time, text, edit)
        x = run(self.mid_block, waiting[-1], time, text, edit)
        for block in self.up_blocks:
            x = run(block, x, [waiting.pop() for _ in block.resnets], time, text, edit)
        x, last = F.silu(self.conv_norm_out(x)).float(), self.conv_out
        # In float32, for guidance multiplies the difference of two outputs, and so their rounding, by 7.5.
        return F.conv2d(x, last.weight.float(), last.bias.float(), padding=1)

    def level_of(self, name: str) -> int:
        """How often the latent was halved where a module of this name works."""
        place, number, *_ = name.split(".")
        last = self.levels - 1
        return int(number) if place == "down_blocks" else last - int(number) if place == "up_blocks" else last

    def sites(self, height: int, width: int) -> list[Site]:
        """Every attention layer in the order it runs, with the size its maps have for a latent of this size."""
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        return [layer.site(height >> layer.level, width >> layer.level) for layer in layers]


def time_features(t: int | Tensor, channels: int, like: Tensor) -> Tensor:
    """Cosines and sines of the timestep (B, channels), at wavelengths from 2 pi to 20,000 pi (Ho et al. 2020)."""
    t = t if isinstance(t, Tensor) else torch.full((1,), t, device=like.device)  # written there: a copy would wait for the device
    t = t.to(like.device).expand(like.shape[0]).float()
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=like.device, dtype=torch.float32) / half)
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(like.dtype)


def _resnet(channels: int, out_channels: int, config: UNetConfig) -> ResnetBlock:
    time_channels = 4 * config.block_out_channels[0]
    return ResnetBlock(channels, out_channels, time_channels, config.norm_num_groups, config.norm_eps)


def _transformer(channels: int, config: UNetConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        channels, config.cross_attention_dim, config.heads[level], config.norm_num_groups, config.use_linear_projection
    )
