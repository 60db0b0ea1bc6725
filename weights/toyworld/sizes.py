"""How large the toy is, and how long it is trained where the command line says nothing else: what a CPU can do in a night."""

from dataclasses import dataclass

from torch import Tensor, nn

from minip2p.clip import CLIPConfig, TextEncoder
from minip2p.unet import UNet, UNetConfig
from minip2p.vae import VAEConfig
from weights.toyworld.vocabulary import CONTEXT

SIDE = 64  # pixels of a picture


@dataclass(frozen=True)
class Size:
    """The configs of the networks, and how long each is trained."""

    vae: VAEConfig
    unet: UNetConfig
    vae_steps: int
    unet_steps: int
    batch: int  # pictures a step of the UNet; the VAE takes a quarter
    lr: float  # of the UNet

    def clip(self, vocab_size: int) -> CLIPConfig:
        width = self.unet.cross_attention_dim
        return CLIPConfig(vocab_size, width, 4 * width, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=CONTEXT)


def unet(*channels: int) -> UNetConfig:
    return UNetConfig(
        sample_size=SIDE // 4, block_out_channels=channels, down_attention=(True, True, False), layers_per_block=1,
        cross_attention_dim=128, heads=(2, 2, 2),
    )  # fmt: skip


SIZE = Size(VAEConfig((32, 64, 96), 1, norm_num_groups=8), unet(64, 128, 128), 10_000, 18_000, 32, 7e-4)


class Denoiser(nn.Module):
    """The two networks that learn together: UNet and text encoder."""

    def __init__(self, size: Size, vocab_size: int):
        super().__init__()
        self.unet = UNet(size.unet)
        self.text_encoder = TextEncoder(size.clip(vocab_size))
        for embedding in (self.text_encoder.embeddings.token_embedding, self.text_encoder.embeddings.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(z, t, self.text_encoder(tokens))
