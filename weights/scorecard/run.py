"""Runs trials on all cores, and keeps each result: a run that was stopped goes on where it was.

One trial a core and one thread a trial, so that the numbers do not depend on the machine.
"""

import hashlib
import json
import os
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

import minip2p
from minip2p import StableDiffusion
from weights.scorecard.bench import Bench
from weights.scorecard.edits import add, reweight, swap, tradeoff
from weights.scorecard.prompts import judged_by_truth, obeyed, obeyed_with_less, pointing
from weights.toyworld import judge, world

TRIALS = {"obeyed": obeyed, "obeyed with less": obeyed_with_less, "pointing": pointing, "swap": swap, "tradeoff": tradeoff,
          "add": add, "reweight": reweight, "judged": judged_by_truth}  # fmt: skip
HERE = Path(__file__).parent
TRIED = ("bench", "prompts", "edits", "beside", "measures")  # the modules here that a result depends on


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
    workers = min(cores(), len(left))
    if left:
        with file.open("a") as log, get_context("spawn").Pool(workers, start, (weights, steps)) as pool:
            for line in tqdm(pool.imap_unordered(attempt, left), "trials", len(tasks), initial=len(tasks) - len(left)):
                log.write(json.dumps(line) + "\n")
                log.flush()
                done[line["trial"], line["number"]] = line["result"]
            pool.close()  # the workers end by themselves, and clean up
            pool.join()
    return {trial: [done[trial, number] for number in range(count)] for trial, count in counts.items()}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lines(file: Path) -> list[dict]:
    """What a run has written down so far; a last line that was cut short is left out."""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def fingerprint(weights: str, steps: int) -> str:
    """Changes with everything that the results depend on here: the weights, the judge, the world, the trials, the package."""
    code = [file for package in (minip2p, world) for file in sorted(Path(package.__file__).parent.glob("*.py"))]
    ours = [judge.FILE, *code, *(HERE / f"{name}.py" for name in TRIED)]
    model = Path(weights).expanduser()
    files = [model] if model.is_file() else sorted(file for file in model.rglob("*") if file.is_file())
    digest = hashlib.sha256(str(steps).encode())
    for file in ours + files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
