"""The judge: what it says follows from its maps, it compares fairly, and it is right about pictures it never saw."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import minip2p
from weights.scorecard.measures import overlap
from weights.toyworld import judge as judging
from weights.toyworld import train_judge, world
from weights.toyworld.judge import COLOURS, NOUNS, PARTS, PLACES, WHOLE, Found, Verdict, compare, verdict
from weights.toyworld.scene import PENCIL

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"


def answers(*things: tuple[str, int, int, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a judge would put out that sees these (noun, row, column, colour), each 32 pixels wide and high, in the snow at night."""
    cells, whole = torch.full((sum(PARTS.values()), 16, 16), -5.0), torch.zeros(sum(WHOLE.values()))
    cells[len(NOUNS) : len(NOUNS) + 4] = 1.0  # a quarter of the picture to each side
    for noun, row, column, colour in things:
        cells[list(NOUNS).index(noun), row, column] = 3.0
        cells[list(NOUNS).index(noun), row, column - 1] = 2.0  # beside a peak, and so no thing of its own
        cells[len(NOUNS) + 4 + list(COLOURS).index(colour), row, column] = 1.0
    whole[list(PLACES).index("in the snow")] = 1.0
    whole[len(PLACES) + len(judging.STYLES)] = 2.0  # night
    return cells, whole


def test_peaks_become_things():
    seen = verdict(*answers(("cat", 8, 4, "red"), ("cat", 8, 12, "blue"), ("boat", 3, 7, "pink")))
    assert Counter((thing.noun, thing.colour) for thing in seen.things) == {
        ("cat", "red"): 1,
        ("cat", "blue"): 1,
        ("boat", "pink"): 1,
    }
    assert seen.find("boat").box == (30 - 16, 14 - 16, 30 + 16, 14 + 16) and seen.find("dog") is None
    assert (seen.place, seen.style, seen.night, seen.weather) == ("in the snow", "", True, frozenset())


def test_a_sketch_has_no_colours():
    cells, whole = answers(("cat", 8, 4, "red"))
    whole[len(PLACES) + judging.STYLES.index(PENCIL)] = 5.0
    assert verdict(cells, whole).things[0].colour is None


def test_compare_says_what_is_missing_and_what_is_too_much():
    seed = next(s for s in range(1000) if [t.noun for t in world.sample(s).things] == ["cat", "house"])
    scene = world.sample(seed)
    cat, house = (replace(t, named=True, colour=c) for t, c in zip(scene.things, ("red", "blue")))
    scene = replace(scene, things=(cat, house), place="in the snow", style="", darkness=0.5, extras=(("cloudy", 2),))

    def answer(*things: tuple[str, str], words: str = "in the snow") -> dict:
        found = tuple(Found(noun, 0.9, (0, 0, 9, 9), colour) for noun, colour in things)
        return compare(Verdict(found, "on a road", "", True, frozenset({"snowy"}), {}), scene, words)

    good = answer(("house", "blue"), ("cat", "red"))
    assert good["nouns"] == [True] and good["noun"] == [True, True] and good["colour"] == [True, True]
    assert good["place"] == [False] and good["time"] == [True] and good["style"] == [True]
    assert good["weather"] == [False] and sorted(good["no weather"]) == [False, True, True]  # no clouds, and snow nobody spoke of
    assert answer(("house", "blue"), words="")["place"] == []  # nothing was said of it
    one = answer(("cat", "red"))
    assert one["nouns"] == [False] and sorted(one["noun"]) == [False, True] and one["colour"] == [True]
    twice = answer(("cat", "red"), ("cat", "red"), ("house", "red"))
    assert twice["nouns"] == [False] and twice["noun"] == [True, True] and sorted(twice["colour"]) == [False, True]


def test_the_loss_is_least_for_the_truth():
    _, _, scene, rendered = world.example(next(s for s in range(99) if len(world.sample(s).things) == 2))
    things, whole = (torch.from_numpy(part)[None] for part in train_judge.truth_of(scene, rendered.boxes))
    warm, cells = train_judge.heat(things[..., 1:5])
    assert warm.amax() == 1

    class Says(nn.Module):
        def __init__(self, shift: int):
            super().__init__()
            self.cells = torch.zeros(1, sum(PARTS.values()), 16, 16)
            self.cells[:, : len(NOUNS)] = -9.0
            for (noun, *_), (column, row) in zip(things[0], cells[0].long()):
                self.cells[0, int(noun), row, (column + shift) % 16] = 9.0

        def forward(self, images):
            return self.cells, torch.zeros(1, sum(WHOLE.values()))

    right, shifted = (float(train_judge.loss_of(Says(shift), None, things, whole)) for shift in (0, 3))
    assert right < shifted


def test_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "FILE", tmp_path / "judge.safetensors")
    sd = minip2p.StableDiffusion.load(TOY, device="cpu")
    train_judge.train(tmp_path, sd, 8, 4, 1)
    pictures = (tmp_path / "judged-8.npz").stat().st_mtime_ns
    trained = train_judge.train(tmp_path, sd, 8, 4, 2)
    assert (tmp_path / "judged-8.npz").stat().st_mtime_ns == pictures
    assert torch.load(tmp_path / "judge.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(judging, "FILE", tmp_path / "judge.safetensors")
    again = judging.load()
    for a, b in zip(trained.parameters(), again.parameters()):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)  # written in half precision


# ---------------------------------------------------------------- the one that is shipped


@pytest.fixture(scope="module")
def judge():
    return judging.load()


def test_it_is_small():
    assert judging.FILE.stat().st_size < 2e6


def test_it_is_right_about_unseen_pictures_drawn_and_through_the_vae(judge):
    table = judging.test(judge, minip2p.StableDiffusion.load(TOY, device="cpu"), 0, 60)
    for name, row in table.items():
        for what, right in row.items():
            least = 0.8 if what == "weather" else 0.9  # few flakes or one pale cloud are hard to see, and rarely told
            assert sum(right) / len(right) >= least, (name, what)


def test_its_boxes_are_the_things_boxes(judge):
    examples = [world.example(judging.UNSEEN + 1000 + i) for i in range(30)]
    overlaps = []
    for seen, (_, _, scene, rendered) in zip(judge.look([picture for picture, *_ in examples]), examples):
        for thing, box in zip(scene.things, rendered.boxes):
            truth = Found(thing.noun, 1.0, box, None)
            overlaps.append(max((overlap(truth, found) for found in seen.things if found.noun == thing.noun), default=0.0))
    assert sum(overlaps) / len(overlaps) > 0.75
