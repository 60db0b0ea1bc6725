"""The interface of edits: what an AttentionEdit is asked, what it is shown, and which layers are low-resolution."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minip2p
from minip2p import AttentionEdit, Edit, LocalBlend, RequestError, Reweight, Site, Swap
from minip2p.attention_store import AttentionStore, Maps, finest_low_resolution
from minip2p.compose import Chain, FunctionEdit, as_edit
from minip2p.unet import UNet, UNetConfig
from tests.pipelines import difference

STEPS, T = 2, 77
PROMPTS = ["a red cat on the grass", "a red dog on the grass"]
SMALL = {"steps": STEPS, "size": 64, "progress": False}  # latents of 16 x 16, where every layer is low-resolution
LARGE = {"steps": 1, "size": 128, "progress": False}  # latents of 32 x 32, whose finest layers are not low-resolution


@pytest.fixture(scope="module")
def sd(sharp1) -> minip2p.StableDiffusion:
    return sharp1.ours


@pytest.fixture(scope="module")
def plain(sd) -> Tensor:
    return sd.generate(PROMPTS, **SMALL).latents


# ---------------------------------------------------------------- three ways to write an edit


class Sharpen(AttentionEdit):
    """A user's edit: the attention of every prompt's third token to the power of 2."""

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        if site.kind == "self":
            return attn
        attn = attn.clone()
        attn[..., 3] **= 2
        return attn


class Duck:
    """The four methods of the interface without its base class; it notes what it is asked."""

    def __init__(self):
        self.asked, self.step = [], None

    def at(self, step: int, steps: int) -> "Duck":
        self.asked.append(("at", step, steps))
        return self

    def wants(self, site: Site) -> bool:
        self.asked.append(("wants", site))
        return site.kind == "cross" and site.place == "mid"

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        self.asked.append(("call", site))
        return attn * 0.5

    def after_step(self, latents: Tensor) -> Tensor:
        self.asked.append(("after_step", tuple(latents.shape)))
        return latents + 0.01


def test_a_subclass_with_only_call_is_an_edit(sd, plain):
    edited = sd.generate(PROMPTS, edit=Sharpen(), **SMALL).latents
    assert difference(edited, plain) > 1e-3
    function = sd.generate(PROMPTS, edit=Sharpen().__call__, **SMALL).latents
    assert torch.equal(edited, function)


def test_an_object_with_the_four_methods_is_an_edit(sd, plain):
    duck, sites = Duck(), sd.unet.sites(16, 16)
    result = sd.generate(PROMPTS, edit=duck, **SMALL)
    mid = next(site for site in sites if site.kind == "cross" and site.place == "mid")
    per_step = [e for site in sites for e in [("wants", site)] + [("call", site)] * (site == mid)] + [
        ("after_step", (2, 4, 16, 16))
    ]
    assert duck.asked == [e for step in range(STEPS) for e in [("at", step, STEPS), *per_step]]

    class Halve(AttentionEdit):
        wants = Duck.wants
        asked = []

        def __call__(self, attn, site):
            return attn * 0.5

        def after_step(self, latents):
            return latents + 0.01

    assert torch.equal(result.latents, sd.generate(PROMPTS, edit=Halve(), **SMALL).latents)
    assert difference(result.latents, plain) > 1e-3


def test_an_identity_edit_equals_no_edit(sd, plain):
    for edit in (AttentionEdit(), lambda attn, site: attn, AttentionStore(), AttentionStore(full=True)):
        assert difference(sd.generate(PROMPTS, edit=edit, **SMALL).latents, plain) < 1e-5


def test_a_function_is_asked_only_where_maps_are_small_or_of_words(sd):
    """A map of all pixels of a large layer can take a gigabyte at Stable Diffusion's size."""
    seen = []
    sd.generate(PROMPTS, edit=lambda attn, site: seen.append((site, attn.shape)) or attn, **LARGE)
    sites = [site for site in sd.unet.sites(32, 32) if site.kind == "cross" or site.height <= 16]
    assert [site for site, _ in seen] == sites and len(sites) < len(sd.unet.sites(32, 32))
    assert all(shape[0] == 2 and shape[2] == site.height * site.width for site, shape in seen)
    assert all(shape[3] == (T if site.kind == "cross" else site.height * site.width) for site, shape in seen)


