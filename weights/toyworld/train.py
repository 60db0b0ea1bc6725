"""Train the toy Stable Diffusion from nothing: python -m weights.toyworld.train (or `make toy`).

Stages; those that take hours are resumed where they were left (the state lies in `--run`, every few minutes a fresh one):
    pictures   draw the world into one array, with its captions, and learn the vocabulary
    vae        pictures -> latents -> pictures: L1 + MSE, and a little KL that keeps the latents near a unit Gaussian;
               then encode every picture once
    unet       denoise latents, text encoder and UNet together: min-SNR-5 (Hang et al. 2023), the noisiest weighed up, 10 % captions dropped
    decoder    train the VAE's decoder on, the latents staying what they are
    export     write the checkpoint in the folder layout of diffusers, in half precision
The recipe is the same on CPU and CUDA; a GPU affords `--size large`. `--start weights/toy` begins with a checkpoint's weights
instead of random ones: its VAE's latents stay what they are, UNet, text encoder and decoder are trained on.
"""

import argparse
import json
import shutil
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minip2p import StableDiffusion
from minip2p.ddim import Schedule
from minip2p.errors import PromptError
from minip2p.files import write_whole
from minip2p.tokenizer import CLIPTokenizer
from minip2p.vae import VAE
from weights.command import command
from weights.toyworld import vocabulary, world
from weights.toyworld.export import export
from weights.toyworld.loop import Run
from weights.toyworld.sizes import SIDE, SIZES, Denoiser, Size


