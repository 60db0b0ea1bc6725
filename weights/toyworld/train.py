"""Train the toy Stable Diffusion from nothing: python -m weights.toyworld.train [--hours H] (or `make toy`).

Four stages, each resumed where it was left (the state lies in `--run`, every few minutes a fresh one):
    pictures   draw the world into one array, with its captions, and learn the vocabulary
    vae        pictures -> latents -> pictures: L1, and a little KL that keeps the latents near a unit Gaussian
    latents    encode every picture once
    unet       denoise latents, text encoder and UNet together: min-SNR weights (Hang et al. 2023), 10 % captions dropped
and `export`, which writes the checkpoint in the folder layout of diffusers, in half precision.
"""

import argparse
import json
import time
from dataclasses import asdict
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minip2p.clip import CLIPConfig, TextEncoder
from minip2p.ddim import Schedule
from minip2p.tokenizer import CLIPTokenizer
from minip2p.unet import UNet, UNetConfig
from minip2p.vae import VAE, VAEConfig
from weights.toyworld import vocabulary, world

SIDE = 64
HELD_OUT = 1_000  # the last pictures drawn are for validation only
VAE_CONFIG = VAEConfig((24, 48, 64), layers_per_block=1, norm_num_groups=8)
UNET_CONFIG = UNetConfig(
    sample_size=16, block_out_channels=(64, 128, 128), down_attention=(True, True, False), layers_per_block=1,
    cross_attention_dim=128, heads=(2, 2, 2),
)  # fmt: skip
SAVE_EVERY = 120  # seconds


def clip_config(vocab_size: int) -> CLIPConfig:
    return CLIPConfig(vocab_size, 128, 512, num_hidden_layers=2, num_attention_heads=4)


# ---------------------------------------------------------------- pictures


def _draw(seed: int) -> tuple[np.ndarray, str]:
    picture, caption, _, _ = world.example(seed, SIDE)
    return np.asarray(picture), caption


