"""Attention maps and graded words of several models beside each other: python -m weights.scorecard.compare FOLDER [FOLDER ...]

About three minutes a model. These are the scorecard's trials `maps` and `reweight` alone, which tell soon what a change of the
training did. The tables of ablations in weights/README.md are made with it.
"""

import sys
from pathlib import Path

from weights.command import command
from weights.scorecard.__main__ import FULL, ROOT, STEPS
from weights.scorecard.report import summarise_maps, summarise_words, table
from weights.scorecard.run import run
from weights.scorecard.trials import WEIGHTS


def rows(folder: str) -> tuple[list[str], list[list[str]]]:
    """What the two tables say of one model: a row of maps, a row for each word."""
    results = run(folder, {name: FULL[name] for name in ("maps", "reweight")}, STEPS, ROOT / "out" / "scorecard")
    maps, model = summarise_maps([noun for trial in results["maps"] for noun in trial]), Path(folder).name
    hits = " / ".join(f"{100 * hit:.0f}" for hit in maps["hits"])
    shares = [f"{100 * maps[name]:.1f} %" for name in ("words", "blend")]
    words = summarise_words(results["reweight"])
    return [model, f"{maps['ratio']:.1f}", f"{maps['iou']:.2f}", f"{hits} %", *shares], [
        [model, word, *(f"{mean:.3f}" for mean in row["means"])] for word, row in words.items()
    ]


def main() -> None:
    if not sys.argv[1:]:
        raise ValueError("give the folder of at least one model")
    head = ["model", "own / other object", "IoU", "strongest cell in the object", "attention on words", "blend's mask"]
    maps, words = zip(*(rows(folder) for folder in sys.argv[1:]))
    print(table(head, list(maps)))
    print(table(["model", "word", *(f"{weight:g}" for weight in WEIGHTS)], [row for of_model in words for row in of_model]))


if __name__ == "__main__":
    command(main)
