"""Saved inversions: their files, the runs they fit, and the runs and files that are refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lessons import pictures
from minip2p import Inversion, PromptError, RequestError, StableDiffusion, invert
from tests.inversions import DOG, PROMPT, QUIET, SIZE, STEPS, input_picture
from tests.pipelines import difference

# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompts": [DOG, PROMPT]}, "source prompt is 'a red dog on the grass'"),
        ({"steps": STEPS + 1}, "number of steps is 5"),
        ({"guidance": 3.0}, "guidance is 3.0"),
        ({"negative": "snow"}, "negative is 'snow'"),
        ({"seed": 3}, "seed is 3, which has no effect, because the noise is that of the inversion"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "inversion and latents each bring"),
        ({"size": 64}, "size is 64"),
        ({"inversion": "photo.safetensors"}, "Inversion.load"),
    ],
)
@pytest.mark.parametrize("call", ["generate", "record"])
def test_a_run_that_does_not_fit_is_refused(sd1, inversions, call, options, message):
    options = {"prompts": PROMPT, "inversion": inversions["sd1", "null-text"]} | options | QUIET
    if call == "record":
        prompts = options.pop("prompts")
        options["prompt"] = prompts if isinstance(prompts, str) else prompts[0]
    with pytest.raises(RequestError, match=message) as error:
        getattr(sd1.ours, call)(**options)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, PromptError) == ("source prompt" in message)


def test_the_inversion_s_own_settings_may_be_repeated(sd1, inversions):
    inversion = inversions["sd1", "ddim"]
    repeated = sd1.ours.generate(PROMPT, inversion=inversion, steps=STEPS, guidance=7.5, size=SIZE, seed=0, negative="", **QUIET)
    assert torch.equal(repeated.latents, sd1.ours.generate(PROMPT, inversion=inversion, **QUIET).latents)
    assert repeated.steps == STEPS and repeated.guidance == 7.5
    negative = sd1.ours.generate(PROMPT, inversion=inversion, negative="the snow", **QUIET)
    assert difference(negative.latents, repeated.latents) > 1e-3, "with ddim and direct the caller may choose a negative prompt"


@pytest.mark.parametrize("method", ["ddim", "negative-prompt", "direct"])
def test_only_null_text_is_bound_to_its_guidance(sd1, inversions, method):
    """The other inversions are the same at every guidance, so the guidance may be chosen later."""
    inversion = inversions["sd1", method]
    later = sd1.ours.generate([PROMPT, DOG], inversion=inversion, guidance=3.0, **QUIET)
    made_for = dataclasses.replace(inversion, guidance=3.0)
    assert later.guidance == 3.0 and torch.equal(later.latents, sd1.ours.generate([PROMPT, DOG], inversion=made_for, **QUIET).latents)


def test_a_guidance_of_numpy_is_the_inversion_s_own(sd1, tmp_path):
    """float32's 7.3 is not Python's 7.3."""
    guidance = np.float32(7.3)
    options = {"steps": np.int64(1), "guidance": guidance, "inner_steps": np.int64(1), "size": np.int32(SIZE)}
    inversion = invert(sd1.ours, input_picture(), PROMPT, **options, **QUIET)
    inversion.save(tmp_path / "picture.safetensors")
    for source in (inversion, Inversion.load(tmp_path / "picture.safetensors")):
        results = [sd1.ours.generate(PROMPT, inversion=source, guidance=g, **QUIET).latents for g in (guidance, 7.3, None)]
        assert all(torch.equal(result, results[0]) for result in results)
        with pytest.raises(RequestError, match="guidance is 7.301"):
            sd1.ours.generate(PROMPT, inversion=source, guidance=7.301, **QUIET)


def test_other_weights_are_refused(sd1, sd2, inversions, deep):
    inversion = inversions["sd1", "ddim"]
    for other in (sd2.ours, deep.ours):
        with pytest.raises(RequestError, match="other weights"):
            other.generate(PROMPT, inversion=inversion, **QUIET)
    tuned = StableDiffusion.load(sd1.folder, device="cpu")
    for name in ("unet", "text_encoder"):
        weight = next(w for w in getattr(tuned, name).parameters() if w.ndim > 1)
        before = weight.clone()
        weight.view(-1)[7] += 0.001 * weight.norm()
        with pytest.raises(RequestError, match="other weights"):
            tuned.generate(PROMPT, inversion=inversion, **QUIET)
        weight.copy_(before)
    tuned.generate(PROMPT, inversion=inversion, **QUIET)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "null text"}, "use one of ddim, null-text"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": 1}, "the null text has no effect"),
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
def test_what_cannot_be_inverted_is_refused(sd1, options, message):
    with pytest.raises(RequestError, match=message) as error:
        invert(**({"sd": sd1.ours, "image": input_picture(), "prompt": PROMPT} | options | QUIET))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("method", ["null-text", "negative-prompt", "direct"])
def test_a_saved_inversion_is_loaded_without_loss(sd1, inversions, tmp_path, method):
    inversion = inversions["sd1", method]
    inversion = dataclasses.replace(inversion, cut=inversion.cut | {"crop": (0, 1, 2, 3)})
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


def test_an_inversion_says_how_its_picture_was_cut(sd1):
    options = {"method": "ddim", "steps": 1, "size": SIZE} | QUIET
    same = invert(sd1.ours, input_picture(), PROMPT, **options)
    other = invert(sd1.ours, input_picture(), PROMPT, crop=tuple(np.array([0, 0, 47, 47])), **options)
    assert all(type(side) is int for side in other.cut["crop"]), "numpy's numbers could not be saved"
    assert other.cut == {"size": (SIZE, SIZE), "picture": (64, 48), "crop": (0, 0, 47, 47)} and same.cut["crop"] is None


def test_a_saved_file_has_the_permissions_of_any_new_file(inversions, tmp_path):
    inversions["sd1", "ddim"].save(tmp_path / "photo.safetensors")
    (tmp_path / "new").touch()
    assert (tmp_path / "photo.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_an_interrupted_save_leaves_the_old_file(inversions, tmp_path, monkeypatch):
    file = tmp_path / "photo.safetensors"
    inversions["sd1", "ddim"].save(file)
    before = file.read_bytes()

    def cut_short(tensors, path, metadata):
        path.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minip2p.saved.save_file", cut_short)
    with pytest.raises(RequestError, match="No space left"):
        inversions["sd1", "null-text"].save(file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["photo.png", "nowhere/photo.safetensors"])
def test_a_place_that_cannot_be_written_is_refused(inversions, tmp_path, name):
    with pytest.raises(RequestError, match="cannot write"):
        inversions["sd1", "ddim"].save(tmp_path / name)


def test_files_that_are_not_inversions_are_refused(inversions, sd1, tmp_path):
    whole = tmp_path / "whole.safetensors"
    inversions["sd1", "null-text"].save(whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("a cat")
    (tmp_path / "folder.safetensors").mkdir()
    one = {"latents": torch.zeros(3, 4, 8, 8)}
    save_file(one, tmp_path / "other.safetensors")
    save_file(one, tmp_path / "list.safetensors", {"inversion": "[]"})
    save_file(one, tmp_path / "half.safetensors", {"inversion": json.dumps({"prompt": PROMPT, "cut": None, "losses": None})})
    tensors, values = inversions["sd1", "null-text"].to_file()
    save_file(tensors, tmp_path / "steps.safetensors", {"inversion": json.dumps(values | {"steps": STEPS - 1})})
    save_file(tensors, tmp_path / "method.safetensors", {"inversion": json.dumps(values | {"method": "negative-prompt"})})
    names = ["cut", "empty", "text", "folder", "other", "list", "half", "steps", "method", "missing"]
    for file in [*(tmp_path / f"{name}.safetensors" for name in names), sd1.folder / "unet/diffusion_pytorch_model.safetensors"]:
        with pytest.raises(RequestError, match=file.name) as error:
            Inversion.load(file)
        assert "\n" not in str(error.value) and "minip2p invert" in str(error.value)


# ---------------------------------------------------------------- the lessons' pictures


def test_the_lessons_pictures_are_those_that_the_program_draws(tmp_path, monkeypatch):
    shipped = pictures.IMAGES
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    pictures.main()
    assert (tmp_path / "captions.json").read_text() == (shipped / "captions.json").read_text()
    drawn = sorted(path.stem for path in tmp_path.glob("*.png"))
    assert drawn == sorted(json.loads((tmp_path / "captions.json").read_text()))
    for name in drawn:
        ours, theirs = (np.asarray(Image.open(folder / f"{name}.png"), dtype=float) for folder in (tmp_path, shipped))
        assert np.abs(ours - theirs).mean() < 1, name  # another version of Pillow may draw an edge differently
    ordinary, odd = (np.asarray(pictures.picture(name)[0], dtype=float) for name in ("cat", "cat_odd"))
    assert np.abs(ordinary - odd).mean() > 2
