"""Swap, Add and Reweight: against the published formulas on diffusers' UNet, and what must hold whatever the prompts are."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import minip2p
from minip2p import Add, LocalBlend, PromptError, Reweight, Swap
from minip2p.attention import Site
from minip2p.edits import Edit
from minip2p.maps import Seam
from tests import restatement
from tests.pipelines import difference
from tests.restatement import Blending, Recipe, marks

T, STEPS = 77, 6
SOURCE, SWAPPED, ADDED = "a red cat on the grass", "a red dog on the grass", "a red cat on the grass at night"
PROMPTS = [SOURCE, SWAPPED, ADDED]
CROSS = Site("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "cross", "down", 16, 16)
SELF = Site("down_blocks.0.attentions.0.transformer_blocks.0.attn1", "self", "down", 16, 16)


@dataclass(frozen=True)
class Model:
    reference: object
    ours: minip2p.StableDiffusion

    @property
    def tokenizer(self):
        return self.ours.tokenizer

    def generate(self, prompts, **options) -> Tensor:
        return self.run(prompts, **options).latents

    def run(self, prompts, **options):
        return self.ours.generate(prompts, **{"steps": STEPS, "progress": False} | options)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    """Attention loud enough that every edit shows (see sharp_pipeline)."""
    folders = {flavour: tmp_path_factory.mktemp(flavour) for flavour in ("sd1", "sd2")}
    references = {flavour: restatement.sharp_pipeline(folder, flavour) for flavour, folder in folders.items()}
    return {
        flavour: Model(references[flavour], minip2p.StableDiffusion.load(folders[flavour], device="cpu")) for flavour in folders
    }


@pytest.fixture(scope="module")
def model(models) -> Model:
    return models["sd1"]


@pytest.fixture(scope="module")
def plain(model) -> Tensor:
    """The latents of PROMPTS without an edit."""
    return model.generate(PROMPTS)


# ---------------------------------------------------------------- against the published formulas


@dataclass(frozen=True)
class Case:
    """One edit, said in the package's words; the test says the same in the restatement's."""

    prompts: list[str]
    kind: str  # "swap" or "add"
    cross: object = 0.8
    own: object = 0.4
    weights: dict | None = None
    blend: dict | None = None
    size: tuple[int, int] = (16, 16)
    flavour: str = "sd1"


CASES = {
    "swap": Case([SOURCE, SWAPPED], "swap"),
    "swap, v-prediction": Case([SOURCE, SWAPPED], "swap", flavour="sd2"),
    "swap, not square": Case([SOURCE, SWAPPED], "swap", own=1.0, size=(16, 24)),
    "swap, windows a word": Case(
        [SOURCE, SWAPPED], "swap", cross={"default_": 0.9, "dog": (0.2, 0.5), "grass": 0.35}, own=(0.2, 0.7)
    ),
    "swap, windows a word, no default": Case([SOURCE, SWAPPED], "swap", cross={"dog": (0.5, 1)}),
    "swap, one to two tokens and two to one": Case(
        ["a red river on the grass", "a red cat on the grass", "a bicycle river on the grass"], "swap"
    ),
    "add, same count": Case(["a red cat on the grass", "a cat on the red grass"], "add"),
    "add": Case(["a cat on the grass", "a cat on the grass at night"], "add", cross=0.5, own=0.2),
    "add in front, and drop": Case(["a cat on the grass", "a child's drawing of a cat on the grass", "a cat"], "add"),
    "weights on the source's maps": Case([SOURCE, SOURCE], "add", weights={"cat": -2.0, "grass": 4.0}),
    "weights on a swap": Case([SOURCE, SWAPPED], "swap", weights={"dog": 3.0}, cross=(0.1, 0.8)),
    "several targets": Case([SOURCE, SWAPPED, "a blue cat on the grass"], "swap", weights={"blue": 2.0}),
    "blend": Case([SOURCE, SWAPPED], "swap", blend={"words": ["cat", "dog"], "threshold": 0.7}),
    "blend, several, not square": Case(
        [*PROMPTS], "add", blend={"words": ["red", "night"], "exclude": ["grass"], "threshold": 0.6}, size=(16, 24)
    ),
}


def windows(tokenizer, target: str, given) -> list[tuple[int, int]]:
    """A window in steps for each token of a target."""

    def steps(value) -> tuple[int, int]:
        first, last = value if isinstance(value, tuple) else (0, value)
        return int(first * STEPS), int(last * STEPS)

    table = given if isinstance(given, dict) else {"default_": given}
    row = [steps(table.get("default_", 1.0))] * T
    for word, positions in restatement.words_of(tokenizer, target):
        for position in positions if word in table else []:
            row[position] = steps(table[word])
    return row


def recipe(case: Case, tokenizer) -> Recipe:
    source, *targets = case.prompts
    if case.kind == "swap":
        change = [restatement.replace_with(restatement.replacement(tokenizer, source, target)) for target in targets]
    else:
        change = [restatement.refine_with(*restatement.refinement(tokenizer, source, target)) for target in targets]
    equalizer = [
        1 + sum((c - 1) * marks(tokenizer, target, word) for word, c in (case.weights or {}).items()) for target in targets
    ]
    blending = None
    if case.blend:
        inside, outside = (
            torch.stack([marks(tokenizer, prompt, *case.blend.get(key, [])) for prompt in case.prompts])
            for key in ("words", "exclude")
        )
        blending = Blending(inside, outside, case.size, first=int(0.2 * STEPS), threshold=case.blend["threshold"])
    first, last = case.own if isinstance(case.own, tuple) else (0, case.own)
    own = int(first * STEPS), int(last * STEPS)
    return Recipe(change, equalizer, [windows(tokenizer, target, case.cross) for target in targets], own, blending)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_edits_equal_the_published_formulas(models, case):
    model = models[case.flavour]
    start = torch.randn(1, 4, *case.size, generator=torch.Generator().manual_seed(1))
    theirs, masks = restatement.generate(
        model.reference, case.prompts, recipe(case, model.reference.tokenizer), start, STEPS, 7.5
    )
    blend = LocalBlend(model.tokenizer, case.prompts, **case.blend) if case.blend else None
    edit = {"swap": Swap, "add": Add}[case.kind](model.tokenizer, case.prompts, case.cross, case.own, blend)
    edit = Reweight(model.tokenizer, case.prompts, case.weights, base=edit) if case.weights else edit
    result = model.run(case.prompts, edit=edit, latents=start)
    for ours, reference in zip(result.latents, theirs):
        assert difference(ours, reference) <= 1e-4
    if case.blend:
        assert torch.equal(result.masks[:, :, 0], torch.stack(masks))
        assert 0 < result.masks.mean() < 1, "a mask of everything or nothing tests little"


# ---------------------------------------------------------------- what must hold of every edit


def test_an_identity_edit_equals_no_edit(model, plain):
    prompts = [SOURCE, SOURCE, SOURCE]
    for edit in (
        Swap(model.tokenizer, prompts, 1.0, 1.0),
        Add(model.tokenizer, prompts, 0.8, 0.4),
        Reweight(model.tokenizer, prompts, {"cat": 1}),
    ):
        latents = model.generate(prompts, edit=edit)
        assert difference(latents, plain[:1].expand_as(latents)) < 1e-5


def test_an_edit_changes_its_targets_and_never_the_source(model, plain):
    cat, red = {"cat": 3.0}, {"red": -1.0}
    for prompts, edit in (
        ([SOURCE, SWAPPED], Swap(model.tokenizer, [SOURCE, SWAPPED])),
        (PROMPTS, Add(model.tokenizer, PROMPTS, 1.0, 1.0, LocalBlend(model.tokenizer, PROMPTS, ["cat", "dog"]))),
        (PROMPTS, Reweight(model.tokenizer, PROMPTS, red, base=Add(model.tokenizer, PROMPTS))),
        ([SOURCE, SOURCE], Reweight(model.tokenizer, [SOURCE, SOURCE], cat)),
    ):
        latents = model.generate(prompts, edit=edit)
        assert difference(latents[0], plain[0]) < 1e-5
        for prompt, target in zip(prompts[1:], latents[1:]):
            assert difference(target, plain[PROMPTS.index(prompt)]) > 1e-2


@pytest.mark.parametrize("window", [0, 0.0, (0, 0), (0.5, 0.5), (1, 1), 0.1, {"default_": 0}, {"default_": 0, "dog": (0.4, 0.4)}])
def test_windows_without_a_step_change_nothing(model, plain, window):
    prompts = PROMPTS[:2]
    edit = Reweight(model.tokenizer, prompts, {"dog": 5.0}, base=Swap(model.tokenizer, prompts, window, 0.0))
    assert [edit.at(step, STEPS).wants(CROSS) for step in range(STEPS)] == [False] * STEPS
    if window == 0.1:  # one picture will do
        assert difference(model.generate(prompts, edit=edit), plain[:2]) < 1e-5


def test_several_targets_equal_each_alone(model):
    prompts = [SOURCE, SWAPPED, ADDED, SOURCE]
    windows = {"default_": 0.8, "red": 0.4}

    def edit(prompts: list[str]) -> Edit:
        blend = LocalBlend(model.tokenizer, prompts, ["cat", "dog"][: 1 + ("dog" in " ".join(prompts))])
        return Reweight(model.tokenizer, prompts, {"red": 2.0}, base=Add(model.tokenizer, prompts, windows, 0.4, blend))

    together = model.generate(prompts, edit=edit(prompts))
    for row in (1, 2, 3):
        alone = model.generate([SOURCE, prompts[row]], edit=edit([SOURCE, prompts[row]]))
        assert difference(together[row], alone[1]) < 1e-5


# ---------------------------------------------------------------- the formula itself, on maps made up here


def maps_of(prompts: list[str], pixels: int = 256, tokens: int = T) -> Tensor:
    return torch.rand(len(prompts), 2, pixels, tokens, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_full_windows_give_the_source_s_maps(model):
    prompts = [SOURCE, SWAPPED]
    edit = Swap(model.tokenizer, prompts, 1.0, 1.0).at(STEPS - 1, STEPS)
    for site, tokens in ((CROSS, T), (SELF, 256)):
        maps = maps_of(prompts, tokens=tokens)
        assert torch.equal(edit(maps, site), maps[:1].expand_as(maps))


def test_maps_are_not_written_to_and_the_rest_of_the_target_is_its_own(model):
    edit = Reweight(model.tokenizer, PROMPTS, {"dog": 0.5}, base=Add(model.tokenizer, PROMPTS, {"default_": 1, "dog": 0.5}, 1.0))
    for step, site, tokens in ((0, CROSS, T), (STEPS - 1, CROSS, T), (0, SELF, 256)):
        maps = maps_of(PROMPTS, tokens=tokens)
        before = maps.clone()
        after = edit.at(step, STEPS)(maps, site)
        assert torch.equal(maps, before) and not torch.equal(after, before)
        assert after.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()
        if site is CROSS:  # "dog" (token 3) is new: its own map, halved inside its window; "night" (8) is new as well
            assert torch.equal(after[1, ..., 3], before[1, ..., 3] * (0.5 if step == 0 else 1))
            assert torch.equal(after[2, ..., 7:9], before[2, ..., 7:9]) and torch.equal(after[2, ..., :7], before[0, ..., :7])


def test_gradients_reach_the_text_through_an_edit(model):
    prompts = [SOURCE, SWAPPED]
    edit = Swap(model.tokenizer, prompts, blend=LocalBlend(model.tokenizer, prompts, ["cat", "dog"]))
    text = model.ours.encode_text(prompts).detach().requires_grad_()
    z = model.ours.noise(0).expand(2, -1, -1, -1)
    seam = Seam(edit.at(0, STEPS), [CROSS], rows=2)
    for handed in (edit.at(0, STEPS), seam):
        (gradient,) = torch.autograd.grad(model.ours.unet(z, 500, text, edit=handed)[1].square().sum(), text)
        # The target's picture hangs on the source's text through its maps, on its own through its values.
        assert gradient.isfinite().all() and all(row.abs().sum() > 0 for row in gradient)
    assert not seam.notes[CROSS].requires_grad


def test_weight_nought_removes_exactly_that_column(model):
    prompts = [SOURCE, "a red bicycle on the grass"]
    edit = Reweight(model.tokenizer, prompts, {"bicycle": 0}, base=Swap(model.tokenizer, prompts))
    maps = maps_of(prompts)
    without, with_weight = Swap(model.tokenizer, prompts).at(0, STEPS)(maps, CROSS), edit.at(0, STEPS)(maps, CROSS)
    assert not with_weight[1, ..., 3:5].any()
    rest = [token for token in range(T) if token not in (3, 4)]
    assert torch.equal(with_weight[..., rest], without[..., rest]) and without[1, ..., 3:5].min() > 0


def test_weights_stack_and_mean_every_place_of_a_word(model):
    prompts = ["a cat on a red cat", "a cat on a red cat", "a dog on a bicycle"]
    edit = Reweight(
        model.tokenizer, prompts, {"a": 2.0, "red cat": -1, "cat": 3}, cross_replace_steps=(0.5, 1), self_replace_steps=(0.2, 0.3)
    )
    assert edit.weights[:, :9].tolist() == [[1, 2, 3, 1, 2, -1, 3, 1, 1], [1, 2, 1, 1, 2, 1, 1, 1, 1]]
    assert edit.self_window == (0.2, 0.3) and (edit.cross_window == torch.tensor([0.5, 1.0])).all()
    again = Reweight(model.tokenizer, prompts, {"bicycle": 5}, base=edit)
    assert again.weights[1, :9].tolist() == [1, 2, 1, 1, 2, 5, 5, 1, 1] and torch.equal(again.weights[0], edit.weights[0])
    assert again.self_window == (0.2, 0.3) and torch.equal(again.cross_window, edit.cross_window)


@pytest.mark.parametrize("steps", [1, 6, 50, 100])
@pytest.mark.parametrize("window", [0, 1, 0.5, 0.8, 0.29, 0.999, (0.2, 0.8), (0.58, 1), (0.3, 0.3)])
def test_a_window_counts_steps_like_the_authors(model, window, steps):
    """[int(b0 n), int(b1 n)), for the cross maps as for the self maps."""
    first, last = window if isinstance(window, tuple) else (0, window)
    edit = Swap(model.tokenizer, [SOURCE, SWAPPED], window, window)
    inside = [int(first * steps) <= step < int(last * steps) for step in range(steps)]
    for site in (CROSS, SELF):
        assert [edit.at(step, steps).wants(site) for step in range(steps)] == inside


def test_windows_of_single_words(model):
    prompts = [SOURCE, "a red bicycle on the grass", "a bicycle next to a bicycle"]
    edit = Add(model.tokenizer, prompts, {"default_": 0.5, "bicycle": (0.25, 0.75), "the grass": 1})
    per_step = torch.stack([edit.at(step, 4).window[:, 0, 0] for step in range(4)]).int()  # (steps, N, T)
    default, bicycle, grass = [1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]
    for row, special in ((0, {3: bicycle, 4: bicycle, 6: grass, 7: grass}), (1, {p: bicycle for p in (2, 3, 7, 8)})):
        assert [per_step[:, row, token].tolist() for token in range(T)] == [special.get(token, default) for token in range(T)]
    everything = Add(model.tokenizer, prompts, {"bicycle": 0.5}).at(3, 4).window[:, 0, 0]
    assert everything[0].tolist() == [float(token not in (3, 4)) for token in range(T)], (
        "without default_ the rest is edited throughout"
    )


def test_self_attention_is_replaced_in_small_feature_maps_only(model):
    edit = Swap(model.tokenizer, [SOURCE, SWAPPED], 0.0, 1.0).at(0, STEPS)
    sizes = [(16, 16), (8, 32), (16, 17), (32, 32), (4, 6)]
    assert [edit.wants(Site("", "self", "down", *size)) for size in sizes] == [True, True, False, False, True]
    assert not edit.wants(Site("", "cross", "down", 16, 16))
    larger = [(24, 24, 2), (48, 48, 1), (12, 12, 3), (16, 24, 2), (32, 32, 1)]  # of latents 96 x 96, 64 x 96 and 64 x 64
    assert [edit.wants(Site("", "self", "down", *size)) for size in larger] == [True, False, True, True, False]


def test_a_site_knows_how_often_its_latent_was_halved(model):
    sites = model.ours.unet.sites(32, 48)
    assert {(site.height, site.width, site.level) for site in sites} == {(32, 48, 0), (16, 24, 1), (8, 12, 2)}
    assert {site.latent_pixels for site in sites} == {32 * 48}
    seen = []
    model.ours.unet(torch.zeros(1, 4, 32, 48), 1, model.ours.encode_text("a cat"), edit=lambda maps, site: seen.append(site) or maps)
    assert seen == sites


def test_numpy_s_numbers_are_numbers(model):
    options = {"seed": np.int64(3), "steps": np.int32(2), "guidance": np.float32(7.5), "size": (np.int64(64), np.int64(64))}
    edit = Reweight(model.tokenizer, [SOURCE, SWAPPED], {"dog": np.int64(2)}, cross_replace_steps=np.float32(0.5))
    ours = model.generate([SOURCE, SWAPPED], edit=edit, **options)
    theirs = Reweight(model.tokenizer, [SOURCE, SWAPPED], {"dog": 2.0}, cross_replace_steps=0.5)
    assert torch.equal(ours, model.generate([SOURCE, SWAPPED], edit=theirs, seed=3, steps=2, size=(64, 64)))


def test_a_step_of_an_edit_may_be_handed_to_the_unet_as_it_is():
    """Its tensors follow the maps to their device: here one that computes nothing, but refuses to mix."""
    maps = torch.empty(2, 2, 256, T, device="meta")
    edit = Edit(("", ""), torch.eye(T)[None], torch.ones(1, T), torch.ones(1, T), torch.tensor([[[0.0, 1.0]] * T]), (0.0, 1.0))
    assert edit.at(0, STEPS)(maps, CROSS).shape == maps.shape


# ---------------------------------------------------------------- what cannot be done is said in one line

PAIR, LONG = [SOURCE, SWAPPED], "cat " * 76
WINDOW_FAULTS = [
    1.5, -0.1, (0.8, 0.2), (0, 0.5, 1), (), math.nan, (0, math.nan), math.inf, "0.8", None, True, [0.1],
    {"default_": 2}, {"dog": "x"},
]  # fmt: skip
ERRORS = {
    "one prompt": (lambda sd: Swap(sd.tokenizer, [SOURCE]), "at least one target"),
    "no prompts": (lambda sd: Add(sd.tokenizer, []), "at least one target"),
    "a bare string": (lambda sd: Swap(sd.tokenizer, SOURCE), "prompts of an edit"),
    "prompts None": (lambda sd: Reweight(sd.tokenizer, None, {"cat": 2}), "prompts of an edit"),
    "a prompt that is a number": (lambda sd: Add(sd.tokenizer, [SOURCE, 5]), "must be a string"),
    "a prompt that is None": (lambda sd: sd.generate([SOURCE, None]), "must be a string"),
    "a long target": (lambda sd: Swap(sd.tokenizer, [SOURCE, LONG]), "shorten it by 1 token"),
    "a long source": (lambda sd: Add(sd.tokenizer, [LONG, SOURCE]), "has 76 tokens and the text encoder reads 75"),
    "a long prompt": (lambda sd: sd.generate(LONG), "shorten it"),
    "a long negative prompt": (lambda sd: sd.generate(SOURCE, negative=LONG), "shorten it"),
    "a long prompt's words": (lambda sd: sd.tokenizer.words(LONG), "shorten it"),
    "a negative prompt that is a number": (lambda sd: sd.generate(SOURCE, negative=5), "must be a string"),
    "not swappable": (lambda sd: Swap(sd.tokenizer, [SOURCE, "a dog"]), "use Add"),
    "window of an unknown word": (lambda sd: Swap(sd.tokenizer, PAIR, {"default_": 0.8, "bicycle": 0.5}), "'bicycle' is in none .* a, red, dog"),
    "window of a source's word": (lambda sd: Swap(sd.tokenizer, PAIR, {"cat": 0.5}), "'cat' is in none"),
    "misspelt default_": (lambda sd: Swap(sd.tokenizer, PAIR, {"default": 0.8}), "'default' is in none"),
    "window key that is no word": (lambda sd: Swap(sd.tokenizer, PAIR, {3: 0.8}), "3"),
    "a dict of self windows": (lambda sd: Swap(sd.tokenizer, PAIR, 0.8, {"default_": 0.4}), "self_replace_steps"),
    "a re-weighting's window": (lambda sd: Reweight(sd.tokenizer, PAIR, {"dog": 2}, cross_replace_steps=2), "cross_replace_steps is 2"),
    "a re-weighting's self window": (lambda sd: Reweight(sd.tokenizer, PAIR, {"dog": 2}, self_replace_steps="x"), "self_replace_steps is 'x'"),
    "weight of an unknown word": (lambda sd: Reweight(sd.tokenizer, PAIR, {"bicycle": 2}), "'bicycle' is in none"),
    "weight of a source's word": (lambda sd: Reweight(sd.tokenizer, PAIR, {"cat": 2}), "'cat' is in none"),
    "weight of nothing": (lambda sd: Reweight(sd.tokenizer, PAIR, {"": 2}), "'' is in none"),
    **{
        f"weight {weight!r}": (lambda sd, w=weight: Reweight(sd.tokenizer, PAIR, {"dog": w}), "weight of 'dog' is .* finite number")
        for weight in (math.nan, math.inf, -math.inf, "2", None, True)
    },
    "weights that are a number": (lambda sd: Reweight(sd.tokenizer, PAIR, 2.0), "weights are 2.0"),
    "base of other prompts": (lambda sd: Reweight(sd.tokenizer, PAIR, {"dog": 2}, base=Add(sd.tokenizer, [SOURCE, ADDED])), "base edit is of"),
    "base that is no edit": (lambda sd: Reweight(sd.tokenizer, PAIR, {"dog": 2}, base="swap"), "base is 'swap'"),
    "blend of other prompts": (lambda sd: Swap(sd.tokenizer, PAIR, blend=LocalBlend(sd.tokenizer, [SOURCE, ADDED], "cat")), "local blend is of"),
    "re-weighting's blend of other prompts": (
        lambda sd: Reweight(sd.tokenizer, PAIR, {"dog": 2}, blend=LocalBlend(sd.tokenizer, [SOURCE, ADDED], "cat")),
        "local blend is of",
    ),
    "blend that is words": (lambda sd: Swap(sd.tokenizer, PAIR, blend=["cat", "dog"]), "make one with LocalBlend"),
    "edit of other prompts": (lambda sd: sd.generate([SOURCE, ADDED], edit=Swap(sd.tokenizer, PAIR)), "edit was made for"),
    "edit of more prompts": (lambda sd: sd.generate(PROMPTS, edit=Swap(sd.tokenizer, PAIR)), "edit was made for"),
    "edit and one prompt": (lambda sd: sd.generate(SOURCE, edit=Swap(sd.tokenizer, PAIR)), "edit was made for"),
    "no prompt": (lambda sd: sd.generate([]), "no prompt"),
    "prompts that are a number": (lambda sd: sd.generate(5), "no prompt in 5"),
    **{f"seed {seed!r}": (lambda sd, s=seed: sd.generate(SOURCE, seed=s), "seed is") for seed in (-1, 1.5, "1", None, True, 2**63)},
    **{f"steps {steps!r}": (lambda sd, s=steps: sd.generate(SOURCE, steps=s), "steps is .* 1 to 999") for steps in (0, -1, 1000, 2.0, "5", True)},
    **{
        f"guidance {guidance!r}": (lambda sd, g=guidance: sd.generate(SOURCE, guidance=g), "guidance is")
        for guidance in (math.nan, math.inf, "7", True)
    },
    "size": (lambda sd: sd.generate(SOURCE, size=(63, 90)), r"size 63 x 90 .* multiples of 16, the nearest is 64 x 96"),
    "size too small": (lambda sd: sd.generate(SOURCE, size=3), "the nearest is 16 x 16"),
    "size nought": (lambda sd: sd.generate(SOURCE, size=0), "the nearest is 16 x 16"),
    **{f"size {size!r}": (lambda sd, s=size: sd.generate(SOURCE, size=s), "size is") for size in ("64", 64.0, (64,), (64, 64, 3), (64, "64"))},
    "picture's size": (lambda sd: sd.encode_image(Image.new("RGB", (70, 64))), "the nearest is 64 x 64"),
    **{
        f"latents {shape}": (lambda sd, s=shape: sd.generate(PAIR, latents=torch.zeros(s)), "latents have shape")
        for shape in ((4, 16, 16), (3, 4, 16, 16), (1, 3, 16, 16))
    },
    "latents' size": (lambda sd: sd.generate(SOURCE, latents=torch.zeros(1, 4, 15, 16)), "size 60 x 64 .* 64 x 64"),
    "latents that are a list": (lambda sd: sd.generate(SOURCE, latents=[0.0]), "latents have shape"),
    "latents and another size": (lambda sd: sd.generate(SOURCE, latents=torch.zeros(1, 4, 16, 16), size=96), "leave one of them out"),
}  # fmt: skip


def refused(call, sd, reason: str) -> None:
    with pytest.raises(PromptError, match=reason) as error:
        call(sd)
    assert "\n" not in str(error.value) and ": " in str(error.value)


@pytest.mark.parametrize("call, reason", ERRORS.values(), ids=ERRORS.keys())
def test_errors(model, call, reason):
    refused(call, model.ours, reason)


@pytest.mark.parametrize("window", WINDOW_FAULTS, ids=repr)
def test_windows_that_are_none(model, window):
    refused(lambda sd: Swap(sd.tokenizer, PAIR, window), model.ours, "cross_replace_steps.* is .* from 0 to 1")
    if not isinstance(window, dict):
        refused(lambda sd: Add(sd.tokenizer, PAIR, 0.8, window), model.ours, "self_replace_steps is .* from 0 to 1")
