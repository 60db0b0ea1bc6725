"""The autoencoder of Stable Diffusion (VAE): pictures -> latents with an eighth of their height and width, and back.

Rombach et al. 2022 (arXiv 2112.10752). Latents here are the network's own, not multiplied by `scaling_factor`.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from minip2p.blocks import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # of every GroupNorm in the VAE; the UNet's residual blocks have 1e-5


@dataclass(frozen=True)
class VAEConfig:
    """The numbers in which autoencoders differ; the defaults are Stable Diffusion's."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # latents times this factor have a standard deviation near 1

    @property
    def factor(self) -> int:
        """The picture's side divided by the latent's: 8 in Stable Diffusion."""
        return 2 ** (len(self.block_out_channels) - 1)


class SelfAttention(nn.Module):
    """Self-attention of the coarsest feature map, with one head. No edit can change these maps."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        B, C, height, width = x.shape
        h = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, P, C)
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](h)[:, 0].transpose(1, 2).reshape(B, C, height, width)


class MidBlock(nn.Module):
    """The coarsest level: a residual block, self-attention, a residual block."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, None, groups, EPS) for _ in range(2))
        self.attentions = nn.ModuleList([SelfAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Level(nn.Module):
    """Residual blocks of one width, then downsampling, upsampling, or neither (resize None)."""

    def __init__(self, channels: int, out_channels: int, layers: int, groups: int, resize: str | None):
        super().__init__()
        widths = [channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock(width, out_channels, None, groups, EPS) for width in widths)
        if resize == "downsample":
            self.downsamplers = nn.ModuleList([Downsample(out_channels, symmetric=False)])
        if resize == "upsample":
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for resize in [*getattr(self, "downsamplers", []), *getattr(self, "upsamplers", [])]:
            x = resize(x)
        return x


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> mean and log-variance of the latents, (B, 8, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (channels, width) in enumerate(zip((widths[0], *widths), widths)):
            resize = "downsample" if i < len(widths) - 1 else None
            self.down_blocks.append(Level(channels, width, config.layers_per_block, groups, resize))
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, 4, h, w) -> pictures (B, 3, H, W). Each level has one residual block more than the encoder's."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList()
        for i, (channels, width) in enumerate(zip((widths[0], *widths), widths)):
            resize = "upsample" if i < len(widths) - 1 else None
            self.up_blocks.append(Level(channels, width, config.layers_per_block + 1, groups, resize))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2013): `encode` returns the posterior's mean, `decode` a picture."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> mean and log-variance of the latent, each (B, 4, h, w)."""
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> the posterior's mean (B, 4, h, w), not scaled."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, 4, h, w), not scaled -> (B, 3, H, W) in about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))
