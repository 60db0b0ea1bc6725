"""Runs trials on all cores and keeps each result in a file, so that a run that was stopped goes on where it was.

Each worker runs one trial at a time with one thread, so that the numbers do not depend on the machine.
"""

import ast
import hashlib
import json
import os
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

import minip2p
from minip2p import StableDiffusion
from weights.scorecard import trials
from weights.toyworld import judge, world

PACKAGE = Path(minip2p.__file__).parent
# What a trial's result depends on, beside the weights: the networks, the sampler, the edits, the drawn world and the trials.
CODE = [
    *(PACKAGE / f"{name}.py" for name in ("tokenizer", "clip", "attention", "blocks", "unet", "vae", "scheduler", "align", "edits",
                                          "local_blend", "pipeline", "inversion")),
    *(Path(world.__file__).parent / f"{name}.py" for name in ("world", "scene", "things", "picture", "scenery", "paint", "judge")),
    *(Path(trials.__file__).parent / f"{name}.py" for name in ("trials", "beside", "measures")),
]  # fmt: skip


def start(weights: str, steps: int) -> None:
    """Prepares a worker."""
    global bench
    torch.set_num_threads(1)
    bench = trials.Bench(StableDiffusion.load(weights, device="cpu"), judge.load(), steps)


def attempt(task: tuple[str, int]) -> dict:
    trial, number = task
    return {"trial": trial, "number": number, "result": getattr(trials, trial)(bench, number)}


def run(weights: str, counts: dict[str, int], steps: int, folder: Path) -> dict[str, list]:
    """All results by trial, in order. Results that the folder already has are not measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"trials-{fingerprint(weights, steps)}.jsonl"
    done = {(line["trial"], line["number"]): line["result"] for line in lines(file)}
    tasks = [(trial, number) for trial, count in counts.items() for number in range(count)]
    left = [task for task in tasks if task not in done]
    if left:
        with file.open("a") as log, get_context("spawn").Pool(min(cores(), len(left)), start, (weights, steps)) as pool:
            for line in tqdm(pool.imap_unordered(attempt, left), "trials", len(tasks), initial=len(tasks) - len(left)):
                log.write(json.dumps(line) + "\n")
                log.flush()
                done[line["trial"], line["number"]] = line["result"]
            pool.close()  # lets the workers end by themselves
            pool.join()
    return {trial: [done[trial, number] for number in range(count)] for trial, count in counts.items()}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lines(file: Path) -> list[dict]:
    """The results that a run has kept so far; a last line that was cut short is removed."""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def fingerprint(weights: str, steps: int) -> str:
    """Changes with the weights, the judge and the code that trials run; comments and docstrings do not count."""
    model = Path(weights).expanduser()
    files = [model] if model.is_file() else sorted(file for file in model.rglob("*") if file.is_file())
    digest = hashlib.sha256(str(steps).encode())
    for file in [judge.FILE, *files]:
        digest.update(file.read_bytes())
    for file in CODE:
        digest.update(code_of(file.read_text()).encode())
    return digest.hexdigest()[:12]


def code_of(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return ast.dump(tree)