@pytest.mark.parametrize("edit", ["swap", 5, [lambda attn, site: attn]], ids=["text", "number", "list"])
def test_what_is_no_edit_is_refused(sd, edit):
    with pytest.raises(RequestError, match="give a Swap, Add or Reweight, or a function"):
        sd.generate(PROMPTS, edit=edit, **SMALL)


class Forgetful:
    def at(self, step, steps):
        self.step = step

    def __call__(self, attn, site):
        return attn / 2


class ForgetfulEdit(Forgetful, AttentionEdit):
    pass


@pytest.mark.parametrize("returned", [None, "half", "short", "double"])
def test_latents_that_an_edit_spoils_are_one_line(sd, returned):
    class Spoiling(AttentionEdit):
        def after_step(self, latents):
            return {None: None, "half": latents.half(), "short": latents[1:], "double": latents.double()}[returned]

    recording = sd.record(PROMPTS[0], **SMALL)
    for options in (SMALL, {"recording": recording, "progress": False}, SMALL | {"record": True}):
        with pytest.raises(RequestError, match=r"returned .* from after_step\(latents\), .* return latents of the same shape") as error:
            sd.generate(PROMPTS, edit=Spoiling(), **options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("edit", [Forgetful(), ForgetfulEdit()], ids=["an object", "an edit"])
@pytest.mark.parametrize("record", [False, True])
def test_an_edit_whose_at_returns_nothing_is_refused(sd, edit, record):
    """Generation would otherwise run without it."""
    with pytest.raises(RequestError, match=r"at\(step, steps\) returned None: return the edit"):
        sd.generate(PROMPTS, edit=edit, record=record, **SMALL)


def test_several_edits_are_asked_in_order():
    site = Site("x.attn2", "cross", "mid", 1, 1)
    both = Chain([FunctionEdit(lambda attn, site: attn + 1), FunctionEdit(lambda attn, site: attn * 2)])
    assert both.wants(site) and both(torch.ones(1), site) == 4
    assert not Chain([]).wants(site) and not as_edit(None).wants(site)


# ---------------------------------------------------------------- what an edit is asked


class Asked(AttentionEdit):
    """Wants cross-attention in the middle block alone; counts questions and answers."""

    def __init__(self):
        self.wanted, self.called = [], []

    def wants(self, site: Site) -> bool:
        self.wanted.append(site)
        return site.kind == "cross" and site.place == "mid"

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        self.called.append(site)
        return attn * 2


@pytest.mark.parametrize("record", [False, True, "all"])
def test_wants_is_asked_once_per_layer_and_step_and_its_answer_holds(sd, record):
    """A layer that the edit does not want stays as it is, even if its maps are computed for the record."""
    edit = Asked()
    result = sd.generate(PROMPTS, edit=edit, record=record, **SMALL)
    sites = sd.unet.sites(16, 16)
    assert edit.wanted == sites * STEPS
    assert edit.called == [site for site in sites if site.kind == "cross" and site.place == "mid"] * STEPS
    if record:
        for site, maps in result.maps.by_site.items():
            share = 2.0 if site.place == "mid" else 1.0
            torch.testing.assert_close(maps.float().sum(-1), torch.full(maps.shape[:-1], share), rtol=0, atol=4e-3)
    if record == "all":
        for site, maps in result.own_maps.by_site.items():
            torch.testing.assert_close(maps.float().sum(-1), torch.ones(maps.shape[:-1]), rtol=0, atol=4e-3)


def test_only_maps_of_the_conditional_half_are_materialised(sd, monkeypatch):
    rows, softmax = [], Tensor.softmax
    latents, text = torch.randn(4, 4, 16, 16), sd.encode_text(["", "", *PROMPTS])
    monkeypatch.setattr(Tensor, "softmax", lambda tensor, dim: rows.append(len(tensor)) or softmax(tensor, dim))
    seen = []
    with torch.no_grad():
        both = sd.unet(latents, 500, text, edit=lambda attn, site: seen.append(len(attn)) or attn * 0, n_uncond=2)
        assert set(rows) == set(seen) == {2} and len(rows) == len(sd.unet.sites(16, 16))
        untouched = sd.unet(latents, 500, text)
    assert difference(both[:2], untouched[:2]) < 1e-5, "the edit of the other half does not reach the unconditional half"
    assert difference(both[2:], untouched[2:]) > 1e-2


def test_an_edit_sees_the_prompts_in_order_with_and_without_guidance(sd):
    seen = {}
    for guidance in (7.5, 1):
        maps = seen[guidance] = []
        sd.generate(PROMPTS, edit=lambda attn, site: maps.append(attn) or attn, guidance=guidance, **SMALL)
        assert len(maps) == STEPS * len(sd.unet.sites(16, 16))
    for guided, alone in zip(seen[7.5][: len(sd.unet.sites(16, 16))], seen[1]):  # the first step: the same latents
        assert guided.shape[0] == 2 and difference(guided, alone) < 1e-4


def test_what_an_edit_returns_is_what_is_multiplied(sd, plain):
    def blind(attn: Tensor, site: Site) -> Tensor:
        return attn * 0 if site.kind == "cross" else attn

    latents = sd.generate(PROMPTS, edit=blind, **SMALL).latents
    assert difference(latents, plain) > 1e-2
    assert difference(latents[0], latents[1]) < 1e-5, "the prompts have no effect without cross-attention"
    negative = sd.generate(PROMPTS, edit=blind, negative=PROMPTS[0], **SMALL).latents
    assert difference(latents, negative) > 1e-2, "the unconditional half still attends to its text"


def test_seven_frames_lie_between_generate_and_the_maps(sd, monkeypatch):
    frames, call = [], Edit.__call__

    def look(edit, attn, site):
        package = str(Path(minip2p.__file__).parent)
        frames.append([frame.function for frame in inspect.stack(context=0)[1:] if frame.filename.startswith(package)])
        return call(edit, attn, site)

    monkeypatch.setattr(Edit, "__call__", look)
    sd.generate(PROMPTS, edit=Swap(sd.tokenizer, PROMPTS, 1.0, 1.0), steps=1, progress=False)
    assert frames and max(map(len, frames)) + 1 <= 7, frames[0]  # one more for Edit.__call__ itself


# ---------------------------------------------------------------- what an edit returns

WRONG = {
    "one row": (lambda attn: attn[:1], r"\(1, 2, \d+, 77\) in torch.float32"),
    "a mean over heads": (lambda attn: attn.mean(1, keepdim=True), r"\(2, 1, \d+, 77\) in torch.float32"),
    "nothing": (lambda attn: None, "a NoneType"),
    "half": (lambda attn: attn.half(), r"\(2, 2, \d+, 77\) in torch.float16"),
    "numpy": (lambda attn: attn.numpy(), "a ndarray"),
}


@pytest.mark.parametrize("change, returned", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("record", [False, "all"])
def test_wrong_maps_are_one_line_that_names_the_layer_and_both_shapes(sd, change, returned, record):
    wrong = lambda attn, site: attn if site.kind == "self" else change(attn)  # noqa: E731
    with pytest.raises(RequestError) as error:
        sd.generate(PROMPTS, edit=wrong, record=record, **SMALL)
    layer = r"down_blocks\.0\.attentions\.0\.transformer_blocks\.0\.attn2"
    assert "\n" not in str(error.value)
    error.match(rf"returned {returned} at {layer}, where it received \(2, 2, 256, 77\) in torch.float32: return maps of the same")


def test_maps_are_float32_whatever_the_model_is(sd1):
    half = minip2p.StableDiffusion.load(sd1.folder, device="cpu", dtype="bfloat16")
    seen = set()
    half.generate(PROMPTS, edit=lambda attn, site: seen.add(attn.dtype) or attn, steps=1, size=32, progress=False)
    assert seen == {torch.float32}


# ---------------------------------------------------------------- low-resolution layers


SD2 = UNetConfig(
    block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=1024, heads=(5, 10, 20, 20), use_linear_projection=True
)


@pytest.fixture(scope="module")
def real_unet() -> UNet:
    with torch.device("meta"):
        return UNet(SD2)


def constant_maps(site: Site, value: float, rows: int) -> Tensor:
    """(rows, P, T), or (steps, rows, P, T) halves, all of one value; no memory."""
    return torch.tensor(value).expand(rows, site.height * site.width, T)


@pytest.mark.parametrize(
    "size, finest", [((64, 64), (16, 16)), ((96, 96), (24, 24)), ((128, 128), (32, 32)), ((64, 96), (16, 24))]
)
def test_edits_blend_and_word_maps_read_the_same_layers(sd, real_unet, size, finest):
    """Stable Diffusion 2 at 512, 768 and 1024 pixels: a quarter of the latent's side, and the middle block below it."""
    sites = real_unet.sites(*size)
    cross = [site for site in sites if site.kind == "cross"]
    assert len(sites) == 32 and len(cross) == 16
    middle = finest[0] // 2, finest[1] // 2
    low = [site for site in sites if (site.height, site.width) in (finest, middle)]
    assert [site for site in sites if site.low_resolution] == low and len(low) == 12

    swap = Swap(sd.tokenizer, PROMPTS, 0.0, 1.0).at(0, STEPS)
    assert [site for site in sites if swap.wants(site)] == [site for site in low if site.kind == "self"], "six layers"

    five = [site for site in cross if (site.height, site.width) == finest]
    assert finest_low_resolution(sites) == finest_low_resolution(cross) == five and len(five) == 5
    maps = Maps(
        sd.tokenizer, tuple(PROMPTS), {site: constant_maps(site, 0.5 if site in five else 9.0, 2)[None] for site in cross}
    )
    assert maps.word("cat", mean=True).shape == finest and (maps.word("cat") == 0.5).all()
    assert maps.layers() == f"5 layers of {finest[0]} x {finest[1]}"

    blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"]).prepare("cpu").at(0, STEPS)
    assert [site for site in cross if blend.wants(site)] == [site for site in low if site.kind == "cross"]
    for site in cross:
        if blend.wants(site):  # the five light up on the left, the middle block on the right
            columns = torch.arange(site.width).expand(site.height, site.width).flatten()
            lit = (columns < site.width // 2 - 1) == (site in five)
            blend(lit.float()[None, None, :, None].expand(2, 1, -1, T), site)
    mask = blend.update_mask(size)
    assert torch.equal(mask, (torch.arange(size[1]) < size[1] // 2).float().expand(1, 1, *size))


def test_small_latents_and_few_levels_have_low_resolution_layers_too(real_unet):
    at_256 = [site for site in real_unet.sites(32, 32) if site.low_resolution]
    assert {site.height for site in at_256} == {16, 8, 4} and {s.height for s in finest_low_resolution(at_256)} == {16}
    with torch.device("meta"):
        one_level = UNet(
            UNetConfig(block_out_channels=(32, 32), down_attention=(True, False), mid_block=False, cross_attention_dim=8)
        )
    sites = one_level.sites(48, 48)
    assert {site.height for site in sites} == {48} and all(site.low_resolution for site in sites), "the coarsest there are"


def test_a_site_tells_the_size_of_the_maps(sd):
    sites = sd.unet.sites(32, 48)
    assert {(site.height, site.width) for site in sites} == {(32, 48), (16, 24), (8, 12)}
    assert {site.place for site in sites} == {"down", "mid", "up"} and len(set(sites)) == len(sites)
    seen = []

    class Look(AttentionEdit):
        def wants(self, site):
            seen.append(site)
            return False

    sd.unet(torch.zeros(1, 4, 32, 48), 1, sd.encode_text("a cat"), edit=Look())
    assert seen == sites


def test_a_reweighting_is_asked_at_every_cross_attention_layer(sd, real_unet):
    edit = Reweight(sd.tokenizer, [PROMPTS[0]] * 2, {"cat": 2.0}, self_replace_steps=0).at(0, STEPS)
    assert [site for site in real_unet.sites(64, 64) if edit.wants(site)] == [
        site for site in real_unet.sites(64, 64) if site.kind == "cross"
    ]


def test_a_new_edit_is_a_few_lines(sd):
    """As a reader would write it from the docstrings: one word's attention raised to a power, rows summing to one again."""

    class Sharpened(AttentionEdit):
        def __init__(self, positions, power):
            self.positions, self.power = positions, power

        def wants(self, site):
            return site.kind == "cross"

        def __call__(self, attn, site):
            attn = attn.clone()
            attn[..., self.positions] **= self.power
            return attn / attn.sum(-1, keepdim=True)

    positions = sd.tokenizer.positions("a cat", "cat")
    options = {"steps": 2, "record": True, "progress": False}
    plain, sharper = (sd.generate("a cat", edit=Sharpened(positions, power), **options) for power in (1.0, 0.5))
    assert sharper.maps.word("cat").mean() > 1.5 * plain.maps.word("cat").mean()
    assert torch.allclose(sharper.maps.tokens().sum(-1), torch.ones(()), atol=0.01)
