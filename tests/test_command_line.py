"""The command line: the same pictures as the library's, one line for an error, and nothing half written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p import Add, Inversion, LocalBlend, Reweight, StableDiffusion, Swap, images
from minip2p import __main__ as command_line
from minip2p.__main__ import main
from minip2p.options import build_parser
from tests.inversions import DOG, NIGHT, PROMPT, input_picture

ROOT = Path(__file__).resolve().parent.parent
FEW = ["--steps", "2", "--device", "cpu"]


@pytest.fixture
def toy_once(toy, monkeypatch):
    """The toy is loaded once for all commands of this file; loading is tested elsewhere."""
    monkeypatch.setattr(command_line, "load", lambda args: toy)


def test_generate_in_a_process_of_its_own(tmp_path):
    output = tmp_path / "cat.png"
    command = [sys.executable, "-m", "minip2p", "generate", "a \u732b cat", "--seed", "3", "-o", str(output), "--zoom", "1", *FEW]
    console = os.environ | {"PYTHONIOENCODING": "ascii"}  # one that has no character for the prompt
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=console)
    assert done.returncode == 0 and "a \\u732b cat" in done.stdout, done.stderr
    assert Image.open(output).size == (64, 64)


@pytest.mark.parametrize(
    "words, kind",
    [
        (["a dog on the grass"], "swap"),
        (["a cat on the grass at night"], "add"),
        (["a cat on the grass at night", "--swap"], None),  # no word is swapped
        (["a dog on the grass", "--add"], "add"),
        (["a the grass on cat"], "add"),  # words are moved, none is swapped
        (["a dog on the grass", "a cat on the sand"], "swap"),
        (["a dog on the grass", "--reweight", "grass=-1", "--reweight", "dog=2"], "swap, grass x -1, dog x 2"),
        (["a dog on the grass", "--blend", "cat,dog"], "swap"),
        (["a cat on the grass", "--reweight", "grass=2"], "grass x 2"),  # the target is the source
        (["a cat on the grass", "a cat on the grass", "--reweight", "cat=2", "--blend", "cat"], "cat x 2"),
        (["a cat on the grass"], None),
        (["a cat on the grass", "--reweight", "grass=2", "--swap"], None),
    ],
)
def test_edit_prints_which_edit_it_is(toy_once, tmp_path, capsys, words, kind):
    output = tmp_path / "edit.png"
    code = main(["edit", "a cat on the grass", *words, "-o", str(output), "--zoom", "1", *FEW])
    printed = capsys.readouterr()
    if kind is None:
        assert code == 2 and printed.err.count("\n") == 1 and not output.exists()
        return
    targets = sum(" " in word for word in words)
    assert code == 0 and f"edit: {kind}\n" in printed.out
    assert Image.open(output).size == (64 * (1 + targets), 64)


def test_options_do_what_the_library_does(sharp1, tmp_path):
    """Every option with a value of its own: the same picture as the library's, and another one if an option is left out."""
    prompts, sd = [PROMPT, DOG], sharp1.ours
    options = {"--seed": "3", "--guidance": "4", "--cross-replace-steps": "0.5", "--self-replace-steps": "0.75",
               "--reweight": "grass=-9", "--blend": "cat,dog"}  # fmt: skip
    blend = LocalBlend(sd.tokenizer, prompts, ["cat", "dog"])
    edit = Reweight(sd.tokenizer, prompts, {"grass": -9.0}, base=Swap(sd.tokenizer, prompts, 0.5, 0.75, blend))
    images = sd.generate(prompts, seed=3, steps=4, guidance=4.0, edit=edit, progress=False).images

    def edited(omitted: str = "", *more: str) -> np.ndarray:
        given = [part for option in options.items() if option[0] != omitted for part in option]
        given += ["--steps", "4", "--weights", str(sharp1.folder), "--device", "cpu", "--zoom", "1", *more]
        assert main(["edit", *prompts, "-o", str(tmp_path / "edit.png"), *given]) == 0
        return np.asarray(Image.open(tmp_path / "edit.png"), int)

    ours = edited()
    assert (ours == np.concatenate([np.asarray(image, int) for image in images], axis=1)).all()
    for option in options:
        assert (edited(option) != ours).any(), f"{option} has no effect"
    assert (edited("", "--dtype", "bfloat16") != ours).any(), "--dtype has no effect"