def draw_pictures(run: Path, count: int) -> None:
    """pictures.npy (count, 64, 64, 3) uint8, captions.json, and the tokenizer learned from them."""
    if (run / "captions.json").exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    pictures = np.lib.format.open_memmap(run / "pictures.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    captions = []
    with Pool() as pool:
        for i, (picture, caption) in enumerate(pool.imap(_draw, range(count), chunksize=256)):
            pictures[i] = picture
            captions.append(caption)
            if i % 5000 == 0:
                print(f"pictures {i}/{count}", flush=True)
    pictures.flush()
    vocabulary.write(captions, run / "tokenizer")
    (run / "captions.json").write_text(json.dumps(captions))


def as_images(pictures: np.ndarray, device) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float()
    return (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- a training loop for both networks


class Run:
    """One network's training: AdamW, a short warm-up, a linear cool-down at the end, averaged weights, a state file."""

    def __init__(self, path: Path, model: nn.Module, lr: float, steps: int, average: float = 0.999, cooldown: float = 0.35):
        self.path, self.model, self.lr, self.steps = path, model, lr, steps
        self.average, self.cooldown = average, cooldown
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.ema = {k: v.clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema = {k: v.to(self.ema[k].device) for k, v in state["ema"].items()}
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema}
        torch.save(state | {"step": self.step, "seconds": self.seconds}, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)

    def train(self, loss_of, validate) -> None:
        """Until `steps`: loss_of(step) gives a loss and is called with a generator seeded by the step."""
        saved = begun = time.time()
        total, losses = self.seconds, []
        while self.step < self.steps:
            left = 1 - self.step / self.steps
            rate = self.lr * min(1, (self.step + 1) / 200) * min(1, left / self.cooldown)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(torch.Generator().manual_seed(self.step), np.random.default_rng(self.step))
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            share = min(self.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.ema.values()), list(self.model.state_dict().values()), 1 - share)
            losses.append(loss.detach())
            self.seconds = total + time.time() - begun
            if time.time() - saved > SAVE_EVERY or self.step == self.steps:
                mean, losses = torch.stack(losses).mean().item(), []
                print(f"{self.path.stem} {self.step}/{self.steps} {self.seconds:.0f} s loss {mean:.4f} {validate()}", flush=True)
                self.save()
                saved = time.time()


# ---------------------------------------------------------------- VAE


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures (B, 3, H, W) in [-1, 1] of 10 log10(1 / mse), in dB, on the scale [0, 1]."""
    mse = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    return (-10 * mse.log10()).mean().item()


def train_vae(run: Path, steps: int, device, decoder_only: bool = False) -> VAE:
    """A picture in, the same picture out, through 16 x 16 x 4 numbers. decoder_only: the latents stay what they are."""
    pictures = np.load(run / "pictures.npy", mmap_mode="r")
    vae = VAE(VAE_CONFIG).to(device, memory_format=torch.channels_last)
    if decoder_only:
        vae.load_state_dict(torch.load(run / "vae.pt", weights_only=True)["ema"])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    held = as_images(pictures[-200:], device)

    def loss_of(generator, rng):
        images = as_images(pictures[rng.integers(0, len(pictures) - HELD_OUT, 8)], device)
        mean, log_variance = vae.posterior(images)
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(device)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = vae.decode(z) - images
        return error.abs().mean() + error.square().mean() + 1e-3 * kl

    @torch.no_grad()
    def validate():
        z = vae.encode(held)
        return f"psnr {psnr(vae.decode(z), held):.2f} dB, spread of latents {z.std((0, 2, 3)).tolist()}"

    training = Run(run / ("decoder.pt" if decoder_only else "vae.pt"), vae, 1e-3, steps)
    training.train(loss_of, validate)
    vae.load_state_dict(training.ema)
    print("averaged:", validate(), flush=True)
    return vae


@torch.no_grad()
def encode_pictures(run: Path, vae: VAE, device) -> None:
    """latents.npy (count, 4, 16, 16) float16, each the posterior's mean, not scaled."""
    if (run / "latents.npy").exists():
        return
    pictures = np.load(run / "pictures.npy", mmap_mode="r")
    latents = np.concatenate(
        [vae.encode(as_images(pictures[i : i + 100], device)).half().cpu().numpy() for i in range(0, len(pictures), 100)]
    )
    np.save(run / "latents.npy", latents)


# ---------------------------------------------------------------- UNet and text encoder


class Denoiser(nn.Module):
    """The two networks that learn together."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.unet = UNet(UNET_CONFIG)
        self.text_encoder = TextEncoder(clip_config(vocab_size))
        for embedding in (self.text_encoder.embeddings.token_embedding, self.text_encoder.embeddings.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(z, t, self.text_encoder(tokens))


def train_unet(run: Path, steps: int, batch: int, lr: float, device) -> Denoiser:
    """Noise prediction; each timestep is drawn as often as min(SNR, 5) / SNR says, which is Hang et al.'s weight."""
    latents = torch.from_numpy(np.load(run / "latents.npy"))
    scale = 1 / latents.float().std()
    tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
    tokens = tokenizer(json.loads((run / "captions.json").read_text()))
    nothing = tokenizer("")[0]
    torch.manual_seed(0)
    model = Denoiser(len(tokenizer.bpe.get_vocab())).to(device, memory_format=torch.channels_last)
    a = Schedule().alphas_cumprod.to(device)
    chances = (5 * (1 - a) / a).clamp(max=1).cpu()

    def loss_on(index, generator, drop, chances):
        z, ids = (latents[index].float() * scale).to(device), tokens[index].clone()
        ids[torch.rand(len(ids), generator=generator) < drop] = nothing
        t = torch.multinomial(chances, len(ids), replacement=True, generator=generator).to(device)
        noise = torch.randn(z.shape, generator=generator).to(device)
        a_t = a[t][:, None, None, None]
        noisy = (a_t.sqrt() * z + (1 - a_t).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        return (model(noisy, t, ids.to(device)) - noise).square().mean()

    def loss_of(generator, rng):
        index = torch.from_numpy(rng.integers(0, len(latents) - HELD_OUT, batch))
        return loss_on(index, generator, 0.1, chances)

    @torch.no_grad()
    def validate():
        index = torch.arange(len(latents) - 256, len(latents))
        generator = torch.Generator().manual_seed(1)
        current = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(training.ema)
        error = torch.stack([loss_on(part, generator, 0.0, torch.ones(len(a))) for part in index.split(64)]).mean()
        model.load_state_dict(current)
        return f"validation mse (averaged weights) {error.item():.4f}"

    training = Run(run / "unet.pt", model, lr, steps)
    training.train(loss_of, validate)
    model.load_state_dict(training.ema)
    return model


# ---------------------------------------------------------------- the checkpoint


def export(run: Path, folder: Path) -> None:
    """Write what has been trained so far (averaged weights) as diffusers would: configs, fp16 safetensors, tokenizer."""
    tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
    vocab_size = len(tokenizer.bpe.get_vocab())
    model = Denoiser(vocab_size)
    model.load_state_dict(torch.load(run / "unet.pt", map_location="cpu", weights_only=True)["ema"])
    decoder = run / "decoder.pt"
    state = torch.load(decoder if decoder.exists() else run / "vae.pt", map_location="cpu", weights_only=True)["ema"]
    scale = 1 / torch.from_numpy(np.load(run / "latents.npy")).float().std().item()

    write_weights(folder / "unet/diffusion_pytorch_model.safetensors", model.unet.state_dict())
    write_weights(folder / "vae/diffusion_pytorch_model.safetensors", state)
    text = {f"text_model.{k}": v for k, v in model.text_encoder.state_dict().items()}
    write_weights(folder / "text_encoder/model.safetensors", text)
    for name, content in configs(vocab_size, round(scale, 5), tokenizer).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for file in (run / "tokenizer").iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})


