"""The trial `maps` alone, for several models beside each other: python -m weights.scorecard.maps FOLDER [FOLDER ...]

Half a minute a model. It tells soon what a change of the training did to the attention maps; the table of ablations in
weights/README.md is made with it.
"""

import sys
from pathlib import Path

from weights.command import command
from weights.scorecard.__main__ import FULL, ROOT, STEPS
from weights.scorecard.report import summarise_maps, table
from weights.scorecard.run import run


def row(folder: str) -> list[str]:
    """What the table says of one model."""
    [trials] = run(folder, {"maps": FULL["maps"]}, STEPS, ROOT / "out" / "scorecard").values()
    maps = summarise_maps([noun for trial in trials for noun in trial])
    hits = " / ".join(f"{100 * hit:.0f}" for hit in maps["hits"])
    shares = [f"{100 * maps[name]:.1f} %" for name in ("words", "blend")]
    return [Path(folder).name, f"{maps['ratio']:.1f}", f"{maps['iou']:.2f}", f"{hits} %", *shares]


def main() -> None:
    if not sys.argv[1:]:
        raise ValueError("give the folder of at least one model")
    head = ["model", "own / other object", "IoU", "strongest cell in the object", "attention on words", "blend's mask"]
    print(table(head, [row(folder) for folder in sys.argv[1:]]))


if __name__ == "__main__":
    command(main)