def test_defaults_are_those_of_the_library(toy):
    prompts = ["a cat on the grass", "a dog on the grass"]
    window = torch.tensor([0.0, 0.8], dtype=torch.float64)
    for edit in (Swap(toy.tokenizer, prompts), Add(toy.tokenizer, prompts), Reweight(toy.tokenizer, prompts, {"grass": 2.0})):
        assert (edit.cross_replace == window).all() and edit.self_replace == (0.0, 0.4) and edit.blend is None
    args = build_parser().parse_args(["edit", *prompts, "-o", "edit.png"])
    assert (args.cross_replace_steps, args.self_replace_steps, args.steps, args.guidance) == (None, None, None, None)
    args = build_parser().parse_args(["generate", "a cat", "-o", "cat.png"])
    assert (args.steps, args.guidance, args.seed) == (50, 7.5, None)


@pytest.mark.parametrize("zoom, side", [([], 256), (["--zoom", "1"], 64), (["--zoom", "2"], 128)])
def test_small_pictures_are_enlarged(toy_once, tmp_path, zoom, side):
    assert main(["generate", "a cat", "-o", str(tmp_path / "cat.webp"), *zoom, *FEW]) == 0
    assert Image.open(tmp_path / "cat.webp").size == (side, side)


def test_attend_writes_a_figure(toy_once, tmp_path):
    assert main(["attend", "a cat on the grass", "-o", str(tmp_path / "maps.png"), *FEW]) == 0
    assert Image.open(tmp_path / "maps.png").size[0] > 600


def test_explain_and_explore_write_a_figure_and_a_page(toy_once, tmp_path):
    edit = ["a cat on the grass", "a dog on the grass"]
    story, page = tmp_path / "story.png", tmp_path / "page.html"
    assert main(["edit", *edit, "-o", str(tmp_path / "edit.png"), "--explain", str(story), *FEW]) == 0
    assert Image.open(story).size[0] > 600
    for prompts in (edit, edit[:1]):
        assert main(["explore", *prompts, "-o", str(page), *FEW]) == 0
        assert "<html" in page.read_text()
        page.unlink()


