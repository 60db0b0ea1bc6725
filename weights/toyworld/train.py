"""Train the toy Stable Diffusion from nothing: python -m weights.toyworld.train (or `make toy`).

Stages. The state of those that take hours is saved in `--run` every two minutes, and they go on where they were stopped:
    pictures   draw the world: pictures, captions, which pixels show what; learn the vocabulary (world.py, vocabulary.py)
    vae        pictures -> latents -> pictures; then encode every picture once (train_vae.py)
    unet       train text encoder and UNet to denoise latents, and words to attend to what they name (train_unet.py, grounding.py)
    decoder    train the VAE's decoder on, the latents staying what they are (train_vae.py)
    export     write the checkpoint in the folder layout of diffusers, in half precision (export.py)
The recipe is the same on CPU and CUDA; a GPU affords `--size large`. `--start weights/toy` begins with a checkpoint's weights
instead of random ones: the VAE's encoder and the latents' scale stay what they are, all else is trained on.
"""

import argparse
import json
import shutil
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch

from minip2p import StableDiffusion
from minip2p.errors import RequestError
from minip2p.save import write_whole
from minip2p.tokenizer import CLIPTokenizer
from weights.command import command
from weights.toyworld import vocabulary, world
from weights.toyworld.export import export
from weights.toyworld.grounding import REGIONS, SIDES, region_amounts, region_masks, token_regions
from weights.toyworld.sizes import SIDE, SIZES, Size
from weights.toyworld.train_unet import train_unet
from weights.toyworld.train_vae import as_images, encode_pictures, held_out, made, train_decoder, train_vae

__all__ = ["as_images"]  # the judge takes it from here


def begun(run: Path, settings: dict) -> bool:
    """Is there a run in this folder? RequestError if it was begun with other settings, which would mix two models."""
    file = run / "settings.json"
    if not file.exists():
        return False
    for name, value in json.loads(file.read_text()).items():
        if settings[name] != value:
            raise RequestError(f"{run} holds a run with --{name} {value}, not {settings[name]}: give that, or another --run")
    return True


def adopt(folder: Path, run: Path, size: Size) -> None:
    """A shipped checkpoint as the state of a run in which the VAE is finished and the others are at step 0.

    One with a longer context is cut to ours: the first positions keep their embeddings.
    """
    sd = StableDiffusion.load(folder, "cpu", "float32")
    if (sd.unet.config, sd.vae.config.block_out_channels) != (size.unet, size.vae.block_out_channels):
        raise RequestError(f"{folder} is a model of another size: give another --size, or start from nothing")
    shutil.copytree(folder / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    vocabulary.write_config(run / "tokenizer")
    (run / "scale.json").write_text(json.dumps(sd.vae.config.scaling_factor))
    unet, text_encoder, vae = (network.state_dict() for network in (sd.unet, sd.text_encoder, sd.vae))
    positions = "embeddings.position_embedding.weight"
    text_encoder[positions] = text_encoder[positions][: vocabulary.CONTEXT].clone()
    both = {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text_encoder.items()}
    for name, weights, step in (("unet", both, 0), ("decoder", vae, 0), ("vae", vae, size.vae_steps)):
        state = {"ema": weights, "step": step, "seconds": 0.0}
        write_whole(run / f"{name}.pt", lambda path: torch.save(state, path))  # noqa: B023, it is called at once


# ---------------------------------------------------------------- pictures


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    picture, caption, _, truth = world.example(seed, SIDE)
    return np.asarray(picture), region_masks(truth), caption


def draw_pictures(run: Path, count: int) -> None:
    """Writes pictures.npy (count, 64, 64, 3) uint8, captions.json and the tokenizer learned from them. For the grounding also:

    masks.npy (count, R, 16, 16) uint8: where each of the regions is. amounts.npy (count, R) float32: how much of it there is.
    regions.npy (count, T) int8: which one a token names.
    """
    if (run / "regions.npy").exists():
        return
    pictures = np.lib.format.open_memmap(run / "pictures.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    masks = np.lib.format.open_memmap(run / "masks.npy", "w+", np.uint8, (count, len(REGIONS), SIDES[0], SIDES[0]))
    captions = []
    with Pool() as pool:
        for i, (picture, mask, caption) in enumerate(pool.imap(_draw, range(count), chunksize=256)):
            pictures[i], masks[i] = picture, mask
            captions.append(caption)
            if i % 5000 == 0:
                print(f"pictures {i}/{count}", flush=True)
    pictures.flush()
    masks.flush()
    if not (run / "tokenizer" / vocabulary.LAST).exists():
        vocabulary.write(captions, run / "tokenizer")
    write_whole(run / "captions.json", lambda path: path.write_text(json.dumps(captions)))
    tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
    scenes = [world.sample(seed) for seed in range(count)]
    write_whole(run / "amounts.npy", lambda path: np.save(path, np.stack([region_amounts(scene) for scene in scenes])))
    regions = np.stack([token_regions(tokenizer, *pair) for pair in zip(captions, scenes)])
    write_whole(run / "regions.npy", lambda path: np.save(path, regions))


# ---------------------------------------------------------------- all stages


def main() -> None:
    stages = ("pictures", "vae", "unet", "decoder", "export")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*stages, "all"], nargs="?", default="all")
    parser.add_argument("--size", choices=SIZES, default="small", help="large is for a GPU")
    parser.add_argument("--run", type=Path, default=Path("weights/toyworld/run"), help="where the state lies")
    parser.add_argument("--to", type=Path, default=Path("weights/toy"), help="where export writes")
    parser.add_argument("--start", type=Path, help="a checkpoint to train on, where --run holds nothing yet")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--lr", type=float, help="of the UNet, instead of the size's own: a lower one with --start")
    parser.add_argument("--bf16", action="store_true", help="UNet and text encoder in bfloat16: faster on GPUs and AVX512-BF16")
    for network in ("vae", "unet", "decoder"):
        parser.add_argument(f"--{network}-steps", type=int, help="instead of the size's own")
    args = parser.parse_args()
    size, run = SIZES[args.size], args.run
    if args.pictures < 10:
        raise RequestError(f"--pictures {args.pictures} is too few: at least 10, a fifth of them for validation")
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
            made(run / "latents.npy", "vae")
            steps, lr = args.unet_steps or size.unet_steps, args.lr or size.lr
            train_unet(run, size, steps, lr, held_out(args.pictures), device, args.bf16)
        if stage == "decoder":
            train_decoder(run, size, args.decoder_steps or size.decoder_steps, device)
        if stage == "export":
            made(run / "unet.pt", "unet")
            export(run, args.to, size)


if __name__ == "__main__":
    command(main)