def configs(vocab_size: int, scaling_factor: float, tokenizer: CLIPTokenizer) -> dict[str, dict]:
    """Every JSON file of a Stable Diffusion 1 folder, with the toy's numbers."""
    unet, vae, clip = asdict(UNET_CONFIG), asdict(VAE_CONFIG), asdict(clip_config(vocab_size))
    attention, groups = unet.pop("down_attention"), vae["norm_num_groups"]
    levels = len(vae["block_out_channels"])
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
            "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", **asdict(Schedule()), "clip_sample": False,
                                            "timestep_spacing": "leading"},
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "attention_head_dim": unet.pop("heads")[0], **unet,
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL", **vae, "norm_num_groups": groups, "sample_size": SIDE,
            "scaling_factor": scaling_factor, "in_channels": 3, "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **clip,
            "bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad,
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["pictures", "vae", "decoder", "unet", "export", "all"], nargs="?", default="all")
    parser.add_argument("--run", type=Path, default=Path("weights/toyworld/run"), help="where the state lies")
    parser.add_argument("--to", type=Path, default=Path("weights/toy"), help="where export writes")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--vae-steps", type=int, default=5_000)
    parser.add_argument("--decoder-steps", type=int, default=3_000)
    parser.add_argument("--unet-steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16, help="of the UNet")
    parser.add_argument("--lr", type=float, default=7e-4, help="of the UNet")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wanted(stage: str) -> bool:
        return args.stage in (stage, "all")

    if wanted("pictures"):
        draw_pictures(args.run, args.pictures)
    if wanted("vae"):
        encode_pictures(args.run, train_vae(args.run, args.vae_steps, device), device)
    if wanted("unet"):
        train_unet(args.run, args.unet_steps, args.batch, args.lr, device)
    if wanted("decoder"):
        train_vae(args.run, args.decoder_steps, device, decoder_only=True)
    if wanted("export"):
        export(args.run, args.to)


if __name__ == "__main__":
    main()
