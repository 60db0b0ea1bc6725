"""The drawn world keeps its promises: repeatable, true to its masks, silent about layout."""

import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from weights.toyworld import world
from weights.toyworld.picture import trace
from weights.toyworld.scene import PENCIL


@lru_cache
def scenes() -> tuple[world.Scene, ...]:
    return tuple(world.sample(seed) for seed in range(2000))


def pixels(scene: world.Scene) -> np.ndarray:
    return np.asarray(world.render(scene).picture, float)


def test_same_seed_same_everything():
    for seed in range(20):
        (picture, words, scene, truth), (again, words2, scene2, truth2) = world.example(seed), world.example(seed)
        assert (words, scene, truth.boxes) == (words2, scene2, truth2.boxes)
        assert picture.tobytes() == again.tobytes() and picture.size == (64, 64)


def test_masks_lie_in_their_boxes_and_near_the_scene_s():
    for scene in scenes()[:300]:
        truth = world.render(scene)
        assert len(truth.masks) == len(truth.boxes) == len(scene.things)
        for thing, mask, (x0, y0, x1, y1) in zip(scene.things, truth.masks, truth.boxes):
            assert mask.shape == (64, 64) and mask.dtype == bool and mask.sum() >= 40
            assert mask.sum() == mask[y0:y1, x0:x1].sum()
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
            left, top, right, bottom = (64 * v for v in thing.box)
            assert x0 > left - 3.5 and y0 > top - 3.5 and x1 < right + 3.5 and y1 < bottom + 3.5


def test_every_pixel_is_a_thing_ground_or_sky_and_pieces_are_where_they_change_the_picture():
    for scene in scenes()[:200]:
        truth = world.render(scene)
        ground, sky, things = truth.regions["ground"], truth.regions["sky"], np.any(truth.masks, axis=0)
        assert (ground.astype(int) + sky + things == 1).all()
        assert set(truth.regions) - {"ground", "sky"} <= {word for word, _ in scene.extras}
        for word, mask in truth.regions.items():
            if word in world.EXTRAS and scene.style != PENCIL:  # a sketch is all grey, so that little changes
                changed = trace(scene, truth.picture, word)
                assert (changed & mask).sum() > 0.3 * mask.sum() and (changed & ~mask).sum() < 0.6 * changed.sum() + 8


def test_colours_differ_in_strength_and_no_caption_says_so():
    red = [thing for scene in scenes() for thing in scene.things if thing.colour == "red"]
    assert min(thing.saturation for thing in red) < 0.35 and max(thing.saturation for thing in red) == 1
    scene = next(scene for scene in scenes() if scene.style == "" and not scene.darkness and scene.things[0].colour == "red")
    thing = replace(scene.things[0], lightness=0.0)
    bare = replace(scene, relation=None, extras=())
    pale, strong = (replace(bare, things=(replace(thing, saturation=share),)) for share in (0.3, 1.0))
    mask = world.render(strong).masks[0]
    redness = [(pixels(s)[..., 0] - pixels(s)[..., 1:].mean(-1))[mask].mean() for s in (pale, strong)]
    assert redness[1] > 2 * redness[0] and world.caption(pale, 0) == world.caption(strong, 0)


def test_layout_depends_on_the_noun():
    alone = [scene for scene in scenes() if scene.relation is None]

    def mean(noun: str, number) -> float:
        return float(np.mean([number(scene.things[0].box) for scene in alone if scene.things[0].noun == noun]))

    assert mean("castle", lambda box: box[3] - box[1]) > 2 * mean("ball", lambda box: box[3] - box[1])
    assert mean("boat", lambda box: box[3]) > mean("castle", lambda box: box[3]) + 0.03
    assert mean("dog", lambda box: box[0] + box[2]) > mean("bicycle", lambda box: box[0] + box[2]) + 0.2


def test_two_thirds_of_the_scenes_have_two_different_nouns():
    different = [len({thing.noun for thing in scene.things}) == 2 for scene in scenes()]
    assert 0.62 < np.mean(different) < 0.72


def test_things_stay_in_the_picture_and_are_big_enough():
    for scene in scenes():
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert max(x1 - x0, y1 - y0) * 64 >= 13


def test_what_is_behind_stays_half_visible():
    for scene in [s for s in scenes() if s.relation is not None][:200]:
        together = world.render(scene).masks
        for index, thing in enumerate(scene.things):
            alone = world.render(replace(scene, things=(thing,), relation=None)).masks[0]
            assert together[index].sum() >= 0.5 * alone.sum()


def test_caption_names_every_noun_and_no_layout():
    layout = re.compile(r"\b(left|right|big|small|large|tiny|near|far|top|bottom|middle)\b")
    for seed, scene in enumerate(scenes()):
        words = world.caption(scene, seed)
        for noun, times in Counter(thing.noun for thing in scene.things).items():
            assert Counter(words.replace(",", "").split())[noun] >= times, words
        assert not layout.search(words) and words == words.lower() and len(words.split()) <= 26, words
        assert scene.style in words and (scene.darkness > 0) == ("night" in words), words
        assert all(word in words for word, _ in scene.extras), words
        named = {t.colour for t in scene.things if t.named}
        assert named == {c for c in world.COLOURS if c in re.split(r"[ ,]", words)}, words


def test_everything_occurs_and_nothing_hides_on_its_ground():
    things = [(thing, scene) for scene in scenes() for thing in scene.things]
    assert {t.noun for t, _ in things} == set(world.NOUNS)
    assert {t.colour for t, _ in things} == set(world.COLOURS)
    assert {s.place for s in scenes()} == set(world.PLACES)
    assert {s.style for s in scenes()} == set(world.STYLES)
    assert {s.relation for s in scenes()} == {None, *world.RELATIONS}
    assert {word for s in scenes() for word, _ in s.extras} == set(world.EXTRAS)
    assert not [t for t, s in things if t.colour in world.PLACES[s.place].hides]


@pytest.mark.parametrize("style", world.STYLES)
def test_night_is_darker_and_deeper_night_darker_still(style):
    for scene in [s for s in scenes() if s.style == style][:15]:
        day, dusk, night = (pixels(replace(scene, darkness=d, light=(0.5, 0.12))).mean() for d in (0.0, 0.45, 0.85))
        assert day > 1.2 * dusk > 1.2 * night


@pytest.mark.parametrize("word", world.EXTRAS)
@pytest.mark.parametrize("style", world.STYLES)
def test_more_of_an_extra_changes_more_pixels(word, style):
    least, most = world.EXTRAS[word]
    for scene in [s for s in scenes() if s.style == style][:8]:
        scene = replace(scene, darkness=0.6, light=None)
        none, few, many = (pixels(replace(scene, extras=e)) for e in ((), ((word, least),), ((word, most),)))
        assert np.abs(many - none).sum() > np.abs(few - none).sum()
        assert not np.array_equal(few, many)
