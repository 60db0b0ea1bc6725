"""Small random Stable Diffusions, written to disk by diffusers and transformers: the references of the tests."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minip2p.tokenizer import END, START
from weights.toyworld import vocabulary

CAPTIONS = [
    "a red cat next to a blue house on the grass",
    "a child's drawing of a dog in the snow",
    "the bicycle by a river at night",
]
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def write_tokenizer(folder: Path, pad: str = END) -> None:
    """A small vocabulary with CLIP's context of 77 tokens. pad: "!" in Stable Diffusion 2."""
    vocabulary.write(CAPTIONS, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": pad, "model_max_length": 77}))


def random_pipeline(folder: Path, flavour: str = "sd1", seed: int = 0) -> StableDiffusionPipeline:
    """A small Stable Diffusion with random weights, also written to `folder`.

    flavour: "sd1"; "sd2" (linear projections, exact gelu, v-prediction, padding with "!"); or "deep", Stable Diffusion 1 with
    the depth, heads and groups of the real one, which a single file does not tell.
    """
    torch.manual_seed(seed)
    sd2, deep = flavour == "sd2", flavour == "deep"
    text_width = 64 if deep else 48
    write_tokenizer(folder / "tokenizer", pad="!" if sd2 else END)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vocab = tokenizer.get_vocab()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=text_width, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=1 if deep else 4, hidden_act="gelu" if sd2 else "quick_gelu",
            bos_token_id=vocab[START], eos_token_id=vocab[END], pad_token_id=vocab[END],
        )
    )  # fmt: skip
    blocks = (CROSS, CROSS, CROSS, PLAIN) if deep else (CROSS, CROSS, PLAIN)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 64, 64)[: len(blocks)], layers_per_block=2 if sd2 or deep else 1,
        down_block_types=tuple(down for down, _ in blocks), up_block_types=tuple(up for _, up in reversed(blocks)),
        cross_attention_dim=text_width, attention_head_dim=[2, 4, 4] if sd2 else 8 if deep else 2, use_linear_projection=sd2,
        norm_num_groups=32 if deep else 16,
    )  # fmt: skip
    widths = (32, 32, 64, 64) if deep else (16, 32, 32)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths, layers_per_block=2 if deep else 1, norm_num_groups=32 if deep else 8, sample_size=64,
        scaling_factor=0.18215 if deep else 0.3,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction" if sd2 else "epsilon",
    )  # fmt: skip
    return assembled(folder, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)


def assembled(folder: Path, **parts) -> StableDiffusionPipeline:
    """A quiet pipeline of these parts, also written to `folder`, whose norms are not 1 and whose biases are not 0."""
    for network in (parts["text_encoder"], parts["unet"], parts["vae"]):
        for parameter in network.eval().parameters():
            parameter.data += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0
    pipeline = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def sharp_pipeline(folder: Path, flavour: str = "sd1") -> StableDiffusionPipeline:
    """A random pipeline with larger weights in attention. Without that its maps are so even that edits hardly matter."""
    pipeline = random_pipeline(folder, flavour)
    with torch.no_grad():
        for name, module in pipeline.unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                module.to_q.weight *= 10
                module.to_v.weight *= 3
    pipeline.save_pretrained(folder)
    return pipeline


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference of two tensors, relative to the norm of the second."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()
