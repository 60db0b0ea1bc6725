"""How good is the toy? Trials on fixed prompts and seeds, one table and one figure: make scorecard.

    python -m weights.toyworld.scorecard             # writes weights/scorecard.md, .png and .json
    python -m weights.toyworld.scorecard --quick     # a few trials of each kind, into out/scorecard/quick

Each trial's result is kept in out/scorecard: a run that was stopped goes on where it was. Everything runs on the CPU, one
trial a core and one thread a trial, so that the numbers do not depend on the machine; only the seconds of an edit do.
"""

import argparse
import hashlib
import json
import os
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from minip2p import StableDiffusion, Swap
from minip2p.files import write_whole
from weights.toyworld import judge
from weights.toyworld.report import figure, markdown
from weights.toyworld.summary import summarise
from weights.toyworld.trials import TRIALS, Bench

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
FULL = {"obeyed": 40, "pointing": 20, "swap": 260, "add": 120, "tradeoff": 10, "reweight": 36, "judged": 10}
QUICK = {"obeyed": 4, "pointing": 2, "swap": 4, "add": 2, "tradeoff": 1, "reweight": 6, "judged": 1}
STEPS, QUICK_STEPS = 20, 10


# ---------------------------------------------------------------- running the trials


def start(weights: str, steps: int) -> None:
    """What every worker does first."""
    global bench
    torch.set_num_threads(1)
    bench = Bench(StableDiffusion.load(weights, device="cpu"), judge.load(), steps)


def attempt(task: tuple[str, int]) -> dict:
    trial, number = task
    return {"trial": trial, "number": number, "result": TRIALS[trial](bench, number)}


def run(weights: str, counts: dict[str, int], steps: int, folder: Path) -> dict[str, list]:
    """All results, by trial and in order; those that lie in the folder already are not measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"trials-{fingerprint(weights, steps)}.jsonl"
    done = {(line["trial"], line["number"]): line["result"] for line in lines(file)}
    tasks = [(trial, number) for trial, count in counts.items() for number in range(count)]
    left = [task for task in tasks if task not in done]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores, len(left))
    if left:
        with file.open("a") as log, get_context("spawn").Pool(workers, start, (weights, steps)) as pool:
            for line in tqdm(pool.imap_unordered(attempt, left), "trials", len(tasks), initial=len(tasks) - len(left)):
                log.write(json.dumps(line) + "\n")
                log.flush()
                done[line["trial"], line["number"]] = line["result"]
    return {trial: [done[trial, number] for number in range(count)] for trial, count in counts.items()}


def lines(file: Path) -> list[dict]:
    """What a run has written down so far; a last line that was cut short is left out."""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def fingerprint(weights: str, steps: int) -> str:
    """Changes with everything that the results depend on here: the weights, the judge, the trials."""
    ours = [judge.FILE, *(HERE / f"{name}.py" for name in ("judge", "trials", "beside", "measures", "world"))]
    files = sorted(file for file in Path(weights).rglob("*") if file.is_file())
    digest = hashlib.sha256(str(steps).encode())
    for file in ours + files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def seconds_of_an_edit(weights: str) -> float:
    """One edit of two prompts, 50 steps, on all cores; the better of two."""
    sd = StableDiffusion.load(weights, device="cpu")
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
    kept = ROOT / "out" / "scorecard"
    counts, steps = (QUICK, QUICK_STEPS) if args.quick else (FULL, STEPS)
    results = run(args.weights, counts, steps, kept)
    summary = summarise(results) | {"steps": steps, "quick": args.quick, "cores": os.cpu_count()}
    summary["seconds of an edit"] = seconds_of_an_edit(args.weights)
    to = kept / "quick" if args.quick else ROOT / "weights" / "scorecard"
    table = markdown(summary, to.name + ".png")
    print("\n" + table)
    for suffix, write in ((".md", lambda path: path.write_text(table)), (".json", lambda path: path.write_text(json.dumps(summary))),
                          (".png", figure(summary).savefig)):  # fmt: skip
        write_whole(to.with_suffix(suffix), write)
        print("->", to.with_suffix(suffix))


if __name__ == "__main__":
    main()
