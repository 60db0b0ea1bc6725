"""Trains the toy's VAE: pictures -> latents -> pictures. A stage of `make toy`; by itself it goes on from a trained model's VAE:

    python -m weights.toyworld.train_vae --start weights/toy --run FOLDER            # FOLDER/pictures.npy must be there

`make toy` begins with random weights. With `--start` the latents are kept near those of the VAE that it begins with, so that
a UNet trained on them is still of use.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p import StableDiffusion
from minip2p.errors import RequestError
from minip2p.save import write_whole
from minip2p.vae import VAE
from weights.command import command
from weights.toyworld.loop import Run
from weights.toyworld.sizes import SIZE, Size

LR, LR_STARTED = 1e-3, 2.5e-4  # of random weights; of trained ones, which a higher rate would first make worse
EDGES = 0.5  # weight of the errors' differences between neighbouring pixels: outlines and eyes are a pixel wide
COLOUR = 1.0  # weight of the errors' means over 4 x 4 pixels: a red flower must not come back orange
KL = 3e-4  # enough to keep the latents near a unit Gaussian, too little to blur the pictures
ANCHOR = 0.05  # weight of the squared distance from the latents of the VAE that training begins with; less than a hundredth of their squares is left
LOGGED = 64  # pictures on which the log measures; 200 would take a tenth of the time


def held_out(count: int) -> int:
    """So many of the pictures, the last ones, are for validation only."""
    return min(1_000, count // 5)


def made(file: Path, stage: str) -> Path:
    """The file, if an earlier stage has made it."""
    if not file.exists():
        raise RequestError(f"{file} is not there: run the stage `{stage}` first")
    return file


def loaded(file: Path, device) -> Tensor:
    """The array in a file. A GPU gets all of it at once, because a step must not wait for the CPU; a CPU reads what it uses."""
    return torch.from_numpy(np.load(file, mmap_mode="c")).to(device)


def as_images(pictures: np.ndarray | Tensor, device) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) in [-1, 1]."""
    pixels = pictures if isinstance(pictures, Tensor) else torch.from_numpy(np.array(pictures))
    images = pixels.to(device).permute(0, 3, 1, 2).float()
    return (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- measures


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures (B, 3, H, W) in [-1, 1] of 10 log10(1 / mse), in dB, on the scale [0, 1]."""
    mse = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    return (-10 * mse.log10()).mean().item()


def difference(a: Tensor, b: Tensor) -> Tensor:
    """The loss of pictures a (B, 3, H, W) that should be b: L1 + MSE + L1 of differences between neighbours + L1 of 4 x 4 means."""
    error = a - b
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    colour = F.avg_pool2d(error, 4).abs().mean()
    return error.abs().mean() + error.square().mean() + EDGES * edges + COLOUR * colour


def distance(z: Tensor, reference: Tensor) -> float:
    """The squared difference of latents as a share of the reference's squares: 0 is the same, 0.02 is close."""
    return ((z - reference).square().sum() / reference.square().sum()).item()


# ---------------------------------------------------------------- training


def train_vae(
    run: Path, size: Size, steps: int, device, bf16: bool = False, start: VAE | None = None, reference: VAE | None = None
) -> VAE:
    """A VAE that gives a picture back through 16 x 16 x 4 numbers. Its state is kept in vae.pt.

    start: what it begins with; None is random weights. reference: a VAE near whose latents, by ANCHOR, the new ones are kept.
    Once the pictures are encoded (latents.npy) the VAE stays as it is.
    """
    pictures = loaded(made(run / "pictures.npy", "pictures"), device)
    count, batch = len(pictures) - held_out(len(pictures)), size.batch // 4
    torch.manual_seed(0)
    vae = (start or VAE(size.vae)).to(device, memory_format=torch.channels_last)
    held = as_images(pictures[count:][-LOGGED:], device)
    with torch.no_grad():
        known = reference and reference.encode(held)
        standard = reference and psnr(reference.decode(known), held)

    def loss_of():
        images = as_images(pictures[torch.randint(count, (batch,), device=device)], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            mean, log_variance = (part.float() for part in vae.posterior(images))
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            decoded = vae.decode(z).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = difference(decoded, images) + KL * kl
        if reference:
            with torch.no_grad():
                wanted = reference.encode(images)
            loss = loss + ANCHOR * (mean - wanted).square().mean()
        return loss

    def validate():
        z = vae.encode(held)
        said = f"psnr {psnr(vae.decode(z), held):.2f} dB"
        if reference:
            said += f", reference {standard:.2f} dB, latents moved by {distance(z, known):.2%}"
        return f"{said}, spread of latents {[round(s, 2) for s in z.std((0, 2, 3)).tolist()]}"

    training = Run(run / "vae.pt", vae, LR_STARTED if start else LR, steps)
    if not (run / "latents.npy").exists():
        training.train(loss_of, validate)
    vae.load_state_dict(training.ema)
    return vae


@torch.no_grad()
def encode_pictures(run: Path, vae: VAE, device) -> None:
    """latents.npy (count, 4, 16, 16) float16, each the posterior's mean, not scaled."""
    if (run / "latents.npy").exists():
        return
    parts = loaded(run / "pictures.npy", device).split(100)
    latents = torch.cat([vae.encode(as_images(part, device)).half() for part in parts])
    write_whole(run / "latents.npy", lambda path: np.save(path, latents.cpu().numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="a model whose VAE is trained on")
    parser.add_argument("--run", type=Path, required=True, help="where pictures.npy is and vae.pt is kept")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = StableDiffusion.load(args.start, device, "float32").vae
    start = deepcopy(reference).requires_grad_(True)
    size = replace(SIZE, batch=4 * args.batch)
    train_vae(args.run, size, args.steps, device, False, start, reference)
    print(args.run / "vae.pt")


if __name__ == "__main__":
    command(main)
