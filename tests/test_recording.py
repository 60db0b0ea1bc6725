"""Recording: the targets alone beside a recorded source give the pictures that all prompts run together give."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from minip2p import Add, LocalBlend, PromptError, Recording, Reweight, StableDiffusion, Swap, invert
from minip2p.__main__ import main
from minip2p.inversion import METHODS
from minip2p.recording import map_shapes, size_in_bytes
from tests.pipelines import difference
from tests.restatement import sharp_pipeline

CAT, DOG, NIGHT = "a red cat on the grass", "a red dog on the grass", "a red cat on the grass at night"
STEPS, QUIET = 5, {"progress": False}
ROUNDING = 1e-3  # maps are recorded in float16; what an edit changes is far more, as the tests of the edits see to


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def sd(request, tmp_path_factory) -> StableDiffusion:
    folder = tmp_path_factory.mktemp(request.param)
    sharp_pipeline(folder, request.param)
    return StableDiffusion.load(folder, device="cpu")


@pytest.fixture(scope="module")
def recording(sd) -> Recording:
    return sd.record(CAT, steps=STEPS, **QUIET)


def edits(tokenizer) -> dict[str, tuple]:
    """By name: the prompts, and an edit of them or none."""
    blend = LocalBlend(tokenizer, [CAT, DOG], ["cat", "dog"], start=0.3)
    many = [CAT, DOG, NIGHT, CAT]
    weighted = Reweight(tokenizer, many, {"red": 3.0}, base=Add(tokenizer, many, {"default_": 0.8, "night": (0.2, 0.6)}, 0.6))
    return {
        "none": ([CAT, DOG], None),
        "swap": ([CAT, DOG], Swap(tokenizer, [CAT, DOG])),
        "add": ([CAT, NIGHT], Add(tokenizer, [CAT, NIGHT], 0.6, (0.2, 1.0))),
        "reweight": ([CAT, CAT], Reweight(tokenizer, [CAT, CAT], {"red": -2.0})),
        "blend": ([CAT, DOG], Swap(tokenizer, [CAT, DOG], 1.0, 1.0, blend)),
        "several": (many, weighted),
    }


# ---------------------------------------------------------------- the same pictures


@pytest.mark.parametrize("name", ["none", "swap", "add", "reweight", "blend", "several"])
def test_replayed_is_run_together(sd, recording, name):
    prompts, edit = edits(sd.tokenizer)[name]
    together = sd.generate(prompts, steps=STEPS, edit=edit, **QUIET)
    replayed = sd.generate(prompts, recording=recording, edit=edit, **QUIET)
    assert replayed.latents.shape == together.latents.shape and len(replayed.images) == len(prompts)
    for ours, theirs in zip(replayed.latents, together.latents):
        assert difference(ours, theirs) < ROUNDING
    assert difference(replayed.trajectory, together.trajectory) < ROUNDING
    assert torch.equal(replayed.latents[0], recording.latents[-1]) and torch.equal(replayed.start, together.start)
    if edit is not None:
        alone = sd.generate(prompts[1:], steps=STEPS, **QUIET)
        assert difference(together.latents[1:2], alone.latents[:1]) > 10 * ROUNDING, "an edit that could go unnoticed"
    if name == "blend":
        assert replayed.masks.shape == together.masks.shape and (replayed.masks != together.masks).float().mean() < 0.01


def test_maps_of_all_prompts_come_with_it(sd, recording):
    prompts, edit = edits(sd.tokenizer)["several"]
    together = sd.generate(prompts, steps=STEPS, edit=edit, record=True, **QUIET).maps
    replayed = sd.generate(prompts, recording=recording, edit=edit, record=True, **QUIET).maps
    assert list(replayed.by_site) == list(together.by_site)
    for site, maps in together.by_site.items():
        assert difference(replayed.by_site[site].float(), maps.float()) < 10 * ROUNDING
    assert difference(replayed.word("cat", 0), together.word("cat", 0)) < ROUNDING
    assert difference(replayed.word("night", 2), together.word("night", 2)) < 10 * ROUNDING


@pytest.mark.parametrize("options", [{"seed": 3}, {"guidance": 1}, {"negative": "snow", "guidance": 3.0}, {"size": (32, 64)}])
def test_the_run_is_the_recorded_one_s(sd, options):
    edit = Swap(sd.tokenizer, [CAT, DOG])
    together = sd.generate([CAT, DOG], steps=STEPS, edit=edit, **options, **QUIET)
    recording = sd.record(CAT, steps=STEPS, **options, **QUIET)
    assert difference(sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET).latents, together.latents) < ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_a_photograph_is_recorded_the_same_way(sd1, sd, method):
    """To rounding on a gentle model; on a sharp one, which makes much of rounding, far nearer than what the edit does."""
    y, x = np.mgrid[:64, :64] / 64
    photograph = Image.fromarray((np.stack([x, y, (x + y > 0.8) * 1.0], axis=-1) * 255).astype(np.uint8))
    for model in (sd1.ours, sd):
        inversion = invert(model, photograph, CAT, method, steps=STEPS, lr=0.1, **QUIET)
        recording = model.record(CAT, inversion=inversion, **QUIET)
        edit = Swap(model.tokenizer, [CAT, DOG])
        together = model.generate([CAT, DOG], inversion=inversion, edit=edit, **QUIET)
        replayed = model.generate([CAT, DOG], recording=recording, edit=edit, **QUIET)
        unedited = model.generate([CAT, DOG], inversion=inversion, **QUIET)
        shows = difference(together.latents[1], unedited.latents[1])
        assert difference(replayed.latents, together.latents) < (ROUNDING if model is sd1.ours else shows / 10)
        if method == "ddim":  # which keeps nothing of the photograph but its noise
            plain = model.generate([CAT, DOG], latents=inversion.start, steps=STEPS, edit=edit, **QUIET)
            assert difference(together.latents, plain.latents) < 1e-4 < shows
        if method == "direct":
            assert torch.equal(replayed.latents[0], inversion.latents[0])


def test_the_source_does_not_change_with_the_batch(sd, recording):
    few = sd.generate([CAT, DOG], recording=recording, **QUIET)
    many = sd.generate([CAT, DOG, NIGHT, CAT, DOG], recording=recording, **QUIET)
    assert torch.equal(few.trajectory[:, 0], many.trajectory[:, 0])


def test_only_the_targets_are_run(sd, recording, monkeypatch):
    rows, forward = [], sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward", lambda z, *rest, **named: rows.append(len(z)) or forward(z, *rest, **named))
    sd.generate([CAT, DOG, NIGHT], recording=recording, edit=Add(sd.tokenizer, [CAT, DOG, NIGHT]), **QUIET)
    assert rows == [4] * STEPS, "two targets, without and with text"
    rows.clear()
    sd.record(CAT, steps=2, **QUIET)
    assert rows == [2, 2]


def test_a_function_at_the_seam_sees_the_source_first(sd, recording):
    def show(seen):
        def look(maps, site):
            seen.append((site, maps.clone()))
            return maps

        return look

    replayed, together = [], []
    sd.generate([CAT, DOG], recording=recording, edit=show(replayed), **QUIET)
    sd.generate([CAT, DOG], steps=STEPS, edit=show(together), **QUIET)
    assert [site for site, _ in replayed] == [site for site, _ in together]
    assert all(difference(ours, theirs) < ROUNDING for (_, ours), (_, theirs) in zip(replayed, together))


def test_maps_that_were_not_recorded_are_not_made_up(sd):
    recording = sd.record(CAT, steps=1, size=128, **QUIET)  # latents of 32 x 32, too large to keep their self-attention
    with pytest.raises(PromptError, match="self maps of size 32 x 32"):
        sd.generate([CAT, DOG], recording=recording, edit=lambda maps, site: maps, **QUIET)
    edit = Swap(sd.tokenizer, [CAT, DOG])
    together = sd.generate([CAT, DOG], steps=1, size=128, edit=edit, **QUIET)
    assert difference(sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET).latents, together.latents) < ROUNDING


# ---------------------------------------------------------------- its size


def test_the_size_is_said_before_the_run(sd, recording, monkeypatch, capsys):
    shapes = map_shapes(sd, STEPS, 16, 16)
    assert list(recording.maps) == sd.unet.sites(16, 16), "all of them are small here"
    assert {site: tuple(maps.shape) for site, maps in recording.maps.items()} == shapes
    size = sum(maps.numel() * maps.element_size() for maps in recording.maps.values())
    assert size_in_bytes(shapes) == size and {maps.dtype for maps in recording.maps.values()} == {torch.float16}
    monkeypatch.setattr(StableDiffusion, "generate", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sd.record(CAT, steps=STEPS)
    assert f"{size / 1e6:,.0f} MB" in capsys.readouterr().err


def test_what_cannot_be_recorded_is_refused_before_anything_is_said(sd, capsys):
    inversion = invert(sd, Image.new("RGB", (64, 64), "red"), CAT, "ddim", steps=2, **QUIET)
    with pytest.raises(PromptError, match="source prompt"):
        sd.record(DOG, inversion=inversion)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- files


def test_a_saved_recording_comes_back_whole(sd, recording, tmp_path):
    recording.save(tmp_path / "cat.safetensors")
    loaded = Recording.load(str(tmp_path / "cat.safetensors"))
    for field in dataclasses.fields(Recording):
        ours, theirs = getattr(loaded, field.name), getattr(recording, field.name)
        if field.name == "maps":
            assert list(ours) == list(theirs) and all(torch.equal(ours[site], theirs[site]) for site in theirs)
        else:
            assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs and type(ours) is type(theirs)
    edit = Swap(sd.tokenizer, [CAT, DOG])
    results = [sd.generate([CAT, DOG], recording=one, edit=edit, **QUIET).latents for one in (loaded, recording)]
    assert torch.equal(*results)


def test_files_that_are_no_recordings_are_refused(sd, recording, tmp_path):
    whole = tmp_path / "whole.safetensors"
    recording.save(whole)
    inversion = invert(sd, sd.generate(CAT, steps=1, **QUIET).images[0], CAT, "ddim", steps=1, **QUIET)
    inversion.save(tmp_path / "inversion.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    tensors, said = load_file(whole), recording.parts()[1]
    save_file(tensors, tmp_path / "silent.safetensors")
    save_file(tensors, tmp_path / "list.safetensors", {"recording": "[1]"})
    save_file(tensors, tmp_path / "sites.safetensors", {"recording": json.dumps(said | {"sites": [{"name": "mid"}]})})
    save_file(tensors, tmp_path / "steps.safetensors", {"recording": json.dumps(said | {"steps": STEPS + 1})})
    less = {name: tensor for name, tensor in tensors.items() if not name.startswith("maps.mid")}
    save_file(less, tmp_path / "less.safetensors", {"recording": json.dumps(said)})
    for name in ("inversion", "cut", "silent", "list", "sites", "steps", "less", "missing"):
        with pytest.raises(PromptError, match=f"{name}.safetensors") as error:
            Recording.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value) and "minip2p record" in str(error.value)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prompts": [DOG, CAT]}, "source prompt is 'a red dog on the grass'"),
        ({"prompts": CAT}, "give a target"),
        ({"steps": STEPS + 1}, "number of steps is 6"),
        ({"guidance": 3.0}, "guidance is 3.0"),
        ({"negative": "snow"}, "negative prompt is 'snow'"),
        ({"latents": torch.zeros(1, 4, 16, 16)}, "latents and a recording"),
        ({"size": 32}, "size is 32"),
        ({"recording": "cat.safetensors"}, "Recording.load"),
        ({"inversion": "photo.safetensors"}, "both an inversion and a recording"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(sd, recording, options, named):
    with pytest.raises(PromptError, match=named) as error:
        sd.generate(**({"prompts": [CAT, DOG], "recording": recording} | options | QUIET))
    assert "\n" not in str(error.value)


def test_what_the_recording_says_itself_may_be_said_again(sd, recording):
    said = sd.generate([CAT, DOG], recording=recording, steps=STEPS, guidance=7.5, size=64, seed=5, negative="", **QUIET)
    assert torch.equal(said.latents, sd.generate([CAT, DOG], recording=recording, **QUIET).latents)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_model_is_refused(sd1, dtype):
    own, other = (StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype) for _ in range(2))
    recording = own.record(CAT, steps=1, **QUIET)
    other.generate([CAT, DOG], recording=recording, **QUIET)
    for network in (other.unet, other.text_encoder, other.vae):
        weight = next(w for w in network.parameters() if w.ndim > 1)
        kept = weight.clone()
        weight.view(-1)[7] += 0.001 * weight.norm()
        with pytest.raises(PromptError, match="recording was made with other weights"):
            other.generate([CAT, DOG], recording=recording, **QUIET)
        weight.copy_(kept)
    for change in ({"beta_end": 0.013}, {"prediction_type": "v_prediction"}, {"set_alpha_to_one": True}, {"steps_offset": 0}):
        changed = dataclasses.replace(other, schedule=dataclasses.replace(other.schedule, **change))
        with pytest.raises(PromptError, match="other weights"):
            changed.generate([CAT, DOG], recording=recording, **QUIET)
    half = StableDiffusion.load(sd1.folder, device="cpu", dtype="bfloat16" if dtype == "float32" else "float32")
    assert half.generate([CAT, DOG], recording=recording, **QUIET).latents.isfinite().all(), "rounding is not another model"


# ---------------------------------------------------------------- the command line


def test_the_command_line_records_and_edits(sd1, tmp_path, capsys):
    common = ["--weights", str(sd1.folder), "--device", "cpu"]
    file, edited, together = tmp_path / "cat.recording.safetensors", tmp_path / "edit.png", tmp_path / "together.png"
    assert main(["record", CAT, "-o", str(file), "--steps", "3", "--seed", "4", *common]) == 0
    assert f"{file.stat().st_size / 1e6:.0f} MB" in capsys.readouterr().out
    assert main(["edit", CAT, DOG, "--recording", str(file), "-o", str(edited), *common]) == 0
    assert main(["edit", CAT, DOG, "--steps", "3", "--seed", "4", "-o", str(together), *common]) == 0
    ours, theirs = (np.asarray(Image.open(path), int) for path in (edited, together))
    assert abs(ours - theirs).max() <= 2
    page = tmp_path / "story.png"
    assert main(["edit", CAT, DOG, "--recording", str(file), "-o", str(edited), "--explain", str(page), *common]) == 0
    assert page.exists()
    capsys.readouterr()
    for prompt, more in ((DOG, []), (CAT, ["--steps", "4"]), (CAT, ["--inversion", str(file)])):
        refused = tmp_path / "refused.png"
        assert main(["edit", prompt, NIGHT, "--recording", str(file), "-o", str(refused), *more, *common]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and not refused.exists(), said
