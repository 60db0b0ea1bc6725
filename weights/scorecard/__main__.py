"""How good is the toy? Trials on fixed prompts and seeds, written as one page: make scorecard.

    python -m weights.scorecard             # writes README.md and scorecard.json into weights/scorecard (about ten minutes)
    python -m weights.scorecard --quick     # a few trials of each kind, into out/scorecard/quick

Everything runs on the CPU. Each trial's result is kept in out/scorecard.
"""

import argparse
import json
from pathlib import Path

from minip2p import StableDiffusion
from minip2p.errors import RequestError
from minip2p.save import write_whole
from weights.command import command
from weights.scorecard.report import markdown, summarise
from weights.scorecard.run import run
from weights.toyworld.sizes import SIDE

ROOT = Path(__file__).resolve().parents[2]
FULL = {"prompt": 20, "maps": 100, "swap": 205, "reweight": 72, "inversion": 8, "truth": 6}
QUICK = {"prompt": 2, "maps": 2, "swap": 2, "reweight": 6, "inversion": 1, "truth": 1}
STEPS, QUICK_STEPS = 20, 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how good the toy is.")
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind")
    parser.add_argument("--weights", default=str(ROOT / "weights" / "toy"))
    args = parser.parse_args()
    sd = StableDiffusion.load(args.weights, device="cpu")  # a wrong model is refused here and not in a worker
    if sd.unet.config.sample_size * sd.vae.config.factor != SIDE:
        raise RequestError(f"{args.weights} does not draw pictures of {SIDE} x {SIDE}, the only ones that the judge knows")
    kept = ROOT / "out" / "scorecard"
    steps = QUICK_STEPS if args.quick else STEPS
    summary = summarise(run(args.weights, QUICK if args.quick else FULL, steps, kept)) | {"steps": steps, "quick": args.quick}
    to = kept / "quick" if args.quick else Path(__file__).parent
    to.mkdir(parents=True, exist_ok=True)
    page = markdown(summary)
    print("\n" + page)
    write_whole(to / "README.md", lambda path: path.write_text(page))
    write_whole(to / "scorecard.json", lambda path: path.write_text(json.dumps(summary, indent=1)))
    print("->", to)


if __name__ == "__main__":
    command(main)
