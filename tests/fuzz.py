"""Damaged, mislabelled and misread files of every kind that this package reads: each must be refused in one line, or load.

python -m tests.fuzz [NUMBER] [SEED] runs so many (10,000) and prints a summary; tests/test_fuzz.py runs a few hundred.
A failure is any error but the package's own (a traceback for the user), a message of several lines, or a model that was loaded
and does not run.
"""

import contextlib
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minip2p import CheckpointError, Inversion, Recording, RequestError, StableDiffusion, invert
from minip2p.images import open_image
from tests.cases.loads import template
from tests.cases.models import single_file, write_single
from tests.inversions import PROMPT, input_picture

KIND = "smallest"
RANDOM_JSON = [None, True, -1, 0, 3, 1.5, 1e999, "", "x", "a\nb", "\ud800", [], [0], [[]], {}, {"x": 1}, 10**30, "99999999999"]


@dataclass(frozen=True)
class Subject:
    """A kind of file: where it is in the sound copy, and what reads it."""

    name: str
    file: Path  # relative to the sound copy
    read: Callable[[Path], object]  # given the damaged copy's root


def sound_copy(root: Path) -> list[Subject]:
    """One sound file of every kind under `root`, and the subjects."""
    source, pipeline = template(KIND)
    shutil.copytree(source, root / "model")
    write_single(root / "single/model.safetensors", single_file(pipeline, KIND), source / "tokenizer")
    sd = StableDiffusion.load(root / "model", "cpu")
    invert(sd, input_picture(), PROMPT, "null-text", steps=2, size=32, inner_steps=1, progress=False).save(root / "x.safetensors")
    sd.record(PROMPT, steps=2, size=32, progress=False).save(root / "y.safetensors")
    input_picture().save(root / "picture.png")
    input_picture().save(root / "picture.jpg")

    def folder(copy: Path) -> None:
        run(StableDiffusion.load(copy / "model", "cpu"))

    def single(copy: Path) -> None:
        run(StableDiffusion.load(copy / "single/model.safetensors", "cpu"))

    parts = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    subjects = [Subject(part.split("/")[0], Path(f"model/{part}.safetensors"), folder) for part in parts]
    subjects += [
        Subject(f"{part}'s config", Path(f"model/{part}/config.json"), folder) for part in ("unet", "vae", "text_encoder")
    ]
    subjects += [
        Subject("scheduler's config", Path("model/scheduler/scheduler_config.json"), folder),
        Subject("model_index", Path("model/model_index.json"), folder),
        Subject("vocabulary", Path("model/tokenizer/vocab.json"), folder),
        Subject("merges", Path("model/tokenizer/merges.txt"), folder),
        Subject("tokenizer's config", Path("model/tokenizer/tokenizer_config.json"), folder),
        Subject("single file", Path("single/model.safetensors"), single),
        Subject("inversion", Path("x.safetensors"), lambda copy: Inversion.load(copy / "x.safetensors")),
        Subject("recording", Path("y.safetensors"), lambda copy: Recording.load(copy / "y.safetensors")),
        Subject("png", Path("picture.png"), lambda copy: open_image(copy / "picture.png", (32, 32))),
        Subject("jpg", Path("picture.jpg"), lambda copy: open_image(copy / "picture.jpg", (32, 32))),
    ]
    return subjects


def run(sd: StableDiffusion) -> None:
    """One step, if the damaged file has left a model: it must be whole."""
    with contextlib.suppress(FloatingPointError):  # damaged numbers may be infinite, which `generate` says in one line
        sd.generate("a red cat", steps=1, guidance=1, size=32, progress=False)


# ---------------------------------------------------------------- damage


