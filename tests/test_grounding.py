"""Grounding: which tokens name which pixels, and a loss that is least where each attends to its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minip2p import StableDiffusion
from minip2p.tokenizer import CLIPTokenizer
from weights.toyworld import vocabulary, world
from weights.toyworld.grounding import (
    NONE, REGIONS, SHARES, KeepMaps, copies, grounding, region_amounts, region_masks, token_regions,
)  # fmt: skip

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer(TOY / "tokenizer", vocabulary.CONTEXT)


def named(tokenizer, caption: str, scene) -> dict[str, str]:
    """Each grounded word of a caption and its region."""
    regions = token_regions(tokenizer, caption, scene)
    return {word: REGIONS[regions[at[0]]] for word, at in tokenizer.words(caption) if regions[at[0]] != NONE}


def scene_of(**wanted):
    """The first scene with these attributes, and its seed."""
    scenes = ((world.sample(seed), seed) for seed in range(5000))
    return next((scene, seed) for scene, seed in scenes if all(getattr(scene, name) == value for name, value in wanted.items()))


def test_all_captions_fit_the_context(tokenizer):
    for seed in range(2000):
        tokenizer.check(world.caption(world.sample(seed), seed))


def test_words_are_grounded_in_what_they_name(tokenizer):
    scene, _ = scene_of(relation="behind", place="in the snow")
    first, second = (thing.noun for thing in scene.things)
    words = f"a red {first} behind a blue {second} in the snow, cloudy at night"
    things = {"red": "first colour", first: "first thing", "blue": "second colour", second: "second thing"}
    assert named(tokenizer, words, scene) == things | {"snow": "ground", "cloudy": "cloudy", "night": "sky"}
    swapped = f"a blue {second} next to a red {first} with flowers"  # the order of the caption does not matter
    assert named(tokenizer, swapped, scene) == things | {"flowers": "with flowers"}


def test_all_pieces_of_a_word_are_grounded(tokenizer):
    scene = next(world.sample(s) for s in range(5000) if [t.noun for t in world.sample(s).things] == ["bicycle"])
    regions = token_regions(tokenizer, "a purple bicycle", scene)
    assert (regions == REGIONS.index("first thing")).sum() == len(tokenizer.positions("a purple bicycle", "bicycle")) > 1
    assert (regions == REGIONS.index("first colour")).sum() == len(tokenizer.positions("a purple bicycle", "purple")) > 1


def test_two_things_of_one_noun_are_left_out(tokenizer):
    scene = next(world.sample(s) for s in range(5000) if [t.noun for t in world.sample(s).things] == ["cat", "cat"])
    assert "cat" not in named(tokenizer, "a red cat next to another cat", scene)


def test_masks_are_the_truth_reduced():
    _, _, scene, truth = world.example(3)
    masks = region_masks(truth)
    assert masks.shape == (len(REGIONS), 16, 16) and masks.dtype == np.uint8
    assert masks[REGIONS.index("first thing")].sum() / 255 * 16 == pytest.approx(truth.masks[0].sum(), abs=20)
    assert masks[REGIONS.index("ground")].sum() / 255 * 16 == pytest.approx(truth.regions["ground"].sum(), abs=20)


def test_amounts_are_those_of_the_scene():
    scene = world.sample(0)
    things = (replace(scene.things[0], saturation=0.65),)
    scene = replace(scene, darkness=0.88, extras=(("snowy", 6), ("starry", 28)), things=things)
    amounts = dict(zip(REGIONS, region_amounts(scene).tolist()))
    graded = {"sky": 1.0, "snowy": 0.1, "starry": 1.0, "first colour": 0.55}
    assert amounts == pytest.approx({region: graded.get(region, 1.0) for region in REGIONS})
    assert region_amounts(world.sample(0)).max() <= 1 and region_amounts(world.sample(0)).min() >= 0.1


def losses(inside: float, outside: float, region: str = "first thing", amount: float = 1.0) -> tuple[float, float]:
    """The two terms of one token whose region covers the left half, with this attention there and elsewhere."""
    masks = torch.zeros(1, len(REGIONS), 16, 16)
    first = REGIONS.index(region)
    masks[0, first, :, :8] = 1
    regions = torch.tensor([[NONE, first]])
    attention = (masks[0, first] * inside + (1 - masks[0, first]) * outside).reshape(1, 256, 1)
    maps = {16: [torch.cat([1 - attention, attention], -1)]}
    shares = amount * torch.tensor([list(SHARES.values())])
    return tuple(term.item() for term in grounding(maps, masks, shares, regions, torch.ones(1)))


def test_the_terms_are_least_where_a_word_attends_to_its_thing():
    share = SHARES["first thing"]
    assert losses(share, 0)[0] < 1e-6 < losses(share, 0.1)[0] < losses(0.1, share)[0]
    assert losses(share, 0)[1] < min(losses(share, 0.1)[1], losses(0.95, 0)[1], losses(0.1, 0)[1])


def test_a_graded_word_should_attend_as_much_as_there_is_of_it():
    most = SHARES["cloudy"]
    for amount in (0.2, 1.0):
        pixel = {share: losses(share, 0, "cloudy", amount)[1] for share in (0.2 * most, most)}
        assert min(pixel, key=pixel.get) == amount * most


def test_nothing_to_ground_costs_nothing():
    maps, masks = {16: [torch.full((2, 256, 3), 1 / 3)]}, torch.zeros(2, len(REGIONS), 16, 16)
    assert sum(grounding(maps, masks, masks[:, :, 0, 0] + 1, torch.full((2, 3), NONE), torch.ones(2))) == 0


def test_copies_are_what_other_tokens_have_read_of_a_word():
    """Each token is a number; `encode` adds to it a share of the tokens before it, as a causal encoder may."""
    tokens, end = torch.tensor([[5.0, 3.0, 4.0, 9.0, 9.0]]), 9
    red, house, cloudy = (REGIONS.index(name) for name in ("first colour", "first thing", "cloudy"))
    regions = torch.tensor([[NONE, red, house, NONE, NONE]])  # "a red house" and padding

    def copied(share: float, *regions_hidden: int) -> float:
        def encode(tokens):
            return (tokens + share * (tokens.cumsum(1) - tokens))[..., None]

        hidden = torch.zeros(1, len(REGIONS), dtype=torch.bool)
        hidden[0, list(regions_hidden)] = True
        return copies(encode, tokens, encode(tokens), regions, hidden, end).item()

    assert copied(0.5) == copied(0.5, cloudy) == 0  # nothing is hidden, or no word of this caption
    assert copied(0, house) == 0 < copied(0.1, house) < copied(0.5, house)

    def only_the_noun(tokens):
        read = torch.zeros_like(tokens)
        read[:, 2] = tokens[:, 1]
        return (tokens + read)[..., None]

    hidden = torch.zeros(1, len(REGIONS), dtype=torch.bool)
    hidden[0, red] = True
    assert copies(only_the_noun, tokens, only_the_noun(tokens), regions, hidden, end) == 0  # a noun may read its colour
    assert copied(0.1, red) > 0  # the padding may not


def test_keeping_maps_changes_nothing_and_keeps_those_of_16_and_8():
    sd = StableDiffusion.load(TOY, device="cpu")
    z, text, keep = sd.init_latents(0), sd.encode_text("a cat"), KeepMaps()
    with torch.no_grad():
        assert torch.allclose(sd.unet(z, 500, text, keep), sd.unet(z, 500, text), atol=1e-5)
    assert {side: {tuple(m.shape[:2]) for m in layers} for side, layers in keep.maps.items()} == {16: {(1, 256)}, 8: {(1, 64)}}
