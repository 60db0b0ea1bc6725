"""The UNet of Stable Diffusion 1 and 2: noisy latents, timestep and text embedding -> the noise in the latents.

Rombach et al. 2022 (arXiv 2112.10752). Every module has the name that it has in the checkpoint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minip2p.attention import Attention, AttentionEdit, Site
from minip2p.blocks import Downsample, ResnetBlock, Upsample
from minip2p.compose import as_edit


@dataclass(frozen=True)
class UNetConfig:
    """The numbers in which UNets differ; the defaults are Stable Diffusion 1's."""

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64  # side of the latent the network was trained on
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_attention: tuple[bool, ...] = (True, True, True, False)  # the levels that have attention, from the finest
    mid_block: bool = True  # some distilled models have no middle block
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    heads: tuple[int, ...] = (8, 8, 8, 8)  # one number a level
    use_linear_projection: bool = False  # proj_in, proj_out: linear (SD 2) or 1x1 convolution (SD 1)
    norm_num_groups: int = 32
    norm_eps: float = 1e-5


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): one half of a wide layer gates the other half, then a layer back to C channels."""

    def __init__(self, channels: int):
        super().__init__()
        gated = nn.Module()
        gated.proj = nn.Linear(channels, 8 * channels)
        self.net = nn.ModuleList([gated, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.net[0].proj(x).chunk(2, dim=-1)
        return self.net[2](hidden * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention among pixels (attn1), cross-attention to the text (attn2), a feed-forward layer per pixel (ff)."""

    def __init__(self, channels: int, text_channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, text_channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, text: Tensor, size: tuple[int, int], edit: AttentionEdit | None, n_uncond: int) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h, self.attn1.site(*size), edit, n_uncond)
        x = x + self.attn2(self.norm2(x), text, self.attn2.site(*size), edit, n_uncond)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map, with a residual connection around it."""

    def __init__(self, channels: int, text_channels: int, heads: int, groups: int, linear: bool):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, text_channels, heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def to_pixels(self, x: Tensor) -> Tensor:  # (B, C, height, width) -> (B, P, C)
        return per_pixel(self.proj_in, self.norm(x).flatten(2).transpose(1, 2))

    def forward(self, x: Tensor, text: Tensor, edit: AttentionEdit | None, n_uncond: int) -> Tensor:
        h = self.to_pixels(x)
        for block in self.transformer_blocks:
            h = block(h, text, x.shape[-2:], edit, n_uncond)
        return x + per_pixel(self.proj_out, h).transpose(1, 2).reshape(x.shape)


def per_pixel(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """x (B, P, C) -> (B, P, C). A 1x1 convolution is a linear layer over the channels, and faster as one."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


class Block(nn.Module):
    """One level of the UNet: residual blocks, each with a transformer if the level has attention, then a change of size.

    A container with the checkpoint's names; `UNet.forward` runs its layers.
    """

    def __init__(self, config: UNetConfig, level: int, in_channels: list[int], out_channels: int, attentions: int):
        super().__init__()
        time_channels, groups = 4 * config.block_out_channels[0], config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, out_channels, time_channels, groups, config.norm_eps) for channels in in_channels
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(
                out_channels, config.cross_attention_dim, config.heads[level], groups, config.use_linear_projection
            )
            for _ in range(attentions)
        )
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()


