"""Swap, Add and Reweight: against the published formulas on diffusers' UNet, and what must hold for any prompts."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import minip2p
from minip2p import Add, LocalBlend, PromptError, RequestError, Reweight, Site, StableDiffusion, Swap
from minip2p.attention_store import AttentionStore
from minip2p.compose import Chain
from minip2p.edits import Edit
from minip2p.tokenizer import CLIPTokenizer
from tests import restatement
from tests.conftest import TOY
from tests.pipelines import difference
from tests.restatement import Blending, Recipe, marks

T, STEPS = 77, 6
SOURCE, SWAPPED, ADDED = "a red cat on the grass", "a red dog on the grass", "a red cat on the grass at night"
PROMPTS = [SOURCE, SWAPPED, ADDED]
CROSS = Site("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "cross", "down", 16, 16)
SELF = Site("down_blocks.0.attentions.0.transformer_blocks.0.attn1", "self", "down", 16, 16)


@pytest.fixture(scope="module")
def sd(sharp1) -> StableDiffusion:
    return sharp1.ours


def run(sd: StableDiffusion, prompts: list[str], **options) -> minip2p.Result:
    return sd.generate(prompts, **{"steps": STEPS, "progress": False} | options)


def generate(sd: StableDiffusion, prompts: list[str], **options) -> Tensor:
    return run(sd, prompts, **options).latents


@pytest.fixture(scope="module")
def plain(sd) -> Tensor:
    """The latents of PROMPTS without an edit."""
    return generate(sd, PROMPTS)


# ---------------------------------------------------------------- against the published formulas


@dataclass(frozen=True)
class Case:
    """One edit, in the package's terms; `recipe` writes it in the restatement's."""

    prompts: list[str]
    kind: str  # "swap" or "add"
    cross: object = 0.8
    own: object = 0.4
    weights: dict | None = None
    blend: dict | None = None
    size: tuple[int, int] = (16, 16)
    flavour: str = "sharp1"


CASES = {
    "swap": Case([SOURCE, SWAPPED], "swap"),
    "swap, v-prediction": Case([SOURCE, SWAPPED], "swap", flavour="sharp2"),
    "swap, not square": Case([SOURCE, SWAPPED], "swap", own=1.0, size=(16, 24)),
    "swap, windows per word": Case(
        [SOURCE, SWAPPED], "swap", cross={"default_": 0.9, "dog": (0.2, 0.5), "grass": 0.35}, own=(0.2, 0.7)
    ),
    "swap, windows per word, no default": Case([SOURCE, SWAPPED], "swap", cross={"dog": (0.5, 1)}),
    "swap, one to two tokens and two to one": Case(
        ["a red river on the grass", "a red cat on the grass", "a bicycle river on the grass"], "swap"
    ),
    "add, same count": Case(["a red cat on the grass", "a cat on the red grass"], "add"),
    "add": Case(["a cat on the grass", "a cat on the grass at night"], "add", cross=0.5, own=0.2),
    "add in front, and drop": Case(["a cat on the grass", "a child's drawing of a cat on the grass", "a cat"], "add"),
    "weights on the source's maps": Case([SOURCE, SOURCE], "reweight", weights={"cat": -2.0, "grass": 4.0}),
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
        include, exclude = (
            torch.stack([marks(tokenizer, prompt, *case.blend.get(key, [])) for prompt in case.prompts])
            for key in ("words", "exclude")
        )
        height, width = case.size
        read = (height, width) if height * width <= 256 else (height // 2, width // 2)  # the finest low-resolution layers
        blending = Blending(include, exclude, read, first=int(0.2 * STEPS), threshold=case.blend["threshold"])
    first, last = case.own if isinstance(case.own, tuple) else (0, case.own)
    own = int(first * STEPS), int(last * STEPS)
    return Recipe(change, equalizer, [windows(tokenizer, target, case.cross) for target in targets], own, blending)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_edits_equal_the_published_formulas(request, case):
    pair = request.getfixturevalue(case.flavour)
    tokenizer = pair.ours.tokenizer
    start = torch.randn(1, 4, *case.size, generator=torch.Generator().manual_seed(1))
    theirs, masks = restatement.generate(
        pair.reference, case.prompts, recipe(case, pair.reference.tokenizer), start, STEPS, 7.5
    )
    blend = LocalBlend(tokenizer, case.prompts, **case.blend) if case.blend else None
    edit = Reweight(tokenizer, case.prompts, case.weights, None, case.cross, case.own) if case.kind == "reweight" else None
    edit = edit or {"swap": Swap, "add": Add}[case.kind](tokenizer, case.prompts, case.cross, case.own, blend)
    edit = Reweight(tokenizer, case.prompts, case.weights, base=edit) if case.weights and case.kind != "reweight" else edit
    result = run(pair.ours, case.prompts, edit=edit, latents=start)
    for ours, reference in zip(result.latents, theirs):
        assert difference(ours, reference) <= 1e-4
    if case.blend:
        assert torch.equal(result.masks[:, :, 0], torch.stack(masks))
        assert 0 < result.masks.mean() < 1, "a mask of everything or nothing tests little"


# ---------------------------------------------------------------- what must hold of every edit


def test_an_identity_edit_equals_no_edit(sd, plain):
    """Capitals make another prompt of the same tokens."""
    prompts, loud = [SOURCE, SOURCE, SOURCE], [SOURCE, SOURCE.upper(), SOURCE.title()]
    for prompts, edit in (
        (loud, Swap(sd.tokenizer, loud, 1.0, 1.0)),
        (prompts, Reweight(sd.tokenizer, prompts, {"cat": 1})),
    ):
        latents = generate(sd, prompts, edit=edit)
        assert difference(latents, plain[:1].expand_as(latents)) < 1e-5


def test_an_edit_changes_its_targets_and_never_the_source(sd, plain):
    cat, red = {"cat": 3.0}, {"red": -1.0}
    for prompts, edit in (
        (PROMPTS, Add(sd.tokenizer, PROMPTS, 1.0, 1.0, LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"]))),
        (PROMPTS, Reweight(sd.tokenizer, PROMPTS, red, base=Add(sd.tokenizer, PROMPTS))),
        ([SOURCE, SOURCE], Reweight(sd.tokenizer, [SOURCE, SOURCE], cat)),
    ):
        latents = generate(sd, prompts, edit=edit)
        assert difference(latents[0], plain[0]) < 1e-5
        for prompt, target in zip(prompts[1:], latents[1:]):
            assert difference(target, plain[PROMPTS.index(prompt)]) > 1e-2


@pytest.mark.parametrize("window", [0, 0.0, (0, 0), (0.5, 0.5), (1, 1), 0.1, {"default_": 0}, {"default_": 0, "dog": (0.4, 0.4)}])
def test_windows_without_a_step_change_nothing(sd, plain, window):
    prompts = PROMPTS[:2]
    edit = Reweight(sd.tokenizer, prompts, {"dog": 5.0}, base=Swap(sd.tokenizer, prompts, window, 0.0))
    assert [edit.at(step, STEPS).wants(CROSS) for step in range(STEPS)] == [False] * STEPS
    if window == 0.1:  # one run is enough
        assert difference(generate(sd, prompts, edit=edit), plain[:2]) < 1e-5


def test_several_targets_equal_each_alone(sd):
    prompts = [SOURCE, SWAPPED, ADDED]
    windows = {"default_": 0.8, "red": 0.4}

    def edit(prompts: list[str]) -> Edit:
        blend = LocalBlend(sd.tokenizer, prompts, ["cat", "dog"][: 1 + ("dog" in " ".join(prompts))])
        return Reweight(sd.tokenizer, prompts, {"red": 2.0}, base=Add(sd.tokenizer, prompts, windows, 0.4, blend))

    together = generate(sd, prompts, edit=edit(prompts), steps=4)
    for row in (1, 2):
        alone = generate(sd, [SOURCE, prompts[row]], edit=edit([SOURCE, prompts[row]]), steps=4)
        assert difference(together[row], alone[1]) < 1e-5


# ---------------------------------------------------------------- the formula itself, on random maps


def maps_of(prompts: list[str], pixels: int = 256, tokens: int = T) -> Tensor:
    return torch.rand(len(prompts), 2, pixels, tokens, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_full_windows_give_the_maps_of_the_source(sd):
    prompts = [SOURCE, SWAPPED]
    edit = Swap(sd.tokenizer, prompts, 1.0, 1.0).at(STEPS - 1, STEPS)
    for site, tokens in ((CROSS, T), (SELF, 256)):
        maps = maps_of(prompts, tokens=tokens)
        assert torch.equal(edit(maps, site), maps[:1].expand_as(maps))


def test_maps_are_not_changed_in_place_and_new_words_keep_their_own(sd):
    edit = Reweight(sd.tokenizer, PROMPTS, {"dog": 0.5}, base=Add(sd.tokenizer, PROMPTS, {"default_": 1, "dog": 0.5}, 1.0))
    for step, site, tokens in ((0, CROSS, T), (STEPS - 1, CROSS, T), (0, SELF, 256)):
        maps = maps_of(PROMPTS, tokens=tokens)
        before = maps.clone()
        after = edit.at(step, STEPS)(maps, site)
        assert torch.equal(maps, before) and not torch.equal(after, before)
        assert after.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()
        if site is CROSS:  # "dog" (token 3) is new: its own map, halved inside its window; "night" (8) is new as well
            assert torch.equal(after[1, ..., 3], before[1, ..., 3] * (0.5 if step == 0 else 1))
            assert torch.equal(after[2, ..., 7:9], before[2, ..., 7:9]) and torch.equal(after[2, ..., :7], before[0, ..., :7])


def test_gradients_reach_the_text_through_an_edit(sd):
    prompts, store = [SOURCE, SWAPPED], AttentionStore()
    edit = Swap(sd.tokenizer, prompts, blend=LocalBlend(sd.tokenizer, prompts, ["cat", "dog"]))
    text = sd.encode_text(prompts).detach().requires_grad_()
    z = sd.init_latents(0).expand(2, -1, -1, -1)
    for given in (edit.at(0, STEPS), Chain([edit, store]).at(0, STEPS)):
        (gradient,) = torch.autograd.grad(sd.unet(z, 500, text, edit=given)[1].square().sum(), text)
        # The target depends on the source's text through its maps, and on its own text through its values.
        assert gradient.isfinite().all() and all(row.abs().sum() > 0 for row in gradient)
    assert store.maps and not any(maps.requires_grad for maps in store.maps.values())


def test_weight_zero_removes_exactly_that_column(sd):
    prompts = [SOURCE, "a red bicycle on the grass"]
    edit = Reweight(sd.tokenizer, prompts, {"bicycle": 0}, base=Swap(sd.tokenizer, prompts))
    maps = maps_of(prompts)
    unweighted, weighted = Swap(sd.tokenizer, prompts).at(0, STEPS)(maps, CROSS), edit.at(0, STEPS)(maps, CROSS)
    assert not weighted[1, ..., 3:5].any()
    rest = [token for token in range(T) if token not in (3, 4)]
    assert torch.equal(weighted[..., rest], unweighted[..., rest]) and unweighted[1, ..., 3:5].min() > 0


def test_weights_stack_and_apply_wherever_a_word_stands(sd):
    prompts = ["a cat on a red cat", "a cat on a red cat", "a dog on a bicycle"]
    edit = Reweight(
        sd.tokenizer, prompts, {"a": 2.0, "red": -1, "cat": 3}, cross_replace_steps=(0.5, 1), self_replace_steps=(0.2, 0.3)
    )
    assert edit.equalizer[:, :9].tolist() == [[1, 2, 3, 1, 2, -1, 3, 1, 1], [1, 2, 1, 1, 2, 1, 1, 1, 1]]
    assert edit.self_replace == (0.2, 0.3) and (edit.cross_replace == torch.tensor([0.5, 1.0])).all()
    again = Reweight(sd.tokenizer, prompts, {"bicycle": 5}, base=edit)
    assert again.equalizer[1, :9].tolist() == [1, 2, 1, 1, 2, 5, 5, 1, 1] and torch.equal(again.equalizer[0], edit.equalizer[0])
    assert again.self_replace == (0.2, 0.3) and torch.equal(again.cross_replace, edit.cross_replace)


@pytest.mark.parametrize("steps", [1, 6, 50, 100])
@pytest.mark.parametrize("window", [0, 1, 0.5, 0.8, 0.29, 0.999, (0.2, 0.8), (0.58, 1), (0.3, 0.3)])
def test_a_window_counts_steps_like_the_authors(sd, window, steps):
    """[int(b0 n), int(b1 n)), for the cross maps as for the self maps."""
    first, last = window if isinstance(window, tuple) else (0, window)
    edit = Swap(sd.tokenizer, [SOURCE, SWAPPED], window, window)
    inside = [int(first * steps) <= step < int(last * steps) for step in range(steps)]
    for site in (CROSS, SELF):
        assert [edit.at(step, steps).wants(site) for step in range(steps)] == inside


def test_windows_of_single_words(sd):
    prompts = [SOURCE, "a red bicycle on the grass", "a bicycle next to a bicycle"]
    edit = Add(sd.tokenizer, prompts, {"default_": 0.5, "bicycle": (0.25, 0.75), "the grass": 1})
    per_step = torch.stack([edit.at(step, 4).cross_open[:, 0, 0] for step in range(4)]).int()  # (steps, N, T)
    default, bicycle, grass = [1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]
    for row, special in ((0, {3: bicycle, 4: bicycle, 6: grass, 7: grass}), (1, {p: bicycle for p in (2, 3, 7, 8)})):
        assert [per_step[:, row, token].tolist() for token in range(T)] == [special.get(token, default) for token in range(T)]
    everything = Add(sd.tokenizer, prompts, {"bicycle": 0.5}).at(3, 4).cross_open[:, 0, 0]
    assert everything[0].tolist() == [float(token not in (3, 4)) for token in range(T)], (
        "without default_ other words are edited in all steps"
    )


def test_self_attention_is_replaced_at_low_resolution_only(sd):
    edit = Swap(sd.tokenizer, [SOURCE, SWAPPED], 0.0, 1.0).at(0, STEPS)
    assert edit.wants(SELF) and not edit.wants(replace(SELF, low_resolution=False)) and not edit.wants(CROSS)


def test_numbers_of_numpy_are_numbers(sd):
    options = {"seed": np.int64(3), "steps": np.int32(2), "guidance": np.float32(7.5), "size": (np.int64(64), np.int64(64))}
    edit = Reweight(sd.tokenizer, [SOURCE, SWAPPED], {"dog": np.int64(2)}, cross_replace_steps=np.float32(0.5))
    ours = generate(sd, [SOURCE, SWAPPED], edit=edit, **options)
    theirs = Reweight(sd.tokenizer, [SOURCE, SWAPPED], {"dog": 2.0}, cross_replace_steps=0.5)
    assert torch.equal(ours, generate(sd, [SOURCE, SWAPPED], edit=theirs, seed=3, steps=2, size=(64, 64)))


# ---------------------------------------------------------------- errors of one line

PAIR, LONG = [SOURCE, SWAPPED], "cat " * 76
WINDOW_FAULTS = [
    1.5, -0.1, (0.8, 0.2), (0, 0.5, 1), (), math.nan, (0, math.nan), math.inf, "0.8", None, True, [0.1],
    {"default_": 2}, {"dog": "x"},
]  # fmt: skip
EDITS = {  # an edit that cannot be made -> the message
    "one prompt": (lambda tok: Swap(tok, [SOURCE]), "at least one target"),
    "no prompts": (lambda tok: Add(tok, []), "at least one target"),
    "a bare string": (lambda tok: Swap(tok, SOURCE), "prompts of an edit"),
    "prompts None": (lambda tok: Reweight(tok, None, {"cat": 2}), "prompts of an edit"),
    "a prompt that is a number": (lambda tok: Add(tok, [SOURCE, 5]), "must be a string"),
    "a long target": (lambda tok: Swap(tok, [SOURCE, LONG]), "shorten it by 1 token"),
    "a long source": (lambda tok: Add(tok, [LONG, SOURCE]), "has 76 tokens and the text encoder reads 75"),
    "not swappable": (lambda tok: Swap(tok, [SOURCE, "a dog"]), "use Add"),
    "a swap of nothing": (lambda tok: Swap(tok, [SOURCE, SOURCE]), r"a target is the source prompt .*\(Reweight\)"),
    "an addition of nothing": (lambda tok: Add(tok, [SOURCE, SWAPPED, SOURCE]), r"a target is the source prompt .*\(Reweight\)"),
    "a swap for nothing": (lambda tok: Swap(tok, [SOURCE, ""]), "target prompt of the edit is empty"),
    "an addition to nothing": (lambda tok: Add(tok, [SOURCE, ADDED, "  "]), "target prompt of the edit is empty"),
    "a re-weighting of an empty prompt": (lambda tok: Reweight(tok, [SOURCE, ""], {"cat": 2}), "target prompt of the edit is empty"),
    "window of an unknown word": (lambda tok: Swap(tok, PAIR, {"default_": 0.8, "bicycle": 0.5}), "'bicycle' is in none .* 'a', 'red', 'dog'"),
    "window of a source's word": (lambda tok: Swap(tok, PAIR, {"cat": 0.5}), "'cat' is in none"),
    "misspelt default_": (lambda tok: Swap(tok, PAIR, {"default": 0.8}), "'default' is in none"),
    "window key that is no word": (lambda tok: Swap(tok, PAIR, {3: 0.8}), "must be a string, not int: 3"),
    "a dict of self windows": (lambda tok: Swap(tok, PAIR, 0.8, {"default_": 0.4}), "self_replace_steps"),
    "a re-weighting's window": (lambda tok: Reweight(tok, PAIR, {"dog": 2}, cross_replace_steps=2), "cross_replace_steps is 2"),
    "a re-weighting's self window": (lambda tok: Reweight(tok, PAIR, {"dog": 2}, self_replace_steps="x"), "self_replace_steps is 'x'"),
    "one word with two windows": (lambda tok: Swap(tok, PAIR, {"dog": 0.9, "Dog": 0.1}), "'Dog' and 'dog' share a word, which then has two windows"),
    "a model as the tokenizer": (lambda tok: Swap(object(), PAIR), "give that of the model, sd.tokenizer"),
    "a blend's tokenizer": (lambda tok: LocalBlend(None, PAIR, "cat"), "tokenizer of an edit is None"),
    "weight of an unknown word": (lambda tok: Reweight(tok, PAIR, {"bicycle": 2}), "'bicycle' is in none"),
    "weight of a source's word": (lambda tok: Reweight(tok, PAIR, {"cat": 2}), "'cat' is in none"),
    "weight of nothing": (lambda tok: Reweight(tok, PAIR, {"": 2}), "'' is in none"),
    "one word with two weights": (lambda tok: Reweight(tok, PAIR, {"dog": 2, "Dog": 3}), "'Dog' and 'dog' share a word, which then has two weights"),
    "a word of a phrase": (lambda tok: Reweight(tok, PAIR, {"dog": 2, "red dog": 3}), "'red dog' and 'dog' .* two weights"),
    **{
        f"weight {weight!r}": (lambda tok, w=weight: Reweight(tok, PAIR, {"dog": w}), "weight of 'dog' is .* give a number from -65504 to 65504")
        for weight in (math.nan, math.inf, -math.inf, 1e6, "2", None, True)
    },
    "weights that are a number": (lambda tok: Reweight(tok, PAIR, 2.0), "weights are 2.0"),
    "no weights": (lambda tok: Reweight(tok, PAIR, {}), "weights are {}"),
    "base of other prompts": (lambda tok: Reweight(tok, PAIR, {"dog": 2}, base=Add(tok, [SOURCE, ADDED])), "base edit was made for"),
    "base that is no edit": (lambda tok: Reweight(tok, PAIR, {"dog": 2}, base="swap"), "base is 'swap'"),
    "blend of other prompts": (lambda tok: Swap(tok, PAIR, blend=LocalBlend(tok, [SOURCE, ADDED], "cat")), "local blend was made for"),
    "re-weighting's blend of other prompts": (
        lambda tok: Reweight(tok, PAIR, {"dog": 2}, blend=LocalBlend(tok, [SOURCE, ADDED], "cat")),
        "local blend was made for",
    ),
    "blend that is words": (lambda tok: Swap(tok, PAIR, blend=["cat", "dog"]), r"blend is \['cat', 'dog'\]: give LocalBlend"),
    "a long prompt's words": (lambda tok: tok.words(LONG), "shorten it"),
}  # fmt: skip
RUNS = {  # a run that cannot be made -> the message
    "a prompt that is None": (lambda sd: sd.generate([SOURCE, None]), "must be a string"),
    "a long prompt": (lambda sd: sd.generate(LONG), "shorten it"),
    "a long negative prompt": (lambda sd: sd.generate(SOURCE, negative=LONG), "shorten it"),
    "a negative prompt that is a number": (lambda sd: sd.generate(SOURCE, negative=5), "must be a string"),
    "several negative prompts": (lambda sd: sd.generate(SOURCE, negative=["snow", "grass"]), "must be a string"),
    "edit of other prompts": (lambda sd: sd.generate([SOURCE, ADDED], edit=Swap(sd.tokenizer, PAIR)), "edit was made for"),
    "chain of other prompts": (lambda sd: sd.generate([SOURCE, ADDED], edit=Chain([Swap(sd.tokenizer, PAIR)])), "edit was made for"),
    "edit of more prompts": (lambda sd: sd.generate(PROMPTS, edit=Swap(sd.tokenizer, PAIR)), "edit was made for"),
    "edit and one prompt": (lambda sd: sd.generate(SOURCE, edit=Swap(sd.tokenizer, PAIR)), "edit was made for"),
    "no prompt": (lambda sd: sd.generate([]), "no prompt"),
    "prompts that are a number": (lambda sd: sd.generate(5), "no prompt in 5"),
    **{f"seed {seed!r}": (lambda sd, s=seed: sd.generate(SOURCE, seed=s), "seed is") for seed in (-1, 1.5, "1", True, 2**63)},
    **{f"steps {steps!r}": (lambda sd, s=steps: sd.generate(SOURCE, steps=s), "steps is .* 1 to 999") for steps in (0, -1, 1000, 2.0, "5", True)},
    **{
        f"guidance {guidance!r}": (lambda sd, g=guidance: sd.generate(SOURCE, guidance=g), "guidance is")
        for guidance in (math.nan, math.inf, "7", True)
    },
    "negative without guidance": (lambda sd: sd.generate(SOURCE, negative="snow", guidance=1), "no effect at guidance 1"),
    "record": (lambda sd: sd.generate(SOURCE, record="maps"), "record is 'maps'"),
    "size": (lambda sd: sd.generate(SOURCE, size=(63, 90)), r"size 63 x 90 .* multiples of 16, the nearest is 64 x 96"),
    "size too small": (lambda sd: sd.generate(SOURCE, size=3), "the nearest is 16 x 16"),
    "size zero": (lambda sd: sd.generate(SOURCE, size=0), "the nearest is 16 x 16"),
    **{f"size {size!r}": (lambda sd, s=size: sd.generate(SOURCE, size=s), "size is") for size in ("64", 64.0, (64,), (64, 64, 3), (64, "64"))},
    "picture's size": (lambda sd: sd.encode_image(Image.new("RGB", (70, 64))), "the nearest is 64 x 64"),
    "unconditional rows that nobody mentioned": (
        lambda sd: sd.unet(torch.zeros(4, 4, 16, 16), 500, sd.encode_text(["", "", SOURCE, SWAPPED]), Swap(sd.tokenizer, [SOURCE, SWAPPED])),
        "the edit is of 2 prompts and received the maps of 4",
    ),
    "a path is no picture": (lambda sd: sd.encode_image("photo.png"), "the image is a str: open it first"),
    **{
        f"latents {shape}": (lambda sd, s=shape: sd.generate(PAIR, latents=torch.zeros(s)), "latents have shape")
        for shape in ((4, 16, 16), (3, 4, 16, 16), (1, 3, 16, 16))
    },
    "latents' size": (lambda sd: sd.generate(SOURCE, latents=torch.zeros(1, 4, 15, 16)), "size 60 x 64 .* 64 x 64"),
    "latents that are a list": (lambda sd: sd.generate(SOURCE, latents=[0.0]), "latents have shape"),
    "latents and another size": (lambda sd: sd.generate(SOURCE, latents=torch.zeros(1, 4, 16, 16), size=96), "leave one of them out"),
    "latents and a seed": (lambda sd: sd.generate(SOURCE, latents=torch.zeros(1, 4, 16, 16), seed=3), "seed is 3, .* of the latents"),
    "latents and a seed, recorded": (lambda sd: sd.record(SOURCE, latents=torch.zeros(1, 4, 16, 16), seed=3), "seed is 3, .* of the latents"),
}  # fmt: skip


def refused(call, given, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as error:
        call(given)
    assert "\n" not in str(error.value) and ": " in str(error.value)


@pytest.mark.parametrize("call, reason", EDITS.values(), ids=EDITS)
def test_edits_that_cannot_be_made_are_refused(sd, call, reason):
    refused(call, sd.tokenizer, reason)


@pytest.mark.parametrize("call, reason", RUNS.values(), ids=RUNS)
def test_runs_that_cannot_be_made_are_refused(sd, call, reason):
    refused(call, sd, reason)


def test_an_edit_made_with_another_tokenizer_is_refused(sd):
    """Its words stand at other positions, or its tokens are other words."""
    other = CLIPTokenizer(TOY / "tokenizer", sd.tokenizer.context)
    blend = LocalBlend(other, PAIR, ["cat", "dog"])
    for edit in (Swap(other, PAIR), Reweight(other, PAIR, {"dog": 2}), blend, Chain([AttentionStore(), Swap(other, PAIR)])):
        refused(lambda sd: sd.generate(PAIR, edit=edit, steps=1), sd, "edit was made with the tokenizer of another model")
    refused(lambda tok: Swap(tok, PAIR, blend=blend), sd.tokenizer, "local blend was made with the tokenizer of another")
    refused(lambda tok: Reweight(tok, PAIR, {"dog": 2}, base=Swap(other, PAIR)), sd.tokenizer, "base edit was made with the tokenizer")
    a_copy = CLIPTokenizer(Path(sd.path) / "tokenizer")
    sd.generate(PAIR, edit=Swap(a_copy, PAIR), steps=1, size=32, progress=False)  # is not refused


def test_an_error_about_a_prompt_is_a_prompt_error(sd):
    """Other requests, such as sizes, are RequestErrors and no PromptErrors."""
    for call in (lambda: Reweight(sd.tokenizer, PAIR, {"bicycle": 2}), lambda: sd.generate(LONG), lambda: Swap(sd.tokenizer, [SOURCE])):
        with pytest.raises(PromptError):
            call()
    with pytest.raises(RequestError) as error:
        sd.generate(SOURCE, size=3)
    assert type(error.value) is RequestError


@pytest.mark.parametrize("window", WINDOW_FAULTS, ids=repr)
def test_wrong_windows_are_refused(sd, window):
    refused(lambda tok: Swap(tok, PAIR, window), sd.tokenizer, "cross_replace_steps.* is .* from 0 to 1")
    if not isinstance(window, dict):
        refused(lambda tok: Add(tok, PAIR, 0.8, window), sd.tokenizer, "self_replace_steps is .* from 0 to 1")
