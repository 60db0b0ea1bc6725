"""The command line as people type it: pictures where they should be, one line for what is wrong, nothing half written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p import Add, LocalBlend, Reweight, StableDiffusion, Swap
from minip2p.__main__ import build_parser, main
from minip2p.saved import settle

ROOT = Path(__file__).resolve().parent.parent
FEW = ["--steps", "3", "--device", "cpu"]


def test_generate_in_a_process_of_its_own(tmp_path):
    output = tmp_path / "cat.png"
    command = [sys.executable, "-m", "minip2p", "generate", "a cat", "--seed", "3", "-o", str(output), *FEW]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(output).size == (64, 64)


@pytest.mark.parametrize(
    "words, kind",
    [
        (["a dog on the grass"], "swap"),
        (["a cat on the grass at night"], "add"),
        (["a cat on the grass at night", "--swap"], None),  # nothing is swapped there
        (["a dog on the grass", "--add"], "add"),
        (["a the grass on cat"], "add"),  # the words are moved, none is swapped
        (["a dog on the grass", "a cat on the sand"], "swap"),
        (["a dog on the grass", "--reweight", "grass=-1", "--reweight", "dog=2"], "swap, grass x -1, dog x 2"),
        (["a dog on the grass", "--blend", "cat,dog"], "swap"),
    ],
)
def test_edit_says_which_edit_it_is(tmp_path, capsys, words, kind):
    output = tmp_path / "edit.png"
    code = main(["edit", "a cat on the grass", *words, "-o", str(output), *FEW])
    said = capsys.readouterr()
    if kind is None:
        assert code == 2 and said.err.count("\n") == 1 and not output.exists()
        return
    targets = sum(not word.startswith("-") and "=" not in word and "," not in word for word in words)
    assert code == 0 and f"edit: {kind}\n" in said.out
    assert Image.open(output).size == (64 * (1 + targets), 64)


def test_options_do_what_the_library_does(tmp_path):
    """Every option with a value of its own: the same picture as the library's, and another if one of them is left out."""
    prompts = ["a cat next to a house", "a dog next to a house"]
    options = {"--seed": "3", "--guidance": "4", "--dtype": "bfloat16", "--cross-replace-steps": "0.5",
               "--self-replace-steps": "0.75", "--reweight": "house=-2", "--blend": "cat,dog"}  # fmt: skip
    sd = StableDiffusion.load(ROOT / "weights" / "toy", "cpu", "bfloat16")
    blend = LocalBlend(sd.tokenizer, prompts, ["cat", "dog"])
    edit = Reweight(sd.tokenizer, prompts, {"house": -2.0}, base=Swap(sd.tokenizer, prompts, 0.5, 0.75, blend))
    images = sd.generate(prompts, seed=3, steps=4, guidance=4.0, edit=edit, progress=False).images

    def drawn(without: str = "") -> np.ndarray:
        said = [part for option in options.items() if option[0] != without for part in option]
        assert main(["edit", *prompts, "-o", str(tmp_path / "edit.png"), "--steps", "4", "--device", "cpu", *said]) == 0
        return np.asarray(Image.open(tmp_path / "edit.png"), int)

    ours = drawn()
    assert (ours == np.concatenate([np.asarray(image, int) for image in images], axis=1)).all()
    for option in options:
        assert (drawn(without=option) != ours).any(), f"{option} has no effect"


def test_what_is_not_said_is_as_the_lessons_say():
    sd = StableDiffusion.load(ROOT / "weights" / "toy", "cpu")
    prompts = ["a cat on the grass", "a dog on the grass"]
    for edit in (Swap(sd.tokenizer, prompts), Add(sd.tokenizer, prompts), Reweight(sd.tokenizer, prompts, {"grass": 2.0})):
        assert (edit.cross_window == torch.tensor([0.0, 0.8], dtype=torch.float64)).all() and edit.self_window == (0.0, 0.4) and edit.blend is None
    assert settle(None, None, None) == (50, 7.5)
    said = build_parser().parse_args(["edit", *prompts, "-o", "edit.png"])
    assert (said.cross_replace_steps, said.self_replace_steps, said.steps, said.guidance) == (0.8, 0.4, None, None)
    said = build_parser().parse_args(["generate", "a cat", "-o", "cat.png"])
    assert (said.steps, said.guidance) == (50, 7.5)


def test_attend_draws_a_figure(tmp_path):
    assert main(["attend", "a cat on the grass", "-o", str(tmp_path / "maps.png"), *FEW]) == 0
    assert Image.open(tmp_path / "maps.png").size[0] > 600


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["generate", "a cat", "-o", "{}/cat.txt"], "cat.txt"),
        (["generate", "a cat", "-o", "{}/nowhere/cat.png"], "nowhere"),
        (["generate", "a cat", "-o", "{}"], "must end in"),
        (["generate", "cat " * 90, "-o", "{}/cat.png"], "90 tokens"),
        (["generate", "a cat", "-o", "{}/cat.png", "--steps", "0"], "steps is 0"),
        (["generate", "a cat", "-o", "{}/cat.png", "--steps", "many"], "many"),
        (["generate", "a cat", "-o", "{}/cat.png", "--seed", "-1"], "seed is -1"),
        (["generate", "a cat", "-o", "{}/cat.png", "--weights", "{}/none"], "does not exist"),
        (["generate", "a cat", "-o", "{}/cat.png", "--device", "tpu9"], "tpu9"),
        (["generate", "a cat", "-o", "{}/cat.png", "--dtype", "int8"], "int8"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--reweight", "dog"], "WORD=NUMBER"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--reweight", "cow=2"], "'cow'"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--blend", "cow"], "'cow'"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--cross-replace-steps", "1.5"], "1.5"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--swap", "--add"], "not allowed"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--explain", "{}/e.png"], "a name of its own"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--reweight", "dog=2", "--reweight", "dog=3"], "two weights, 2 and 3"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--blend", ""], "'' is in none of the prompts"),
        (["record", "a dog", "-o", "{}/r.safetensors", "--inversion", "c.safetensors"], "c.safetensors"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--seed", "3", "--inversion", "c.safetensors"], "--seed 3 has no say"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--seed", "0", "--recording", "c.safetensors"], "--seed 0 has no say"),
        (["record", "a cat", "-o", "{}/r.safetensors", "--seed", "3", "--inversion", "c.safetensors"], "--seed 3 has no say"),
        (["draw", "a cat"], "draw"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, named):
    arguments = [argument.format(tmp_path) for argument in arguments]
    if "--steps" not in arguments:
        arguments += FEW[:2] if arguments else []
    try:
        code = main(arguments)
    except SystemExit as stopped:  # argparse's own way out
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and named in error and error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_memory_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr(StableDiffusion, "generate", full)
    assert main(["generate", "a cat", "-o", str(tmp_path / "cat.png"), *FEW]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--dtype float16" in error and list(tmp_path.iterdir()) == []
