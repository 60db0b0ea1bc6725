"""The scorecard measures what it says it measures, and goes on where it was stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minip2p
from weights.scorecard import edits, report, run
from weights.scorecard.bench import Bench
from weights.scorecard.beside import Beside, only_nth, own_maps, unaligned
from weights.scorecard.figure import figure
from weights.scorecard.measures import amount, judged, overlap, points, psnr_outside
from weights.scorecard.report import markdown
from weights.scorecard.run import TRIALS
from weights.scorecard.summary import by_noun, methods, reweighted, summarise, wrong_pairs
from weights.toyworld import judge
from weights.toyworld.judge import Found

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"


@pytest.fixture(scope="module")
def sd():
    return minip2p.StableDiffusion.load(TOY, device="cpu")


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
    assert psnr_outside(a, b, [at(30, 10, 40, 20), None]) == pytest.approx(100)
    assert psnr_outside(a, b, []) == pytest.approx(-10 * np.log10(100 / 64**2))
    assert psnr_outside(a, b, [at(0, 0, 64, 64)]) is None


def test_judged_pairs_each_thing_with_itself():
    row = judged((at(0, 0, 4, 4), at(0, 0, 4, 4)), (at(0, 0, 4, 4), None), reached=True)
    assert row == {"reached": True, "overlap": [1.0, 0.0]}


def test_points():
    mask = np.zeros((64, 64), bool)
    mask[32:48, 32:48] = True
    shares = torch.zeros(2, 16, 16)
    shares[0, 9, 10] = 1.0  # inside
    shares[1, 2, 2] = 3.0  # outside, and the strongest of the mean
    assert points(shares, mask) == {"mean": False, "levels": [True, False], "chance": 16 / 256}


def test_specks_are_bright_points_in_the_upper_third():
    night = np.full((63, 60, 3), 20, np.uint8)
    night[5, ::10] = night[50, ::10] = 250  # six stars in the sky, and six lights that are not in it
    night[15:, 30:] = 90  # an edge is not bright enough
    assert amount("specks", Image.fromarray(night), None, None) == pytest.approx(6 / (21 * 60))


def test_nouns_of_like_size():
    assert edits.likeness("house", "boat") == 1  # both from 28 to 40 pixels high and as wide
    assert edits.likeness("ball", "castle") == edits.likeness("castle", "ball") == pytest.approx((19.5 / 42) ** 2)
    drawn = [edits.drawn_anew(number, "house", "boat") for number in range(100)]
    assert drawn[7] == edits.drawn_anew(7, "house", "boat") and (28 / 40) ** 2 <= min(drawn) < max(drawn) <= 1


# ---------------------------------------------------------------- edits beside each other


def test_edits_beside_each_other_are_what_they_are_alone(sd):
    source, target = prompts = ["a cat next to a house in the snow", "a bicycle next to a house in the snow"]
    swap = minip2p.Swap(sd.tokenizer, prompts)
    weighted = minip2p.Reweight(sd.tokenizer, prompts, {"snow": -2}, base=swap)
    tried = [None, swap, only_nth(swap, sd.tokenizer.positions(target, "bicycle")), own_maps(weighted), unaligned(swap), swap]
    every = [source] + [target] * len(tried)
    blend = minip2p.LocalBlend(sd.tokenizer, every, [["cat"]] + [["bicycle"]] * len(tried), threshold=0.8)
    start = sd.noise(3)
    together = sd.generate(every, latents=start, steps=5, edit=Beside(tried, blend, [6]), progress=False).latents
    alone = minip2p.LocalBlend(sd.tokenizer, prompts, ["cat", "bicycle"], threshold=0.8)
    tried[-1] = minip2p.Swap(sd.tokenizer, prompts, blend=alone)
    alone = [sd.generate(prompts, latents=start, steps=5, edit=edit, progress=False).latents for edit in tried]
    torch.testing.assert_close(together[:1], alone[0][:1], atol=1e-3, rtol=1e-4)
    for row, pair in zip(together[1:], alone):
        torch.testing.assert_close(row, pair[1], atol=1e-3, rtol=1e-4)
    for i, row in enumerate(together):  # and each is another picture
        assert all((row - other).abs().max() > 0.01 for other in together[:i]), i


def test_the_naive_swap_carries_one_map(sd):
    prompts = ["a cat next to a house in the snow", "a dog next to a house in the snow"]
    (dog,) = positions = sd.tokenizer.positions(prompts[1], "dog")
    edit = only_nth(minip2p.Swap(sd.tokenizer, prompts), positions)
    maps = torch.rand(2, 2, 256, 77)
    site = next(site for site in sd.unet.sites(16, 16) if site.kind == "cross")
    out = edit.at(0, 10)(maps, site)
    own = torch.arange(77) != dog
    assert torch.equal(out[1][..., own], maps[1][..., own]) and torch.equal(out[1][..., dog], maps[0][..., dog])


@pytest.mark.parametrize("number", [0, 1, 2, 37, 199])
def test_swap_prompts_differ_in_one_noun(sd, number):
    (source, target), (old, new), other = edits.swapped(number)
    assert source.replace(old, new) == target and other in source and len({old, new, other}) == 3
    assert (source.index(old) < source.index(other)) == bool(number % 2)
    minip2p.Swap(sd.tokenizer, [source, target])


# ---------------------------------------------------------------- from results to numbers


def test_methods_counts_both_only_where_every_thing_stayed():
    def trial(reached: bool, *overlaps: float) -> dict:
        return {"edit": {"reached": reached, "overlap": list(overlaps), "psnr": 20.0}}

    table = methods([trial(True, 0.9, 0.6), trial(True, 0.9, 0.4), trial(False, 0.9, 0.9)])["edit"]
    assert table["reached"] == (pytest.approx(2 / 3), 3) and table["both"] == (pytest.approx(1 / 3), 3)
    assert table["overlap"][0] == pytest.approx((0.75 + 0.65 + 0.9) / 3) and table["psnr"] == (20.0, 3)


def test_reweighting_must_rise_at_every_weight():
    def trial(*values: float) -> dict:
        return {"values": dict(zip(map(str, edits.WEIGHTS), values)), "rows": {}}

    clearly = reweighted([trial(0, 1, 2, 3, 4, 5), trial(0, 1, 2, 2.5, 3, 9)])
    assert clearly["rises"] and clearly["clear"] == 4  # all but the last: 1 and 6 have a mean of 3.5 and a standard error of 2.5
    assert not reweighted([trial(0, 1, 2, 3, 4, 50), trial(1, 0, 0, 0, 0, 0)])["rises"]  # by the mean, but in one picture of two
    dip = reweighted([trial(0, 1, 2, 1.5, 4, 5)])
    assert not dip["rises"] and dip["more at the end"] == (1.0, 1) and dip["means"] == [0, 1, 2, 1.5, 4, 5]


def test_nouns_and_wrong_pairs():
    rows = [{"nouns": asked.split(), "seen": seen.split()} for asked, seen in (
        ("cat dog", "cat dog"), ("cat dog", "cat cat"), ("cat dog", "cat"), ("cat dog", "cat boat"), ("cat dog", "boat"),
        ("cat dog", "cat dog dog"), ("cat cat", "cat"))]  # fmt: skip
    assert by_noun(rows) == {"dog": (pytest.approx(2 / 6), 6), "cat": (pytest.approx(6 / 8), 8)}
    assert wrong_pairs(rows) == dict.fromkeys(wrong_pairs(rows), 1)


# ---------------------------------------------------------------- the whole


def test_every_trial_runs_twice_alike_and_can_be_reported(sd, tmp_path):
    bench = Bench(sd, judge.load(), steps=2)
    runs = [{name: [trial(bench, number) for number in range(1 + name.startswith("obeyed"))] for name, trial in TRIALS.items()}
            for _ in range(2)]  # fmt: skip
    first, second = map(json.dumps, runs)
    assert first == second
    results = json.loads(first)  # as they come back from the file
    summary = summarise(results) | {"steps": 2, "quick": True, "cores": 2, "seconds of an edit": 3.2}
    table = markdown(summary, "card.png")
    assert "3.2 s on 2 CPU cores" in table and "2 steps" in table
    assert all(len({line.count("|") for line in part.splitlines()}) == 1 for part in tables(table))
    figure(summary).savefig(tmp_path / "card.png")
    assert Image.open(tmp_path / "card.png").width > 600


def test_an_aim_is_reached_or_not():
    assert report.met(0.9, 0.9) == "reached" and report.met(None, 0.9) == report.met(0.89, 0.9) == "not reached"


def test_every_aim_stands_beside_its_number():
    def said(share: float) -> dict:
        return dict.fromkeys(("noun", "nouns", "colour", "place", "style"), (share, 200))

    def methods(edit: float, without: float) -> dict:
        return {name: {"reached": (share, 200), "both": (share, 200)} for name, share in (("edit", edit), ("no control", without))}

    summary = {
        "obeyed with less": {1: said(0.97), 2: said(0.96)}, "pointing": {"16": {"mean": (0.94, 300)}},
        "edits": {"swap a noun in a pair": methods(0.91, 0.3), "the same, nouns of like size": methods(0.8, 0.4),
                  'add "a child\'s drawing of"': methods(1.0, 1.0), 'add "at night"': {}},
        "other thing kept": {"edit": (0.99, 200), "no control": (0.5, 200)}, "vae": (28.5, 200), "seconds of an edit": 2.4, "cores": 2,
    }  # fmt: skip
    lines = [line.split(" | ") for line in report.short(summary).splitlines()[2:]]
    assert [cells[-1].strip(" |") for cells in lines] == [
        "97%: reached", "90%: reached", "90%: reached", "97%: not reached", "97%: not reached", "95%: not reached", "", "",
        "90%: reached", "3: reached", "90%: not reached", "97%: reached", "97%: not reached", "32 dB: not reached", "5 s on two: reached",
    ]  # fmt: skip
    assert lines[8][1:3] == ["91.0% of 200", "30.0% of 200"] and lines[9][1] == "3.0" and lines[12][1] == "–"


def tables(text: str) -> list[str]:
    parts = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(parts) == 7
    return parts


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "fingerprint", lambda weights, steps: "x")
    file = tmp_path / "trials-x.jsonl"
    kept = [{"trial": "swap", "number": i, "result": {"i": i}} for i in (1, 0)]
    file.write_text("".join(json.dumps(line) + "\n" for line in kept) + '{"trial": "sw')  # killed in the middle of a line
    assert run.run(str(TOY), {"swap": 2}, 2, tmp_path) == {"swap": [{"i": 0}, {"i": 1}]}  # nothing measured again
    assert [json.loads(line) for line in file.read_text().splitlines()] == kept


def test_the_kept_results_belong_to_these_weights_and_steps(tmp_path):
    (tmp_path / "weights").write_bytes(b"one")
    one = run.fingerprint(str(tmp_path), 20)
    assert one == run.fingerprint(str(tmp_path), 20) != run.fingerprint(str(tmp_path), 50)
    (tmp_path / "weights").write_bytes(b"two")
    assert run.fingerprint(str(tmp_path), 20) != one
