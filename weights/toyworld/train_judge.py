"""Trains the judge: python -m weights.toyworld.train_judge [--run FOLDER] [--start JUDGE]

It goes on where it was stopped: a run that is finished gives the same judge again; to train another, give another --run.
With `--start` it begins with the weights of a trained judge, which saves most of the steps if the world has changed a little.

It learns from drawn pictures only, as they are, a little blurred, and through the toy's VAE.
"""

import argparse
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from minip2p import StableDiffusion
from minip2p.errors import RequestError
from minip2p.save import write_whole
from weights.command import command
from weights.toyworld import world
from weights.toyworld.judge import FILE, GRID, PARTS, SHOWN, WEATHER, WHOLE, Judge, load, peaks, test, through_vae
from weights.toyworld.loop import Run
from weights.toyworld.picture import trace
from weights.toyworld.scene import COLOURS, EXTRAS, PENCIL, PLACES, STYLES, Scene
from weights.toyworld.sizes import SIDE
from weights.toyworld.things import NOUNS
from weights.toyworld.train_vae import as_images

TRAINING = 1_000_000  # first seed of its pictures
LR, LR_STARTED = 3e-3, 1e-3  # of random weights; of a trained judge's
BATCH, SOFT = 64, 8  # pictures at a time, and how many of them are blurred
VALIDATION, VALIDATED = 500_000, 100  # its log tells how it does on these of the unseen pictures, the first of which are kept for the end


