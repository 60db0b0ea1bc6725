"""CLIP's text encoder: token ids -> one vector per token, which depends on that token and on those before it.

Radford et al. 2021 (arXiv 2103.00020). Stable Diffusion 1 uses OpenAI's weights (12 layers), Stable Diffusion 2 the first
23 of OpenCLIP's 24 layers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class CLIPConfig:
    """The numbers in which text encoders differ; the defaults are Stable Diffusion 1's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with (Hendrycks & Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CausalSelfAttention(nn.Module):
    """Token n attends to tokens 0 to n. So a word's vector also depends on the words before it, and never on later ones."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        D = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            proj(x).view(B, T, self.heads, D // self.heads).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(B, T, D))


class Layer(nn.Module):
    """A pre-norm transformer layer: self-attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CausalSelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.mlp.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp.fc2(self.activation(self.mlp.fc1(self.layer_norm2(x))))


def embedding(count: int, width: int) -> nn.Embedding:
    """A table of zeros. On the meta device nn.Embedding's normal numbers import torch's compiler, which takes longer than loading."""
    return nn.Embedding.from_pretrained(torch.zeros(count, width), freeze=False)


class TextEncoder(nn.Module):
    """Token ids (B, T) -> text embedding (B, T, D): the last layer's output after the final norm."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = embedding(config.vocab_size, config.hidden_size)
        self.embeddings.position_embedding = embedding(config.max_position_embeddings, config.hidden_size)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.embeddings.position_embedding.weight[: tokens.shape[1]]
        x = self.embeddings.token_embedding(tokens.to(positions.device)) + positions
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)
