"""What every lesson uses: its settings from the environment, the model, and how figures, pages and tables are shown."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minip2p import CheckpointError, RequestError, StableDiffusion
from minip2p.save import write_whole

ROOT = Path(__file__).resolve().parent.parent
TOY = ROOT / "weights" / "toy"
STARTED = time.perf_counter()


@dataclass(frozen=True)
class Settings:
    """The values that `make lessonN NAME=value` can change."""

    weights: str
    device: str | None
    seed: int
    steps: int
    seeds: range  # the seeds of the tables: SEEDS of them, from SEED on
    out: Path

    @property
    def is_toy(self) -> bool:
        """True if the model is our toy: only then can its detector measure pictures."""
        return Path(self.weights).resolve() == TOY


def settings(lesson: str) -> Settings:
    """WEIGHTS, DEVICE, SEED, STEPS, SEEDS and OUT from the environment; a value that cannot be used ends the lesson in one line."""

    def number(name: str, default: int, least: int, most: int) -> int:
        text = os.environ.get(name) or str(default)
        if not text.isdecimal() or not least <= int(text) <= most:
            stop(f"{name}={text} is not a whole number from {least} to {most}")
        return int(text)

    out = Path(os.environ.get("OUT") or ROOT / "out") / lesson
    out.mkdir(parents=True, exist_ok=True)
    weights = os.environ.get("WEIGHTS") or str(TOY)
    seed = number("SEED", 0, 0, 10**9)
    steps = number("STEPS", 20, 5, 999)  # fewer than 5 are too coarse for the windows of the edits
    seeds = range(seed, seed + number("SEEDS", 4, 1, 1000))
    return Settings(weights, os.environ.get("DEVICE") or None, seed, steps, seeds, out)


def load(chosen: Settings) -> StableDiffusion:
    """The model that the settings name; one line and exit status 2 if it cannot be loaded."""
    try:
        return StableDiffusion.load(chosen.weights, chosen.device)
    except (CheckpointError, RequestError) as error:
        stop(str(error))


def stop(message: str):
    print(message, file=sys.stderr)
    raise SystemExit(2)


def show(figure: Figure | str, chosen: Settings, name: str) -> None:
    """Writes a figure (.png) or an explorer page (.html) to the lesson's folder and prints the path."""
    path = chosen.out / (f"{name}.png" if isinstance(figure, Figure) else f"{name}.html")
    if isinstance(figure, Figure):
        write_whole(path, figure.savefig)
    else:
        write_whole(path, lambda file: file.write_text(figure, encoding="utf-8"))
    print(f"-> {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", flush=True)


def table(caption: str, columns: Sequence[str], rows: dict[str, Sequence]) -> None:
    """Prints a table: `rows` maps a row's name to its values; a float has two decimals, None is left out."""

    def cell(value) -> str:
        return (
            ""
            if value is None
            else value
            if isinstance(value, str)
            else f"{value:.2f}"
            if isinstance(value, float)
            else str(value)
        )

    cells = [["", *columns], *([name, *map(cell, values)] for name, values in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print(f"\n{caption}")
    for row in cells:
        print("  ".join([row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]).rstrip())
    print(flush=True)


def percent(values: Sequence[float]) -> str:
    """The mean of truth values or shares, as a percentage."""
    return f"{100 * sum(map(float, values)) / len(values):.0f} %"


def finish() -> None:
    """Prints how long the lesson took."""
    print(f"{time.perf_counter() - STARTED:.0f} s on {torch.get_num_threads()} CPU threads")
