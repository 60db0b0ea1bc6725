"""The scorecard measures what it says it measures, and goes on where it was stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minip2p
from weights.scorecard import compare, report, run, trials
from weights.scorecard.__main__ import FULL
from weights.scorecard.beside import Beside, only_nth
from weights.scorecard.measures import layout, outside, overlap, psnr, quantity
from weights.toyworld import judge, world
from weights.toyworld.judge import Found

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"


MAPS = [  # what the trial `maps` says of two nouns
    {"ratio": ratio, "iou": 0.5, "words": 0.4, "blend": 0.25, "covered": 1.0, "chance": 0.15, "vae": 27.0, "hits": [1, 1, last, 0]}
    for ratio, last in ((4.0, 0), (6.0, 1))
]


@pytest.fixture(scope="module")
def bench():
    return trials.Bench(minip2p.StableDiffusion.load(TOY, device="cpu"), judge.load(), steps=2)


def at(*box: float) -> Found:
    return Found("cat", 0.9, box, "red")


# ---------------------------------------------------------------- measures


def test_overlap():
    assert overlap(at(0, 0, 4, 4), at(0, 0, 4, 4)) == 1
    assert overlap(at(0, 0, 4, 4), at(2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert overlap(at(0, 0, 4, 4), at(5, 5, 6, 6)) == overlap(at(0, 0, 4, 4), None) == 0


def test_psnr_counts_only_what_is_outside_the_boxes():
    a, b = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    b[10:20, 30:40] = 255  # rows, columns
    a, b = Image.fromarray(a), Image.fromarray(b)
    assert psnr(a, b, outside([(30, 10, 40, 20)], a.size)) == pytest.approx(100)
    assert psnr(a, b) == pytest.approx(-10 * np.log10(100 / 64**2))
    assert psnr(a, b, outside([(0, 0, 64, 64)], a.size)) is None


def test_layout_follows_edges_and_not_colours():
    array = np.full((64, 64, 3), 200, np.uint8)
    array[20:40, 20:40] = (250, 60, 60)
    moved, recoloured = np.roll(array, 16, 1), array.copy()
    recoloured[20:40, 20:40] = (60, 60, 180)
    assert layout(Image.fromarray(array), Image.fromarray(recoloured)) > 0.99
    assert layout(Image.fromarray(array), Image.fromarray(moved)) < 0.6


@pytest.mark.parametrize("word", list(trials.GRADED))
def test_quantities_rise_with_what_the_world_draws(word):
    """The same picture with a large amount of the word against one with a small amount."""
    array = np.full((64, 64, 3), (110, 170, 230), np.uint8)
    array[32:] = (120, 190, 90)
    more, place = array.copy(), np.zeros((64, 64), bool)
    place[40:50, 20:30] = True
    if word == "night":
        more = more // 2
    elif word == "cloudy":
        more[2:12, 5:40] = (190, 192, 196)
    elif word == "starry":
        more[4:12:4, 4:60:6] = 255
    elif word == "snowy":
        more[2:30:5, 3:60:5] = 255
    elif word == "flowers":
        more[40:44, 4:60:8] = (240, 60, 150)
    else:
        more[40:50, 20:30] = (230, 30, 30)
    assert quantity(word, Image.fromarray(more), place) > quantity(word, Image.fromarray(array), place)


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize("recorded", [False, True])
def test_edits_beside_each_other_are_those_edits(bench, recorded):
    prompts = ["a cat next to a house", "a dog next to a house"]
    blend = minip2p.LocalBlend(bench.sd.tokenizer, prompts, [["cat"], ["dog"]])
    edits = [None, minip2p.Swap(bench.sd.tokenizer, prompts), minip2p.Swap(bench.sd.tokenizer, prompts, blend=blend)]
    options = {"seed": 1, "steps": 5, "progress": False}
    if recorded:
        options = {"recording": bench.sd.record(prompts[0], **options), "progress": False}
    together = bench.sd.generate([prompts[0]] + [prompts[1]] * 3, edit=Beside(edits), **options).latents
    for edit, latents in zip(edits, together[1:]):
        alone = bench.sd.generate(prompts, edit=edit, **options).latents
        assert torch.allclose(alone[1], latents, atol=1e-4)
        assert torch.allclose(alone[0], together[0], atol=1e-4)


def test_the_naive_swap_takes_one_column():
    tokenizer = minip2p.StableDiffusion.load(TOY, device="cpu").tokenizer
    edit = minip2p.Swap(tokenizer, ["a cat next to a house", "a dog next to a house"])
    naive = only_nth(edit, [2])
    assert naive.mapper.sum() == naive.mapper[0, 2, 2] == 1 and naive.has_source.sum() == 1 and naive.self_replace == (0, 0)


def test_unseen_scenes_are_distinct_and_have_the_objects_asked_for():
    scenes = trials.scenes(trials.UNSEEN, 2, 20)
    assert len({seed for seed, _ in scenes}) == 20
    assert all(len({thing.noun for thing in scene.things}) == 2 for _, scene in scenes)


def test_maps_of_a_known_object_are_measured_right(bench, monkeypatch):
    """If every layer's map of a noun were its object's mask, every measure would be at its best."""
    [(seed, _)] = trials.scenes(trials.UNSEEN + 500_000, 2, 1)
    picture, words, scene, truth = world.example(seed)

    def perfect(sd, *_):
        site = next(site for site in sd.unet.sites(16, 16) if site.kind == "cross" and site.height == 16)
        maps = torch.full((len(trials.TIMESTEPS), 256, sd.tokenizer.context), 1e-3)
        for thing, mask in zip(scene.things, truth.masks):
            cover = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], 16).flatten()
            maps[..., sd.tokenizer.positions(words, thing.noun)[0]] += (cover >= min(0.5, cover.max())).float()
        return {site: maps}

    monkeypatch.setattr(trials, "cross_maps", perfect)
    for row in trials.maps(bench, 0):
        assert row["iou"] == 1 and row["hits"] == [1, 1, 1, 1] and row["ratio"] > 5 and row["covered"] > 0.9


# ---------------------------------------------------------------- the run and the page


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    counts, folder = {"truth": 1}, tmp_path
    file = folder / f"trials-{run.fingerprint(TOY, 2)}.jsonl"
    file.write_text(json.dumps({"trial": "truth", "number": 0, "result": {"kept": True}}) + '\n{"trial": "tru')
    monkeypatch.setattr(run, "get_context", None)  # nothing is left to be run
    assert run.run(str(TOY), counts, 2, folder) == {"truth": [{"kept": True}]}
    assert file.read_text().endswith("}\n")


def test_the_cache_depends_on_code_and_not_on_comments():
    source = '"""One."""\n\n\ndef f(x):\n    """Two."""\n    return x + 1  # three\n'
    assert run.code_of(source) == run.code_of(source.replace("Two", "Zwei").replace("  # three", ""))
    assert run.code_of(source) != run.code_of(source.replace("x + 1", "x + 2"))


def test_the_page_has_every_aim_and_every_trial_is_counted(bench):
    results = {
        name: [
            getattr(trials, name)(bench, number) for number in range(6 if name == "reweight" else 2 if name == "prompt" else 1)
        ]
        for name in FULL
    }
    for trial in results["swap"] + results["reweight"]:
        trial["valid"] = True  # two steps draw no objects that the judge could find
    summary = report.summarise(results) | {"steps": 2, "quick": True}
    page = report.markdown(summary)
    assert len(report.aims(summary)) == 13 and all(what in page for what, *_ in report.aims(summary))
    assert "A quick run" in page and "| night |" in page and "| with local blend |" in page


def test_several_models_stand_in_one_table(monkeypatch, capsys):
    word = {"word": "night", "valid": True, "values": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    monkeypatch.setattr(compare, "run", lambda folder, counts, steps, kept: {"maps": [MAPS] * counts["maps"], "reweight": [word]})
    monkeypatch.setattr(sys, "argv", ["compare", "one/toy", "another"])
    compare.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| toy | 5.0 | 0.50 | 100 / 100 / 50 / 0 % | 40.0 % | 25.0 % |" and rows[3].startswith("| another | 5.0 ")
    assert "| toy | night | 0.100 | 0.200 | 0.300 | 0.400 | 0.500 | 0.600 |" in rows


def test_an_aim_is_reached_or_not():
    rising, above, flat = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.3, 0.3, 0.3, 0.4, 0.5, 0.6], [0.1, 0.2, 0.3, 0.3, 0.3, 0.4]
    assert report.graded([rising])["rises"] == {"-2": True, "0": True}
    assert report.graded([above])["rises"] == {"-2": False, "0": True}
    assert report.graded([flat])["rises"] == {"-2": False, "0": False}
    assert report.graded([[0.1, 0.12, 0.5, 0.51, 0.52, 0.53]])["rises"] == {"-2": True, "0": False}  # by 6 % from 0 on
