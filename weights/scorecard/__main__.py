"""How good is the toy? Trials on fixed prompts and seeds, one table and one figure: make scorecard.

    python -m weights.scorecard             # writes README.md, scorecard.json and scorecard.png into weights/scorecard
    python -m weights.scorecard --quick     # a few trials of each kind, into out/scorecard/quick

Everything runs on the CPU; but for its rounding, only the seconds of an edit depend on the machine. Each trial's result is kept
in out/scorecard.
"""

import argparse
import json
import time
from pathlib import Path

from minip2p import StableDiffusion, Swap
from minip2p.errors import PromptError
from minip2p.files import write_whole
from weights.command import command
from weights.scorecard.figure import figure
from weights.scorecard.report import markdown
from weights.scorecard.run import cores, run
from weights.scorecard.summary import summarise
from weights.toyworld.sizes import SIDE

ROOT = Path(__file__).resolve().parents[2]
FULL = {
    "obeyed": 40,
    "obeyed with less": 40,
    "pointing": 20,
    "swap": 220,
    "add": 200,
    "tradeoff": 20,
    "reweight": 90,
    "judged": 10,
}
QUICK = {"obeyed": 4, "obeyed with less": 2, "pointing": 2, "swap": 4, "add": 2, "tradeoff": 1, "reweight": 6, "judged": 1}
STEPS, QUICK_STEPS = 20, 10


def seconds_of_an_edit(sd: StableDiffusion) -> float:
    """One edit of two prompts, 50 steps, on all cores; the better of two."""
    prompts = ["a cat next to a house in the snow", "a dog next to a house in the snow"]
    edit, seconds = Swap(sd.tokenizer, prompts), []
    for _ in range(2):
        begun = time.perf_counter()
        sd.generate(prompts, edit=edit, progress=False)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind, in under a minute")
    parser.add_argument("--weights", default=str(ROOT / "weights" / "toy"))
    args = parser.parse_args()
    sd = StableDiffusion.load(args.weights, device="cpu")  # refused here, if at all, and not in a worker
    if sd.unet.config.sample_size * sd.vae.config.factor != SIDE:
        raise PromptError(f"{args.weights} does not draw pictures of {SIDE} x {SIDE}, which are all that the judge can see")
    kept = ROOT / "out" / "scorecard"
    counts, steps = (QUICK, QUICK_STEPS) if args.quick else (FULL, STEPS)
    results = run(args.weights, counts, steps, kept)
    summary = summarise(results) | {"steps": steps, "quick": args.quick, "cores": cores()}
    summary["seconds of an edit"] = seconds_of_an_edit(sd)
    to = kept / "quick" if args.quick else Path(__file__).parent
    to.mkdir(parents=True, exist_ok=True)
    table = markdown(summary, "scorecard.png")
    print("\n" + table)
    for name, write in (("README.md", lambda path: path.write_text(table)), ("scorecard.json", lambda path: path.write_text(json.dumps(summary))),
                        ("scorecard.png", figure(summary).savefig)):  # fmt: skip
        write_whole(to / name, write)
        print("->", to / name)


if __name__ == "__main__":
    command(main)