def held_out(count: int) -> int:
    """So many of the pictures, the last ones, are for validation only."""
    return min(1_000, count // 5)


def begun(run: Path, settings: dict) -> bool:
    """Is there a run in this folder? PromptError if it was begun with other settings, which would mix two models."""
    file = run / "settings.json"
    if not file.exists():
        return False
    for name, value in json.loads(file.read_text()).items():
        if settings[name] != value:
            raise PromptError(f"{run} holds a run with --{name} {value}, not {settings[name]}: give that, or another --run")
    return True


def made(file: Path, stage: str) -> Path:
    """The file, if an earlier stage has made it."""
    if not file.exists():
        raise PromptError(f"{file} is not there: run the stage `{stage}` first")
    return file


def adopt(folder: Path, run: Path, size: Size) -> None:
    """A shipped checkpoint as the state of a run in which the VAE is finished and the others are at step 0."""
    sd = StableDiffusion.load(folder, "cpu", "float32")
    if (sd.unet.config, sd.vae.config.block_out_channels) != (size.unet, size.vae.block_out_channels):
        raise PromptError(f"{folder} is a model of another size: give another --size, or start from nothing")
    shutil.copytree(folder / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    unet, text_encoder, vae = (network.state_dict() for network in (sd.unet, sd.text_encoder, sd.vae))
    both = {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text_encoder.items()}
    for name, weights, step in (("unet", both, 0), ("decoder", vae, 0), ("vae", vae, size.vae_steps)):
        state = {"ema": weights, "step": step, "seconds": 0.0}
        write_whole(run / f"{name}.pt", lambda path: torch.save(state, path))  # noqa: B023, it is called at once


# ---------------------------------------------------------------- pictures


def _draw(seed: int) -> tuple[np.ndarray, str]:
    picture, caption, _, _ = world.example(seed, SIDE)
    return np.asarray(picture), caption


def draw_pictures(run: Path, count: int) -> None:
    """pictures.npy (count, 64, 64, 3) uint8, captions.json, and the tokenizer learned from them."""
    if (run / "captions.json").exists():
        return
    pictures = np.lib.format.open_memmap(run / "pictures.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    captions = []
    with Pool() as pool:
        for i, (picture, caption) in enumerate(pool.imap(_draw, range(count), chunksize=256)):
            pictures[i] = picture
            captions.append(caption)
            if i % 5000 == 0:
                print(f"pictures {i}/{count}", flush=True)
    pictures.flush()
    if not (run / "tokenizer" / vocabulary.LAST).exists():
        vocabulary.write(captions, run / "tokenizer")
    write_whole(run / "captions.json", lambda path: path.write_text(json.dumps(captions)))


def as_images(pictures: np.ndarray, device) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) in [-1, 1]."""
    images = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float()
    return (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- VAE


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures (B, 3, H, W) in [-1, 1] of 10 log10(1 / mse), in dB, on the scale [0, 1]."""
    mse = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    return (-10 * mse.log10()).mean().item()


def train_vae(run: Path, size: Size, steps: int, device) -> VAE:
    """A picture in, the same picture out, through 16 x 16 x 4 numbers. Once pictures are encoded it stays as it is."""
    pictures = np.load(made(run / "pictures.npy", "pictures"), mmap_mode="r")
    torch.manual_seed(0)
    vae = VAE(size.vae).to(device, memory_format=torch.channels_last)
    held = as_images(pictures[-min(200, held_out(len(pictures))) :], device)

    def loss_of(generator, rng):
        images = as_images(pictures[rng.integers(0, len(pictures) - held_out(len(pictures)), 8)], device)
        mean, log_variance = vae.posterior(images)
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(device)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return difference(vae.decode(z), images) + 1e-3 * kl

    def validate():
        z = vae.encode(held)
        return f"psnr {psnr(vae.decode(z), held):.2f} dB, spread of latents {z.std((0, 2, 3)).tolist()}"

    training = Run(run / "vae.pt", vae, 1e-3, steps)
    if not (run / "latents.npy").exists():
        training.train(loss_of, validate)
    vae.load_state_dict(training.ema)
    return vae


def train_decoder(run: Path, size: Size, steps: int, device) -> None:
    """Latents in, their pictures out: the way back alone, once the UNet has learned these latents."""
    latents = torch.from_numpy(np.load(made(run / "latents.npy", "vae")))
    pictures = np.load(run / "pictures.npy", mmap_mode="r")
    vae = VAE(size.vae).to(device, memory_format=torch.channels_last)
    vae.load_state_dict(torch.load(run / "vae.pt", map_location="cpu", weights_only=True)["ema"])
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    held = as_images(pictures[-min(200, held_out(len(pictures))) :], device)

    def decode(index: np.ndarray) -> Tensor:
        return vae.decode(latents[torch.from_numpy(index)].float().to(device).contiguous(memory_format=torch.channels_last))

    def loss_of(generator, rng):
        index = rng.integers(0, len(pictures) - held_out(len(pictures)), 8)
        return difference(decode(index), as_images(pictures[index], device))

    def validate():
        return f"psnr {psnr(decode(np.arange(len(pictures) - len(held), len(pictures))), held):.2f} dB"

    training = Run(run / "decoder.pt", vae, 6e-4, steps)
    training.train(loss_of, validate)


def difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean() + (a - b).square().mean()


@torch.no_grad()
def encode_pictures(run: Path, vae: VAE, device) -> None:
    """latents.npy (count, 4, 16, 16) float16, each the posterior's mean, not scaled."""
    if (run / "latents.npy").exists():
        return
    pictures = np.load(run / "pictures.npy", mmap_mode="r")
    latents = np.concatenate(
        [vae.encode(as_images(pictures[i : i + 100], device)).half().cpu().numpy() for i in range(0, len(pictures), 100)]
    )
    write_whole(run / "latents.npy", lambda path: np.save(path, latents))


# ---------------------------------------------------------------- UNet and text encoder


def train_unet(run: Path, size: Size, steps: int, device, bf16: bool) -> None:
    """Noise prediction; each timestep is drawn as often as min(SNR, 5) / SNR says, which is Hang et al.'s weight.

    What is still missing at a timestep goes roughly with sqrt(alphas_cumprod): the noisiest pictures, on which the layout
    is decided, have by far the smallest errors. They are divided by that root.
    """
    latents = torch.from_numpy(np.load(made(run / "latents.npy", "vae")))
    scale = 1 / latents.float().std()
    tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
    tokens = tokenizer(json.loads((run / "captions.json").read_text()))
    nothing = tokenizer("")[0]
    torch.manual_seed(0)
    model = Denoiser(size, len(tokenizer.bpe.get_vocab())).to(device, memory_format=torch.channels_last)
    a = Schedule().alphas_cumprod.to(device)
    chances = (5 * (1 - a) / a).clamp(max=1).cpu()

    def errors(index, generator, drop, chances):
        """The squared error of each picture (B,), and how much signal its timestep leaves (B,)."""
        z, ids = (latents[index].float() * scale).to(device), tokens[index].clone()
        ids[torch.rand(len(ids), generator=generator) < drop] = nothing
        t = torch.multinomial(chances, len(ids), replacement=True, generator=generator).to(device)
        noise = torch.randn(z.shape, generator=generator).to(device)
        a_t = a[t][:, None, None, None]
        noisy = (a_t.sqrt() * z + (1 - a_t).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = model(noisy, t, ids.to(device))
        return (output.float() - noise).square().mean((1, 2, 3)), a[t]

    def loss_of(generator, rng):
        index = torch.from_numpy(rng.integers(0, len(latents) - held_out(len(latents)), size.batch))
        error, a_t = errors(index, generator, 0.1, chances)
        return (error / a_t.sqrt()).mean()

    def validate():
        index = torch.arange(len(latents))[-min(256, held_out(len(latents))) :]
        generator = torch.Generator().manual_seed(1)
        error = torch.cat([errors(part, generator, 0.0, torch.ones(len(a)))[0] for part in index.split(64)])
        return f"validation mse {error.mean().item():.4f}"

    training = Run(run / "unet.pt", model, size.lr, steps)
    training.train(loss_of, validate)


def main() -> None:
    stages = ("pictures", "vae", "unet", "decoder", "export")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*stages, "all"], nargs="?", default="all")
    parser.add_argument("--size", choices=SIZES, default="small", help="large is for a GPU")
    parser.add_argument("--run", type=Path, default=Path("weights/toyworld/run"), help="where the state lies")
    parser.add_argument("--to", type=Path, default=Path("weights/toy"), help="where export writes")
    parser.add_argument("--start", type=Path, help="a checkpoint to train on, where --run holds nothing yet")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--bf16", action="store_true", help="UNet and text encoder in bfloat16: faster on GPUs and AVX512-BF16")
    for network in ("vae", "unet", "decoder"):
        parser.add_argument(f"--{network}-steps", type=int, help="instead of the size's own")
    args = parser.parse_args()
    size, run = SIZES[args.size], args.run
    if args.pictures < 10:
        raise PromptError(f"--pictures {args.pictures} is too few: at least 10, a fifth of them for validation")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU that has it
    run.mkdir(parents=True, exist_ok=True)
    settings = {"size": args.size, "start": args.start and str(args.start), "pictures": args.pictures}
    if not begun(run, settings):
        if args.start:
            adopt(args.start, run, size)
        write_whole(run / "settings.json", lambda path: path.write_text(json.dumps(settings)))
    for stage in stages if args.stage == "all" else [args.stage]:
        if stage == "pictures":
            draw_pictures(run, args.pictures)
        if stage == "vae":
            encode_pictures(run, train_vae(run, size, args.vae_steps or size.vae_steps, device), device)
        if stage == "unet":
            train_unet(run, size, args.unet_steps or size.unet_steps, device, args.bf16)
        if stage == "decoder":
            train_decoder(run, size, args.decoder_steps or size.decoder_steps, device)
        if stage == "export":
            made(run / "unet.pt", "unet")
            export(run, args.to, size)


if __name__ == "__main__":
    command(main)
