"""Inversions that are kept: their files, the runs they fit and those that are refused; and the command line."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lessons import photographs
from minip2p import Inversion, PromptError, StableDiffusion, images, invert
from minip2p.__main__ import main
from tests.inversions import DOG, NIGHT, PROMPT, QUIET, SIZE, STEPS, photograph
from tests.pipelines import difference

# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prompts": [DOG, PROMPT]}, "source prompt is 'a red dog on the grass'"),
        ({"steps": STEPS + 1}, "number of steps is 5"),
        ({"guidance": 3.0}, "guidance is 3.0"),
        ({"negative": "snow"}, "negative is 'snow'"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents and an inversion"),
        ({"size": 64}, "size is 64"),
        ({"inversion": "photo.safetensors"}, "Inversion.load"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(sd1, made, options, named):
    with pytest.raises(PromptError, match=named) as error:
        sd1.ours.generate(**({"prompts": PROMPT, "inversion": made["sd1", "null-text"]} | options | QUIET))
    assert "\n" not in str(error.value)


def test_what_the_inversion_says_itself_may_be_said_again(sd1, made):
    inversion = made["sd1", "ddim"]
    said = sd1.ours.generate(PROMPT, inversion=inversion, steps=STEPS, guidance=7.5, size=SIZE, seed=5, negative="", **QUIET)
    assert torch.equal(said.latents, sd1.ours.generate(PROMPT, inversion=inversion, **QUIET).latents)
    negative = sd1.ours.generate(PROMPT, inversion=inversion, negative="the snow", **QUIET)
    assert difference(negative.latents, said.latents) > 1e-3, "ddim and direct leave its place to the caller"


def test_other_weights_are_refused(sd1, sd2, made, deep):
    inversion = made["sd1", "ddim"]
    for other in (sd2.ours, deep.ours):
        with pytest.raises(PromptError, match="other weights"):
            other.generate(PROMPT, inversion=inversion, **QUIET)
    trained_on = StableDiffusion.load(sd1.folder, device="cpu")
    for name in ("unet", "text_encoder"):
        weight = next(w for w in getattr(trained_on, name).parameters() if w.ndim > 1)
        kept = weight.clone()
        weight.view(-1)[7] += 0.001 * weight.norm()
        with pytest.raises(PromptError, match="other weights"):
            trained_on.generate(PROMPT, inversion=inversion, **QUIET)
        weight.copy_(kept)
    trained_on.generate(PROMPT, inversion=inversion, **QUIET)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"method": "null text"}, "use one of ddim, null-text"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": 1}, "the null text has no say"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"lr": -0.01}, "lr is -0.01"),
        ({"size": 33}, "33 x 33"),
        ({"crop": (0, 0, 65, 10)}, "64 wide and 48 high"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"prompt": "cat " * 90}, "90 tokens"),
        ({"prompt": None}, "a prompt must be a string"),
        ({"prompt": [PROMPT, DOG]}, "a prompt must be a string"),
    ],
)
def test_what_cannot_be_inverted_is_refused(sd1, options, named):
    with pytest.raises(PromptError, match=named):
        invert(**({"sd": sd1.ours, "image": photograph(), "prompt": PROMPT} | options | QUIET))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("method", ["null-text", "direct"])
def test_a_saved_inversion_comes_back_whole(sd1, made, tmp_path, method):
    inversion = dataclasses.replace(made["sd1", method], crop=(0, 1, 2, 3))
    inversion.save(tmp_path / "photo.safetensors")
    loaded = Inversion.load(str(tmp_path / "photo.safetensors"))
    for field in dataclasses.fields(Inversion):
        ours, theirs = getattr(loaded, field.name), getattr(inversion, field.name)
        assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs and type(ours) is type(theirs), (
            field.name
        )
    results = [sd1.ours.generate([PROMPT, DOG], inversion=one, **QUIET).latents for one in (loaded, inversion)]
    assert torch.equal(*results)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.safetensors"]


def test_the_fingerprint_of_the_picture_tells_pictures_apart(sd1, made):
    options = {"method": "ddim", "steps": 1, "size": SIZE} | QUIET
    same = invert(sd1.ours, photograph(), PROMPT, **options)
    other = invert(sd1.ours, photograph(), PROMPT, crop=(0, 0, 47, 47), **options)
    assert same.image == made["sd1", "null-text"].image != other.image
    assert other.crop == (0, 0, 47, 47)


def test_whoever_may_read_a_new_file_may_read_a_saved_one(made, tmp_path):
    made["sd1", "ddim"].save(tmp_path / "photo.safetensors")
    (tmp_path / "new").touch()
    assert (tmp_path / "photo.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_an_interrupted_save_leaves_the_old_file(made, tmp_path, monkeypatch):
    file = tmp_path / "photo.safetensors"
    made["sd1", "ddim"].save(file)
    before = file.read_bytes()

    def cut_short(tensors, path, metadata):
        path.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minip2p.saved.save_file", cut_short)
    with pytest.raises(PromptError, match="No space left"):
        made["sd1", "null-text"].save(file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["photo.png", "nowhere/photo.safetensors"])
def test_a_place_that_cannot_be_written_is_refused(made, tmp_path, name):
    with pytest.raises(PromptError, match="cannot write"):
        made["sd1", "ddim"].save(tmp_path / name)


def test_files_that_are_no_inversions_are_refused(made, sd1, tmp_path):
    whole = tmp_path / "whole.safetensors"
    made["sd1", "null-text"].save(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("a cat")
    (tmp_path / "folder.safetensors").mkdir()
    one = {"latents": torch.zeros(3, 4, 8, 8)}
    save_file(one, tmp_path / "other.safetensors")
    save_file(one, tmp_path / "list.safetensors", {"inversion": "[]"})
    save_file(one, tmp_path / "half.safetensors", {"inversion": json.dumps({"prompt": PROMPT, "crop": None, "losses": None})})
    names = ["cut", "empty", "text", "folder", "other", "list", "half", "missing"]
    for file in [*(tmp_path / f"{name}.safetensors" for name in names), sd1.folder / "unet/diffusion_pytorch_model.safetensors"]:
        with pytest.raises(PromptError, match=file.name) as error:
            Inversion.load(file)
        assert "\n" not in str(error.value) and "minip2p invert" in str(error.value)


# ---------------------------------------------------------------- the command line


def test_the_command_line_inverts_and_edits(sd1, tmp_path, capsys):
    photograph().save(tmp_path / "photo.png")
    file, edited = tmp_path / "photo.inversion.safetensors", tmp_path / "edit.png"
    common = ["--weights", str(sd1.folder), "--device", "cpu"]
    options = ["--method", "direct", "--crop", "0", "0", "48", "48", "--steps", "2", "--guidance", "3"]
    assert main(["invert", str(tmp_path / "photo.png"), PROMPT, "-o", str(file), *options, *common]) == 0
    inversion = Inversion.load(file)
    assert (inversion.steps, inversion.guidance, inversion.method, inversion.crop) == (2, 3.0, "direct", (0, 0, 48, 48))
    assert main(["edit", PROMPT, DOG, "--inversion", str(file), "-o", str(edited), *common]) == 0
    source = images.open_image(photograph(), (64, 64), crop=(0, 0, 48, 48))
    rebuilt = sd1.ours.decode_latents(sd1.ours.encode_image(source))[0]
    assert np.array_equal(np.asarray(Image.open(edited))[:, :64], np.asarray(rebuilt))
    capsys.readouterr()
    for prompt, more in ((DOG, []), (PROMPT, ["--steps", "3"]), (PROMPT, ["--guidance", "7.5"])):
        refused = tmp_path / "refused.png"
        assert main(["edit", prompt, NIGHT, "--inversion", str(file), "-o", str(refused), *more, *common]) == 2
        assert "invert again" in capsys.readouterr().err and not refused.exists()
    assert main(["invert", str(file), PROMPT, "-o", str(tmp_path / "no.safetensors"), *common]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be read as a picture" in said and not (tmp_path / "no.safetensors").exists()


# ---------------------------------------------------------------- the lessons' pictures


def test_the_lessons_pictures_are_the_drawn_ones(tmp_path, monkeypatch):
    shipped = photographs.IMAGES
    monkeypatch.setattr(photographs, "IMAGES", tmp_path)
    photographs.main()
    assert (tmp_path / "captions.json").read_text() == (shipped / "captions.json").read_text()
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(drawn) == len(json.loads((tmp_path / "captions.json").read_text()))
    for name in drawn:
        ours, theirs = (np.asarray(Image.open(folder / name), dtype=float) for folder in (tmp_path, shipped))
        assert np.abs(ours - theirs).mean() < 1, name  # another Pillow may draw an edge otherwise
    odd = [np.asarray(Image.open(shipped / f"cat{end}.png"), dtype=float) for end in ("", "_odd")]
    assert np.abs(odd[0] - odd[1]).mean() > 2