def truth_of(scene: Scene, boxes: Sequence[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(2, 6): noun, box, colour (-1 if not to be seen) of each thing, noun -1 if there is none; (7,): of the whole."""
    things = np.full((2, 6), -1.0, np.float32)
    for row, thing, box in zip(things, scene.things, boxes):
        colour = -1 if scene.style == PENCIL else list(COLOURS).index(thing.colour)
        row[:] = (list(NOUNS).index(thing.noun), *box, colour)
    amounts = dict(scene.extras)
    whole = [list(PLACES).index(scene.place), STYLES.index(scene.style), scene.darkness]
    return things, np.array(whole + [amounts.get(word, 0) / EXTRAS[word][1] for word in WEATHER], np.float32)


def traces_of(scene: Scene, picture: Image.Image) -> np.ndarray:
    """(4, 16, 16) bool: the cells that show each kind of weather, by more than one pixel; none where it is hidden."""
    traces = np.zeros((len(WEATHER), GRID, GRID), bool)
    for word, _ in scene.extras:
        pixels = trace(scene, picture, word)
        if pixels.sum() >= SHOWN:
            traces[WEATHER.index(word)] = pixels.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).sum((1, 3)) > 1
    return traces


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    picture, _, scene, rendered = world.example(seed, SIDE)
    return np.asarray(picture), *truth_of(scene, rendered.boxes), traces_of(scene, picture)


def draw(count: int, vae_count: int, sd: StableDiffusion, file: Path) -> list[np.ndarray]:
    """Pictures (uint8), the truths about them (things, whole, traces), the first of them through the VAE; kept in a file."""
    names = ("pictures", "things", "whole", "traces", "through")
    if not file.exists():
        with Pool() as pool:
            drawn = [np.stack(part) for part in zip(*pool.imap(_draw, range(TRAINING, TRAINING + count), chunksize=256))]
        print(f"{count} pictures drawn", flush=True)
        drawn.append(through_vae(sd, drawn[0][:vae_count]))
        print(f"{vae_count} pictures through the VAE", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda path: np.savez(path, **dict(zip(names, drawn))))
    kept = np.load(file)
    return [kept[name] for name in names]


def heat(things: Tensor) -> Tensor:
    """Boxes (B, 2, 4) in pixels -> (B, 2, 16, 16), 1 at the cell of each centre and less around it."""
    centres = torch.stack([things[..., [0, 2]].mean(-1), things[..., [1, 3]].mean(-1)], -1)
    cells = (centres * GRID / SIDE).floor().clamp(0, GRID - 1)
    line = torch.arange(GRID)
    x, y = (torch.exp(-(line - cells[..., i, None]).square() / 1.3) for i in (0, 1))
    return y[..., :, None] * x[..., None, :]


def loss_of(judge: Judge, images: Tensor, things: Tensor, whole: Tensor, traces: Tensor) -> Tensor:
    """How wrong the judge is about a batch: images (B, 3, 64, 64), things (B, 2, 6), whole (B, 7), traces (B, 4, 16, 16)."""
    cells, answers = judge(images)
    nouns, boxes, colours, weather = cells.split(list(PARTS.values()), 1)
    place, style, night, amounts = answers.split(list(WHOLE.values()), 1)
    there = things[..., 0] >= 0
    warm = heat(things[..., 1:5]) * there[..., None, None]
    wanted = torch.zeros_like(nouns)
    for thing in (0, 1):  # two of one noun share a map
        index = things[:, thing, 0].long().clamp(min=0)[:, None, None, None].expand(-1, 1, GRID, GRID)
        wanted = wanted.scatter(1, index, torch.maximum(wanted.gather(1, index), warm[:, thing, None]))
    p = nouns.sigmoid().clamp(1e-4, 1 - 1e-4)
    focal = torch.where(wanted == 1, (1 - p).square() * p.log(), (1 - wanted) ** 4 * p.square() * (1 - p).log())
    loss = -focal.sum() / there.sum()

    nearest = (warm == warm.amax(1, keepdim=True)) * warm  # each cell answers for the thing whose centre is nearer
    line = (torch.arange(GRID) + 0.5) * SIDE / GRID
    x0, y0, x1, y1 = things[..., 1:5, None, None].unbind(2)
    sides = torch.stack(torch.broadcast_tensors(line - x0, line[:, None] - y0, x1 - line, y1 - line[:, None]), 2) * 4 / SIDE
    loss = loss + ((boxes[:, None] - sides).abs().mean(2) * nearest).sum() / nearest.sum()
    coloured = nearest * (things[..., 5] >= 0)[..., None, None]
    logs = colours.log_softmax(1)
    for thing in (0, 1):
        index = things[:, thing, 5].long().clamp(min=0)[:, None, None, None].expand(-1, 1, GRID, GRID)
        loss = loss - 0.5 * (logs.gather(1, index)[:, 0] * coloured[:, thing]).sum() / coloured.sum().clamp(min=1)

    loss = loss + F.cross_entropy(place, whole[:, 0].long()) + F.cross_entropy(style, whole[:, 1].long())
    loss = loss + 0.4 * F.binary_cross_entropy_with_logits(night[:, 0], (whole[:, 2] > 0).float())
    traces = traces.float()
    loss = loss + 20 * F.binary_cross_entropy_with_logits(weather, traces)  # of each cell
    loss = loss + 2 * F.binary_cross_entropy_with_logits(peaks(weather), peaks(traces))  # a picture shows what some cell shows
    return loss + 5 * (amounts - whole[:, 2:]).square().mean()


def mirrored(images: Tensor, things: Tensor, traces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right exchanged."""
    things = things[..., [0, 3, 2, 1, 4, 5]]
    things[..., [1, 3]] = SIDE - things[..., [1, 3]]
    return images.flip(3), things, traces.flip(3)


def train(
    run: Path, sd: StableDiffusion, count: int, vae_count: int, steps: int, start: Path | None = None, to: Path | None = None
) -> Judge:
    """A judge, written to `to` (FILE if None). start: the file of a judge to begin with.

    Half of the pictures are seen through the VAE, three of eight as drawn, one of eight a little blurred and noisy; half of
    all are mirrored.
    """
    pictures, things, whole, traces, through = draw(count, vae_count, sd, run / f"judged-{count}.npz")
    torch.manual_seed(0)
    judge = (load(file=start).requires_grad_(True) if start else Judge()).to(memory_format=torch.channels_last)

    def batch():
        blurred, drawn = np.split(torch.randint(len(pictures), (BATCH // 2,)).numpy(), [SOFT])
        seen = torch.randint(len(through), (BATCH // 2,)).numpy()
        index = np.concatenate([blurred, drawn, seen])
        images = as_images(np.concatenate([pictures[blurred], pictures[drawn], through[seen]]), "cpu")
        soft = F.avg_pool2d(F.pad(images[:SOFT], (1, 1, 1, 1), mode="replicate"), 3, 1)
        images[:SOFT] = torch.lerp(images[:SOFT], soft, torch.rand(SOFT, 1, 1, 1))
        images[:SOFT] += 0.06 * torch.randn(SOFT, 3, SIDE, SIDE)
        boxed, shown = torch.from_numpy(things[index]), torch.from_numpy(traces[index])
        turned = torch.rand(BATCH) < 0.5
        images[turned], boxed[turned], shown[turned] = mirrored(images[turned], boxed[turned], shown[turned])
        return loss_of(judge, images, boxed, torch.from_numpy(whole[index]), shown)

    def validate():
        row = test(judge, sd, VALIDATION, VALIDATED)["through the VAE"]
        return ", ".join(
            f"{what} {sum(right) / len(right):.1%}" for what, right in row.items() if what in ("nouns", "weather that shows")
        )

    training = Run(run / "judge.pt", judge, LR_STARTED if start else LR, steps, average=0.998)
    training.train(batch, validate)
    judge.load_state_dict(training.ema)
    write_whole(to or FILE, lambda path: save_file({name: t.half().contiguous() for name, t in judge.state_dict().items()}, path))
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default=str(FILE.parent.parent / "toy"), help="the model whose VAE is used")
    parser.add_argument("--run", type=Path, default=Path("weights/toyworld/run"), help="where the training's state lies")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--start", type=Path, help="the file of a judge to begin with, instead of random weights")
    parser.add_argument("--to", type=Path, default=FILE, help="where the judge is written")
    args = parser.parse_args()
    if args.pictures < 8:
        raise RequestError(f"--pictures {args.pictures} is too few: at least 8, so that five go through the VAE")
    sd = StableDiffusion.load(args.weights, device="cpu")
    train(args.run, sd, args.pictures, args.pictures * 5 // 8, args.steps, args.start, args.to)
    print(args.to)


if __name__ == "__main__":
    command(main)