class UNet(nn.Module):
    """eps(z_t, t, text): predicts the noise (or v) in latents; `edit` reaches every attention layer as an argument."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, layers = config.block_out_channels, config.layers_per_block
        self.levels = len(widths)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(widths[0], 4 * widths[0])
        self.time_embedding.linear_2 = nn.Linear(4 * widths[0], 4 * widths[0])

        self.down_blocks = nn.ModuleList()
        channels, skips = widths[0], [widths[0]]  # skips: the widths of the feature maps that the way up will need
        for level, width in enumerate(widths):
            block = Block(config, level, [channels] + [width] * (layers - 1), width, layers * config.down_attention[level])
            skips += [width] * layers
            if level < self.levels - 1:
                block.downsamplers.append(Downsample(width, symmetric=True))
                skips.append(width)
            self.down_blocks.append(block)
            channels = width
        self.mid_block = Block(config, self.levels - 1, [channels] * 2, channels, 1) if config.mid_block else None
        self.up_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            in_channels = [(channels if i == 0 else width) + skips.pop() for i in range(layers + 1)]
            block = Block(config, level, in_channels, width, (layers + 1) * config.down_attention[level])
            if level > 0:
                block.upsamplers.append(Upsample(width))
            self.up_blocks.append(block)
            channels = width
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

        layers_by_name = {name: module for name, module in self.named_modules() if isinstance(module, Attention)}
        for name, layer in layers_by_name.items():
            layer.name, layer.level = name, self.level_of(name)
        for layer in layers_by_name.values():
            layer.coarsest = layer.level == max(other.level for other in layers_by_name.values())

    def forward(
        self,
        latents: Tensor,
        t: int | Tensor,
        text: Tensor,
        edit: AttentionEdit | Callable | None = None,
        n_uncond: int = 0,
        checkpointing: bool = False,
    ) -> Tensor:
        """latents (B, 4, h, w), t an int or (B,), text (B, T, D) -> (B, 4, h, w), float32.

        edit: reads or changes attention maps, except those of the first `n_uncond` rows of the batch. checkpointing: keep only
        the inputs of layers for the gradient and compute the rest again (Chen et al. 2016, arXiv 1604.06174).
        """
        edit = None if edit is None else as_edit(edit)  # for direct callers: `generate` has wrapped a plain function already
        # run(layer, *inputs) is layer(*inputs), with checkpointing or without
        run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False) if checkpointing else nn.Module.__call__
        time = timestep_embedding(t, self.config.block_out_channels[0], latents)
        time = self.time_embedding.linear_2(F.silu(self.time_embedding.linear_1(time)))
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            for i, resnet in enumerate(block.resnets):
                x = run(resnet, x, time)
                x = run(block.attentions[i], x, text, edit, n_uncond) if block.attentions else x
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)
        if self.mid_block is not None:
            x = run(self.mid_block.resnets[0], x, time)
            x = run(self.mid_block.attentions[0], x, text, edit, n_uncond)
            x = run(self.mid_block.resnets[1], x, time)
        for block in self.up_blocks:
            for i, resnet in enumerate(block.resnets):
                x = run(resnet, torch.cat([x, skips.pop()], dim=1), time)
                x = run(block.attentions[i], x, text, edit, n_uncond) if block.attentions else x
            for upsample in block.upsamplers:
                x = upsample(x)
        x, last = F.silu(self.conv_norm_out(x)).float(), self.conv_out
        # In float32, because guidance multiplies the difference of two outputs, and so their rounding, by 7.5.
        return F.conv2d(x, last.weight.float(), last.bias.float(), padding=1)

    def level_of(self, name: str) -> int:
        """How many times the latent is halved before the module of this name."""
        place, number, *_ = name.split(".")
        last = self.levels - 1
        return int(number) if place == "down_blocks" else last - int(number) if place == "up_blocks" else last

    def sites(self, height: int, width: int) -> list[Site]:
        """Every attention layer in the order of the modules, with the size of its maps for a latent of height x width."""
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        return [layer.site(height >> layer.level, width >> layer.level) for layer in layers]


def timestep_embedding(t: int | Tensor, channels: int, like: Tensor) -> Tensor:
    """Cosines and sines of the timestep (B, channels), at wavelengths from 2 pi to 20,000 pi (Ho et al. 2020)."""
    if not isinstance(t, Tensor):
        t = torch.full((1,), t, device=like.device)  # made on the device: a copy would wait for it
    t = t.to(like.device).expand(like.shape[0]).float()
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=like.device, dtype=torch.float32) / half)
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(like.dtype)