@pytest.mark.parametrize(
    "arguments, message",
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
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--reweight", "dog=2", "--reweight", "Dog=3"], "two weights"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--blend", ""], "'' is in none of the prompts"),
        (["edit", "a cat", "a cat", "-o", "{}/e.png"], "a target is the source prompt"),
        (["edit", "a cat", "", "-o", "{}/e.png"], "target prompt of the edit is empty"),
        (["edit", "a cat", "a dog", "a cow", "-o", "{}/e.png", "--explain", "{}/s.png"], "--explain shows one edit"),
        (["explore", "a cat", "-o", "{}/e.html", "--reweight", "cat=2"], "--reweight needs an edit"),
        (["generate", "a cat", "-o", "{}/cat.png", "--zoom", "0"], "--zoom: 0 is not a whole number from 1 to 64"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--explain", "{}/s.png", "--zoom", "0"], "--zoom: 0 is not"),
        (["explore", "a cat", "-o", "{}/e.html", "--self-replace-steps", "0"], "--self-replace-steps needs an edit"),
        (["record", "a dog", "-o", "{}/r.safetensors", "--inversion", "c.safetensors"], "c.safetensors"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--seed", "3", "--inversion", "c.safetensors"], "--seed 3 has no effect"),
        (["edit", "a cat", "a dog", "-o", "{}/e.png", "--seed", "0", "--recording", "c.safetensors"], "--seed 0 has no effect"),
        (["record", "a cat", "-o", "{}/r.safetensors", "--seed", "3", "--inversion", "c.safetensors"], "--seed 3 has no effect"),
        (["record", "a cat", "-o", "{}/r.safetensors", "--inversion", "{}/x/../r.safetensors"], "--inversion and --output are both"),
        (["edit", "a cat", "a dog", "-o", "{0}/e.png", "--explain", "{0}/../{0.name}/e.png"], "--explain and --output are both"),
        (["draw", "a cat"], "draw"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, message):
    arguments = [argument.format(tmp_path) for argument in arguments]
    if "--steps" not in arguments:
        arguments += FEW[:2] if arguments else []
    try:
        code = main(arguments)
    except SystemExit as stopped:  # how argparse ends
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nError code 12"),
    MemoryError(),
])  # fmt: skip
def test_a_device_without_memory_is_one_line(tmp_path, capsys, monkeypatch, error):
    def full(*given, **named):
        raise error

    monkeypatch.setattr(StableDiffusion, "generate", full)
    assert main(["generate", "a cat", "-o", str(tmp_path / "cat.png"), *FEW]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--dtype float16" in error and list(tmp_path.iterdir()) == []


def test_nothing_needs_docstrings():
    """python -OO removes them."""
    assert [file.name for file in (ROOT / "minip2p").rglob("*.py") if "__doc__" in file.read_text()] == []


# ---------------------------------------------------------------- inversions and recordings


def test_invert_record_and_edit(sd1, tmp_path, capsys):
    """Files of one command are read by the next; settings that contradict a file are refused, and nothing is written."""
    input_picture().save(tmp_path / "photo.png")
    inverted, recorded, edited, replayed = (tmp_path / name for name in ("i.safetensors", "r.safetensors", "e.png", "f.png"))
    common = ["--weights", str(sd1.folder), "--device", "cpu"]
    options = ["--method", "direct", "--crop", "0", "0", "48", "48", "--steps", "2", "--guidance", "3"]
    assert main(["invert", str(tmp_path / "photo.png"), PROMPT, "-o", str(inverted), *options, *common]) == 0
    inversion = Inversion.load(inverted)
    assert (inversion.steps, inversion.guidance, inversion.method, inversion.cut["crop"]) == (2, 3.0, "direct", (0, 0, 48, 48))
    assert main(["record", PROMPT, "--inversion", str(inverted), "-o", str(recorded), *common]) == 0
    assert f"{recorded.stat().st_size / 1e6:.0f} MB" in capsys.readouterr().out
    for output, source in ((edited, ["--inversion", str(inverted)]), (replayed, ["--recording", str(recorded)])):
        assert main(["edit", PROMPT, DOG, *source, "-o", str(output), "--zoom", "1", *common]) == 0
    source = images.open_image(input_picture(), (64, 64), crop=(0, 0, 48, 48))
    reconstructed = sd1.ours.decode_latents(sd1.ours.encode_image(source))[0]
    assert np.array_equal(np.asarray(Image.open(edited))[:, :64], np.asarray(reconstructed))
    assert abs(np.asarray(Image.open(edited), int) - np.asarray(Image.open(replayed), int)).max() <= 2

    capsys.readouterr()
    refused = tmp_path / "refused.png"
    for file, again in ((["--inversion", str(inverted)], "invert again"), (["--recording", str(recorded)], "record again")):
        wrong = [(DOG, []), (PROMPT, ["--steps", "3"])]
        wrong += [(PROMPT, ["--guidance", "7.5"])] if again == "record again" else []  # direct inversion does not use its guidance
        for prompt, more in wrong:
            assert main(["edit", prompt, NIGHT, *file, "-o", str(refused), *more, *common]) == 2
            error = capsys.readouterr().err
            assert again in error and error.count("\n") == 1 and not refused.exists()
    assert main(["edit", PROMPT, NIGHT, "--inversion", str(inverted), "--recording", str(inverted), "-o", str(refused), *common]) == 2
    assert "holds no recording: give a file that `minip2p record` wrote" in capsys.readouterr().err
    assert main(["invert", str(inverted), PROMPT, "-o", str(tmp_path / "no.safetensors"), *common]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be read as a picture" in error and not (tmp_path / "no.safetensors").exists()
