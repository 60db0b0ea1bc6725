"""Small random Stable Diffusions, written to disk by diffusers and transformers themselves: the references of the tests."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minip2p.tokenizer import END, START
from weights.toyworld import vocabulary

CAPTIONS = ["a red cat next to a blue house on the grass", "a child's drawing of a dog in the snow at night", "the bicycle by a river"]


def write_tokenizer(folder: Path, pad: str = END) -> None:
    vocabulary.write(CAPTIONS, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": pad}))


def random_pipeline(folder: Path, flavour: str = "sd1", seed: int = 0) -> StableDiffusionPipeline:
    """A Stable Diffusion 1 ("sd1") or 2 ("sd2": linear projections, exact gelu, v-prediction, pads with "!") in small."""
    torch.manual_seed(seed)
    sd2 = flavour == "sd2"
    write_tokenizer(folder / "tokenizer", pad="!" if sd2 else END)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vocab = tokenizer.get_vocab()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            hidden_act="gelu" if sd2 else "quick_gelu", bos_token_id=vocab[START], eos_token_id=vocab[END], pad_token_id=vocab[END],
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=2 if sd2 else 1, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=48, attention_head_dim=[2, 4, 4] if sd2 else 2, use_linear_projection=sd2,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, sample_size=64, scaling_factor=0.3,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction" if sd2 else "epsilon",
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline
