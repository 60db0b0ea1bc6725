"""Recordings: an edit of a recorded source gives the pictures of a run of all prompts together."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minip2p import Add, AttentionEdit, Inversion, LocalBlend, Recording, RequestError, Reweight, StableDiffusion, Swap, invert
from minip2p.inversion import METHODS
from minip2p.recording import map_bytes
from minip2p.tokenizer import CLIPTokenizer
from tests.conftest import TOY
from tests.inversions import input_picture
from tests.pipelines import difference

CAT, DOG, NIGHT = "a red cat on the grass", "a red dog on the grass", "a red cat on the grass at night"
STEPS, QUIET = 5, {"progress": False}
ROUNDING = 1e-3  # maps are recorded in float16; edits change far more, as the tests below check


@pytest.fixture(scope="module", params=["sharp1", "sharp2"])
def sd(request) -> StableDiffusion:
    """A model that predicts the noise, and one that predicts v."""
    return request.getfixturevalue(request.param).ours


@pytest.fixture(scope="module")
def recording(sd) -> Recording:
    return sd.record(CAT, steps=STEPS, **QUIET)


def edits(tokenizer) -> dict[str, tuple]:
    """By name: the prompts, and an edit of them or none."""
    blend = LocalBlend(tokenizer, [CAT, DOG], ["cat", "dog"], start=0.3)
    many = [CAT, DOG, NIGHT, CAT]
    weighted = Reweight(tokenizer, many, {"red": 3.0}, None, {"default_": 0.8, "night": (0.2, 0.6)}, 0.6)
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
def test_an_edit_of_a_recording_equals_a_run_of_all_prompts(sd, recording, name):
    prompts, edit = edits(sd.tokenizer)[name]
    together = sd.generate(prompts, steps=STEPS, edit=edit, record="all", **QUIET)
    replayed = sd.generate(prompts, recording=recording, edit=edit, record="all", **QUIET)
    assert replayed.latents.shape == together.latents.shape and len(replayed.images) == len(prompts)
    for ours, theirs in zip(replayed.latents, together.latents):
        assert difference(ours, theirs) < ROUNDING
    assert difference(replayed.trajectory, together.trajectory) < ROUNDING
    assert difference(replayed.pred_x0, together.pred_x0) < ROUNDING
    assert torch.equal(replayed.latents[0], recording.latents[-1]) and torch.equal(replayed.start, together.start)
    if edit is not None:
        alone = sd.generate(prompts[1:2], steps=STEPS, **QUIET)
        assert difference(together.latents[1:2], alone.latents) > 10 * ROUNDING, "an edit that could go unnoticed"
    if name == "blend":
        assert replayed.masks.shape == together.masks.shape and (replayed.masks != together.masks).float().mean() < 0.01
    for ours, theirs in ((replayed.maps, together.maps), (replayed.own_maps, together.own_maps)):
        assert list(ours.by_site) == list(theirs.by_site) and ours.prompts == tuple(prompts)
        for site, maps in theirs.by_site.items():
            assert difference(ours.by_site[site].float(), maps.float()) < 10 * ROUNDING


@pytest.mark.parametrize("options", [{"seed": 3}, {"guidance": 1}, {"negative": "snow", "guidance": 3.0}, {"size": (32, 64)}])
def test_the_settings_are_those_of_the_recording(sd, options):
    edit = Swap(sd.tokenizer, [CAT, DOG])
    together = sd.generate([CAT, DOG], steps=3, edit=edit, **options, **QUIET)
    recording = sd.record(CAT, steps=3, **options, **QUIET)
    assert difference(sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET).latents, together.latents) < ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_an_inverted_picture_is_recorded_the_same_way(sd1, inversions, method):
    """The recording holds the source's run, so that the inversion is no longer needed."""
    model, inversion = sd1.ours, inversions["sd1", method]
    recording = model.record(CAT, inversion=inversion, **QUIET)
    edit = Swap(model.tokenizer, [CAT, DOG])
    together = model.generate([CAT, DOG], inversion=inversion, edit=edit, **QUIET)
    replayed = model.generate([CAT, DOG], recording=recording, edit=edit, **QUIET)
    assert difference(replayed.latents, together.latents) < ROUNDING
    if method == "ddim":  # of the picture only the noise is used
        plain = model.generate([CAT, DOG], latents=inversion.start, steps=inversion.steps, edit=edit, **QUIET)
        assert difference(together.latents, plain.latents) < 1e-4
    if method == "direct":
        assert torch.equal(replayed.trajectory[:, 0], inversion.latents.flip(0))


def test_a_recorded_inversion_of_an_uneven_model(sd):
    """Such a model amplifies rounding, which stays well below what the edit does."""
    inversion = invert(sd, input_picture(), CAT, "direct", steps=STEPS, size=32, **QUIET)
    recording, edit = sd.record(CAT, inversion=inversion, **QUIET), Swap(sd.tokenizer, [CAT, DOG])
    together = sd.generate([CAT, DOG], inversion=inversion, edit=edit, **QUIET)
    unedited = sd.generate([CAT, DOG], inversion=inversion, **QUIET)
    replayed = sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET)
    assert difference(replayed.latents, together.latents) < difference(together.latents[1], unedited.latents[1]) / 10


def test_the_source_does_not_change_with_the_batch(sd, recording):
    few = sd.generate([CAT, DOG], recording=recording, **QUIET)
    many = sd.generate([CAT, DOG, NIGHT, CAT, DOG], recording=recording, **QUIET)
    assert torch.equal(few.trajectory[:, 0], many.trajectory[:, 0])


def test_only_the_targets_are_run(sd, recording, monkeypatch):
    rows, forward = [], sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward", lambda z, *rest, **named: rows.append(len(z)) or forward(z, *rest, **named))
    sd.generate([CAT, DOG, NIGHT], recording=recording, edit=Add(sd.tokenizer, [CAT, DOG, NIGHT]), **QUIET)
    assert rows == [4] * STEPS, "two targets, unconditional and conditional"
    rows.clear()
    sd.record(CAT, steps=2, **QUIET)
    assert rows == [2, 2]


def test_an_edit_sees_the_source_first(sd, recording):
    replayed, together = [], []
    for seen, options in ((replayed, {"recording": recording}), (together, {"steps": STEPS})):
        look = lambda attn, site, seen=seen: seen.append((site, attn.clone())) or attn  # noqa: E731
        sd.generate([CAT, DOG], edit=look, **options, **QUIET)
    assert [site for site, _ in replayed] == [site for site, _ in together] and replayed
    assert all(difference(ours, theirs) < ROUNDING for (_, ours), (_, theirs) in zip(replayed, together))


class Everything(AttentionEdit):
    def wants(self, site) -> bool:
        return True


def test_an_edit_that_asks_for_maps_that_were_not_recorded_is_refused(sd):
    """Self-attention of the finest layers, 32 x 32 here, is too large to record."""
    recording = sd.record(CAT, steps=1, size=128, **QUIET)
    with pytest.raises(RequestError, match=r"self-attention maps of 32 x 32, which a recording does not hold: .*wants\(site\)") as error:
        sd.generate([CAT, DOG], recording=recording, edit=Everything(), **QUIET)
    assert "\n" not in str(error.value)
    edit = Swap(sd.tokenizer, [CAT, DOG], 1.0, 1.0)
    together = sd.generate([CAT, DOG], steps=1, size=128, edit=edit, **QUIET)
    assert difference(sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET).latents, together.latents) < ROUNDING
    sd.generate([CAT, DOG], recording=recording, edit=lambda attn, site: attn, **QUIET)


class Brighter(AttentionEdit):
    """Adds to the latents of one row after the last step."""

    def __init__(self, row: int):
        self.row = row

    def at(self, step, steps):
        self.last = step == steps - 1
        return self

    def after_step(self, latents):
        return latents + self.last * (torch.arange(len(latents)) == self.row)[:, None, None, None]


def with_row(attn, row: int, factor: float):
    return torch.cat([attn[:row], attn[row : row + 1] * factor, attn[row + 1 :]])


def test_an_edit_that_changes_the_source_is_refused(sd, recording):
    """The recording has another picture than the one that its edited maps would make."""

    def in_place(attn, site):
        return attn.mul_(0.5)

    for edit in (in_place, lambda attn, site: with_row(attn, 0, 0.99), Brighter(0)):
        with pytest.raises(RequestError, match="the edit changes the source, which is already recorded") as error:
            sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET)
        assert "\n" not in str(error.value)
    with pytest.raises(FloatingPointError):
        sd.generate([CAT, DOG], recording=recording, edit=lambda attn, site: attn * torch.nan, **QUIET)
    for edit in (lambda attn, site: with_row(attn, 1, 0.5), Brighter(1)):
        together = sd.generate([CAT, DOG], steps=STEPS, edit=edit, **QUIET)
        replayed = sd.generate([CAT, DOG], recording=recording, edit=edit, **QUIET)
        assert difference(replayed.latents, together.latents) < ROUNDING


def test_a_result_holds_no_tensor_of_the_recording(sd, recording):
    before = recording.latents.clone()
    result = sd.generate([CAT, DOG], recording=recording, **QUIET)
    for tensor in (result.start, result.latents, result.trajectory, result.pred_x0):
        tensor.zero_()
    assert torch.equal(recording.latents, before)


# ---------------------------------------------------------------- its size


def test_the_size_is_printed_before_the_run(sd, recording, monkeypatch, capsys):
    assert list(recording.maps) == sd.unet.sites(16, 16), "all layers are low-resolution here"
    size = sum(maps.numel() * maps.element_size() for maps in recording.maps.values())
    assert map_bytes(sd.unet, 16, 16, STEPS, sd.tokenizer.context) == size
    assert {maps.dtype for maps in recording.maps.values()} == {torch.float16}
    monkeypatch.setattr(StableDiffusion, "generate", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sd.record(CAT, steps=STEPS)
    assert f"{size / 1e6:,.0f} MB" in capsys.readouterr().err


def test_what_cannot_be_recorded_is_refused_before_anything_is_printed(sd1, inversions, capsys):
    for options, message in (({"inversion": inversions["sd1", "ddim"]}, "source prompt"), ({"steps": 0}, "steps is 0"), ({"seed": -1}, "seed is -1")):
        with pytest.raises(RequestError, match=message):
            sd1.ours.record(DOG, **options)
        assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- files


def test_a_saved_recording_is_loaded_without_loss(sd, recording, tmp_path):
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


def test_an_inversion_and_its_recording_through_files(sd1, inversions, tmp_path):
    """As on the command line: invert, record, edit, each from the file of the one before."""
    inversions["sd1", "direct"].save(tmp_path / "inversion.safetensors")
    inversion = Inversion.load(tmp_path / "inversion.safetensors")
    sd1.ours.record(CAT, inversion=inversion, **QUIET).save(tmp_path / "recording.safetensors")
    recording = Recording.load(tmp_path / "recording.safetensors")
    assert recording.cut == inversion.cut and repr(recording) == f"<Recording of {CAT!r}, 4 steps, guidance 7.5>"
    edit = Swap(sd1.ours.tokenizer, [CAT, DOG])
    from_file = sd1.ours.generate([CAT, DOG], recording=recording, edit=edit, **QUIET)
    together = sd1.ours.generate([CAT, DOG], inversion=inversions["sd1", "direct"], edit=edit, **QUIET)
    assert difference(from_file.latents, together.latents) < ROUNDING
    assert torch.equal(from_file.trajectory[:, 0], inversion.latents.flip(0)), "the source stays on the pivot"


def test_files_that_are_not_recordings_are_refused(recording, inversions, tmp_path):
    whole = tmp_path / "whole.safetensors"
    recording.save(whole)
    inversions["sd1", "ddim"].save(tmp_path / "inversion.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    tensors, values = load_file(whole), recording.to_file()[1]
    save_file(tensors, tmp_path / "bare.safetensors")
    save_file(tensors, tmp_path / "list.safetensors", {"recording": "[1]"})
    save_file(tensors, tmp_path / "sites.safetensors", {"recording": json.dumps(values | {"sites": [{"name": "mid"}]})})
    save_file(tensors, tmp_path / "steps.safetensors", {"recording": json.dumps(values | {"steps": STEPS + 1})})
    less = {name: tensor for name, tensor in tensors.items() if not name.startswith("maps.mid")}
    save_file(less, tmp_path / "less.safetensors", {"recording": json.dumps(values)})
    for name in ("inversion", "cut", "bare", "list", "sites", "steps", "less", "missing"):
        with pytest.raises(RequestError, match=f"{name}.safetensors") as error:
            Recording.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value) and "minip2p record" in str(error.value)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompts": [DOG, CAT]}, "source prompt is 'a red dog on the grass'"),
        ({"prompts": CAT}, "give a target"),
        ({"steps": STEPS + 1}, "number of steps is 6"),
        ({"guidance": 3.0}, "guidance is 3.0"),
        ({"negative": "snow"}, "negative prompt is 'snow'"),
        ({"negative": 0}, "negative prompt is 0"),
        ({"seed": 3}, "seed is 3, which has no effect, because the noise is that of the recording"),
        ({"latents": torch.zeros(1, 4, 16, 16)}, "recording and latents each bring"),
        ({"size": 32}, "size is 32"),
        ({"recording": "cat.safetensors"}, "Recording.load"),
        ({"inversion": "photo.safetensors"}, "inversion and recording each bring"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(sd, recording, options, message):
    with pytest.raises(RequestError, match=message) as error:
        sd.generate(**({"prompts": [CAT, DOG], "recording": recording} | options | QUIET))
    assert "\n" not in str(error.value)


def test_the_recording_s_own_settings_may_be_repeated(sd, recording):
    repeated = sd.generate([CAT, DOG], recording=recording, steps=STEPS, guidance=7.5, size=64, seed=0, negative="", **QUIET)
    assert torch.equal(repeated.latents, sd.generate([CAT, DOG], recording=recording, **QUIET).latents)


SETTINGS = [  # that no weight tells
    ("unet", "heads", (4, 4, 4)),
    ("unet", "norm_eps", 1e-2),
    ("unet", "sample_size", 32),
    ("text_encoder", "hidden_act", "gelu"),
    ("vae", "scaling_factor", 0.5),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_model_is_refused(sd1, dtype):
    own, other = (StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype) for _ in range(2))
    recording = own.record(CAT, steps=1, **QUIET)
    other.generate([CAT, DOG], recording=recording, **QUIET)
    for network in (other.unet, other.text_encoder, other.vae):
        weight = next(w for w in network.parameters() if w.ndim > 1)
        before = weight.clone()
        weight.view(-1)[7] += 0.001 * weight.norm()
        with pytest.raises(RequestError, match="recording was made by a model with other weights"):
            other.generate([CAT, DOG], recording=recording, **QUIET)
        weight.copy_(before)
    for change in ({"beta_end": 0.013}, {"prediction_type": "v_prediction"}, {"set_alpha_to_one": True}, {"steps_offset": 0}):
        changed = dataclasses.replace(other, schedule=dataclasses.replace(other.schedule, **change))
        with pytest.raises(RequestError, match="other weights"):
            changed.generate([CAT, DOG], recording=recording, **QUIET)
    vocabulary = CLIPTokenizer(TOY / "tokenizer", own.tokenizer.context)
    with pytest.raises(RequestError, match="other weights or settings"):
        dataclasses.replace(other, tokenizer=vocabulary).generate([CAT, DOG], recording=recording, **QUIET)
    for network, name, value in SETTINGS:
        network = getattr(other, network)
        before, network.config = network.config, dataclasses.replace(network.config, **{name: value})
        if name == "sample_size":  # only what `size` is if it is left out
            other.generate([CAT, DOG], recording=recording, **QUIET)
        else:
            with pytest.raises(RequestError, match="other weights or settings"):
                other.generate([CAT, DOG], recording=recording, **QUIET)
        network.config = before
    half = StableDiffusion.load(sd1.folder, device="cpu", dtype="bfloat16" if dtype == "float32" else "float32")
    assert half.generate([CAT, DOG], recording=recording, **QUIET).latents.isfinite().all(), "rounding is not another model"
