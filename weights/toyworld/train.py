"""Train the toy Stable Diffusion from nothing: python -m weights.toyworld.train (or `make toy`).

Stages. The state of those that take hours is saved in `--run` every two minutes, and they go on where they were stopped:
    pictures   draw the world: pictures, captions, which pixels show what; learn the vocabulary (world.py, vocabulary.py)
    vae        pictures -> latents -> pictures; then encode every picture once (train_vae.py)
    unet       train text encoder and UNet to denoise latents, and words to attend to what they name (train_unet.py, grounding.py)
    export     write the checkpoint in the folder layout of diffusers, in half precision (export.py)
The code is the same on CPU and CUDA; a GPU affords more pictures and larger batches. `--start weights/toy` begins with a
checkpoint's weights instead of random ones: the VAE and the latents' scale stay what they are, UNet and text encoder are trained on.
"""

import argparse
import json
import shutil
from dataclasses import replace
from functools import partial
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
from weights.toyworld.sizes import SIDE, SIZE
from weights.toyworld.train_unet import train_unet
from weights.toyworld.train_vae import encode_pictures, held_out, made, train_vae


def begun(run: Path, settings: dict) -> bool:
    """Is there a run in this folder? RequestError if it was begun with other settings, which would mix two models."""
    file = run / "settings.json"
    if not file.exists():
        return False
    for name, value in json.loads(file.read_text()).items():
        if settings[name] != value:
            raise RequestError(f"{run} holds a run with --{name} {value}, not {settings[name]}: give that, or another --run")
    return True


def adopt(folder: Path, run: Path) -> None:
    """A shipped checkpoint as the state of a run in which the VAE is finished and the UNet is at step 0.

    One with a longer context is cut to ours: the first positions keep their embeddings.
    """
    sd = StableDiffusion.load(folder, "cpu", "float32")
    if (sd.unet.config, sd.vae.config.block_out_channels) != (SIZE.unet, SIZE.vae.block_out_channels):
        raise RequestError(f"{folder} is not of the toy's size: leave out --start")
    shutil.copytree(folder / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    vocabulary.write_config(run / "tokenizer")
    (run / "scale.json").write_text(json.dumps(sd.vae.config.scaling_factor))
    unet, text_encoder, vae = (network.state_dict() for network in (sd.unet, sd.text_encoder, sd.vae))
    positions = "embeddings.position_embedding.weight"
    text_encoder[positions] = text_encoder[positions][: vocabulary.CONTEXT].clone()
    both = {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text_encoder.items()}
    for name, weights, step in (("unet", both, 0), ("vae", vae, SIZE.vae_steps)):
        state = {"ema": weights, "step": step, "seconds": 0.0}
        write_whole(run / f"{name}.pt", lambda path: torch.save(state, path))  # noqa: B023, it is called at once


# ---------------------------------------------------------------- pictures


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    picture, caption, scene, truth = world.example(seed, SIDE)
    return np.asarray(picture), region_masks(truth), region_amounts(scene), caption


def _read(tokenizer: CLIPTokenizer, seed: int, caption: str) -> tuple[np.ndarray, np.ndarray]:
    return tokenizer(caption)[0].numpy(), token_regions(tokenizer, caption, world.sample(seed))


def draw_pictures(run: Path, count: int) -> None:
    """Writes pictures.npy (count, 64, 64, 3) uint8, and the tokenizer learned from the captions with tokens.npy (count, T) int64.

    For the grounding also: masks.npy (count, R, 16, 16) uint8: where each of the regions is. amounts.npy (count, R) float32: how
    much of it there is. regions.npy (count, T) int8: which one a token names.
    """
    if (run / "regions.npy").exists():
        return
    pictures = np.lib.format.open_memmap(run / "pictures.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    masks = np.lib.format.open_memmap(run / "masks.npy", "w+", np.uint8, (count, len(REGIONS), SIDES[0], SIDES[0]))
    amounts, captions = np.empty((count, len(REGIONS)), np.float32), []
    with Pool() as pool:
        for i, drawn in enumerate(pool.imap(_draw, range(count), chunksize=64)):
            pictures[i], masks[i], amounts[i], caption = drawn
            captions.append(caption)
            if i % 5000 == 0:
                print(f"pictures {i}/{count}", flush=True)
        pictures.flush()
        masks.flush()
        if not (run / "tokenizer" / vocabulary.LAST).exists():
            vocabulary.write(captions, run / "tokenizer")
        tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
        tokens, regions = zip(*pool.starmap(partial(_read, tokenizer), enumerate(captions)))
    for name, array in {"amounts": amounts, "tokens": np.stack(tokens), "regions": np.stack(regions)}.items():
        write_whole(run / f"{name}.npy", lambda path: np.save(path, array))  # noqa: B023, it is called at once


# ---------------------------------------------------------------- all stages


def main() -> None:
    stages = ("pictures", "vae", "unet", "export")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*stages, "all"], nargs="?", default="all")
    parser.add_argument("--run", type=Path, default=Path("weights/toyworld/run"), help="where the state lies")
    parser.add_argument("--to", type=Path, default=Path("weights/toy"), help="where export writes")
    parser.add_argument("--start", type=Path, help="a checkpoint to train on, where --run holds nothing yet")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--lr", type=float, help="of the UNet, instead of the size's own: a lower one with --start")
    parser.add_argument("--batch", type=int, help="pictures a step of the UNet, instead of the size's own; the VAE takes a quarter")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16: faster on GPUs and AVX512-BF16")
    for network in ("vae", "unet"):
        parser.add_argument(f"--{network}-steps", type=int, help="instead of the size's own")
    args = parser.parse_args()
    size, run = replace(SIZE, batch=args.batch or SIZE.batch, lr=args.lr or SIZE.lr), args.run
    if args.pictures < 10:
        raise RequestError(f"--pictures {args.pictures} is too few: at least 10, a fifth of them for validation")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 where there is a GPU that has it
    run.mkdir(parents=True, exist_ok=True)
    settings = {"start": args.start and str(args.start), "pictures": args.pictures}
    if not begun(run, settings):
        if args.start:
            adopt(args.start, run)
        write_whole(run / "settings.json", lambda path: path.write_text(json.dumps(settings)))
    for stage in stages if args.stage == "all" else [args.stage]:
        if stage == "pictures":
            draw_pictures(run, args.pictures)
        if stage == "vae":
            encode_pictures(run, train_vae(run, size, args.vae_steps or size.vae_steps, device, args.bf16), device)
        if stage == "unet":
            made(run / "latents.npy", "vae")
            train_unet(run, size, args.unet_steps or size.unet_steps, held_out(args.pictures), device, args.bf16)
        if stage == "export":
            made(run / "unet.pt", "unet")
            export(run, args.to, size)


if __name__ == "__main__":
    command(main)