def damage(content: bytes, others: list[bytes], rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the damaged content)."""
    kinds = {
        "cut": lambda: content[: rng.randrange(len(content))],
        "bytes changed": lambda: changed(content, rng, rng.randrange(len(content))),
        "early bytes changed": lambda: changed(content, rng, min(len(content), 400)),
        "bytes inserted": lambda: inserted(content, rng),
        "lengthened": lambda: content + rng.randbytes(rng.randrange(1, 40)),
        "another file": lambda: rng.choice(others),
        "random bytes": lambda: rng.randbytes(rng.randrange(200)),
        "structure": lambda: restructured(content, rng),
    }
    kind = rng.choices(list(kinds), weights=[2, 2, 4, 1, 1, 1, 1, 8])[0]
    return kind, kinds[kind]()


def changed(content: bytes, rng: random.Random, below: int) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(max(1, below))] = rng.randrange(256)
    return bytes(data)


def inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randrange(1, 20)) + content[place:]


def restructured(content: bytes, rng: random.Random) -> bytes:
    """JSON, also in the header of a safetensors file, with an entry changed, dropped or renamed; other files: a line changed."""
    if len(content) > 8 and (size := struct.unpack("<Q", content[:8])[0]) < len(content):
        with contextlib.suppress(ValueError):
            header = json.dumps(mutated(json.loads(content[8 : 8 + size]), rng)).encode()
            return struct.pack("<Q", len(header)) + header + content[8 + size :]
    with contextlib.suppress(ValueError):
        return json.dumps(mutated(json.loads(content), rng)).encode()
    lines = content.split(b"\n")
    lines[rng.randrange(len(lines))] = rng.choice([b"", b"a b c", b"\xff", lines[0] * 2])
    return b"\n".join(lines)


def mutated(value, rng: random.Random):
    """The same JSON with one thing about it changed, at a random depth."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        action = rng.randrange(5)
        if action == 0:
            return {k: v for k, v in value.items() if k != key}
        if action == 1:
            return {(k if k != key else f"{k}{rng.choice(['x', '.', '0', ''])}"): v for k, v in value.items()}
        if action == 2:
            return value | {rng.choice(["x", "", "unknown.weight", key * 2]): rng.choice([value[key], *RANDOM_JSON])}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return value[:place] + [mutated(value[place], rng)] + value[place + rng.randrange(2) :]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 2**31, -(2**40), value])
    return rng.choice(RANDOM_JSON)


# ---------------------------------------------------------------- the run


def attempt(subject: Subject, copy: Path) -> str:
    """ "loaded" or "refused"; AssertionError for anything else."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            subject.read(copy)
    except (CheckpointError, RequestError) as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, f"a message of several lines, or too long: {error}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    assert said.getvalue().count("\n") <= 1, f"several lines on stderr: {said.getvalue()}"
    return "loaded"


def fuzz(number: int, seed: int = 0, show: bool = False) -> tuple[Counter, list[str]]:
    """(how often each subject was loaded or refused, what failed) of so many damaged files."""
    rng, outcomes, failures = random.Random(seed), Counter(), []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="minip2p-fuzz-") as root:
        root = Path(root)
        subjects = sound_copy(root)
        contents = {subject.name: (root / subject.file).read_bytes() for subject in subjects}
        for i in range(number):
            subject = subjects[i % len(subjects)]
            file = root / subject.file
            kind, content = damage(contents[subject.name], list(contents.values()), rng)
            file.write_bytes(content)
            try:
                outcomes[subject.name, attempt(subject, root)] += 1
            except AssertionError as failure:
                failures.append(f"{subject.name}, {kind}, number {i} of seed {seed}: {failure}")
            file.write_bytes(contents[subject.name])
            if show and i % 500 == 499:
                print(f"{i + 1} files, {len(failures)} failures", *failures[-1:], flush=True)
        for subject in subjects:
            assert attempt(subject, root) == "loaded", f"the sound {subject.name} is refused"
    return outcomes, failures


def main() -> int:
    number, seed = (int(text) for text in (sys.argv[1:] + ["10000", "0"][len(sys.argv) - 1 :]))
    began = time.monotonic()
    outcomes, failures = fuzz(number, seed, show=True)
    for name in dict.fromkeys(name for name, _ in outcomes):
        print(f"{name:20} refused {outcomes[name, 'refused']:5}  loaded {outcomes[name, 'loaded']:5}")
    print(f"{number} damaged files, {len(failures)} failures, {time.monotonic() - began:.0f} s")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
