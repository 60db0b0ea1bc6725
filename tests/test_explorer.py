"""The explorer's page: what it holds equals the tensors it came from, whatever is in a prompt, within its limits of size."""

import base64
import html
import io
import json
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import minip2p
from minip2p import Add, LocalBlend, RequestError, Reweight, Site, Swap, explore
from minip2p.attention_store import Maps
from minip2p.figures.explorer import TEMPLATE, Page
from minip2p.result import Result

HOUSE = ["a red house on a road", "a red castle on a road"]
NIGHT = ["a dog on the grass", "a dog on the grass at night"]
CATS = ["a cat on the grass", "a dog on the grass", "a red cat on the grass", "a cat"]
TWENTY = "a pencil sketch of a red cat next to a blue ball by a white house on a snowy road at night"
QUIET = {"progress": False}


def read(page: str) -> dict:
    """The data inside a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpack(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


def decoded(maps: dict, packed: dict, columns: int) -> np.ndarray:
    """(frames, columns, height, width), as the page's script reads them."""
    codes = unpack(packed["cells"], np.uint8).reshape(-1, columns, maps["height"], maps["width"])
    codes = np.cumsum(codes, axis=0, dtype=np.uint8)
    if maps["signed"]:
        signed = codes.astype(np.int8).astype(float)
        return maps["top"] * np.sign(signed) * (signed / 127) ** 2
    return maps["top"] * (codes / 255.0) ** 2


def folded(maps: Maps, prompt: int, size: tuple[int, int], tokens: list[dict]) -> torch.Tensor:
    """(steps + 1, columns, height, width) from the tensors: a column is a token, or all padding; the last frame is the mean."""
    each = maps.tokens(prompt, size)
    columns = torch.stack([each[..., token["at"] : token["at"] + token["count"]].sum(-1) for token in tokens], 1)
    return torch.cat([columns, columns.mean(0, keepdim=True)])


@pytest.fixture(scope="module")
def swap(toy):
    """A swap with a local blend, and its result with everything kept."""
    blend = LocalBlend(toy.tokenizer, HOUSE, [["house"], ["castle"]])
    edit = Swap(toy.tokenizer, HOUSE, {"castle": (0.25, 0.8), "default_": 0.6}, 0.5, blend)
    return toy.generate(HOUSE, seed=3, steps=8, edit=edit, record="all", **QUIET), edit


@pytest.fixture(scope="module")
def night(toy):
    """A re-weight of -2."""
    edit = Reweight(toy.tokenizer, NIGHT, {"night": -2.0}, cross_replace_steps=1.0)
    return toy.generate(NIGHT, steps=4, edit=edit, record="all", **QUIET), edit


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ["swap", "night"])
def test_cells_and_shares_are_the_tensors(name, toy, request):
    result, edit = request.getfixturevalue(name)
    data = read(explore(toy, result, edit))
    assert [(maps["height"], maps["width"]) for maps in data["maps"]] == result.maps.sizes
    for maps in data["maps"]:
        size = maps["height"], maps["width"]
        assert maps["layers"] == result.maps.layers(size)
        for prompt, words in enumerate(data["prompts"]):
            for view, kept in (("after", result.maps), ("before", result.own_maps)):
                expected = folded(kept, prompt, size, words["tokens"])
                packed = maps[view][prompt]
                if packed is None:  # the source is not edited
                    assert view == "before" and torch.equal(expected, folded(result.maps, prompt, size, words["tokens"]))
                    continue
                found = decoded(maps, packed, len(words["tokens"]))
                assert np.abs(found - expected.numpy()).max() <= maps["top"] / (127 if maps["signed"] else 255)
                shares = unpack(packed["shares"], "<f4").reshape(len(expected), -1)
                assert np.allclose(shares, expected.mean((2, 3)), atol=1e-6)


def test_small_shares_survive_eight_bits(toy, swap):
    """Cells of a few percent keep two digits beside a start or padding column of nearly one."""
    result, edit = swap
    data = read(explore(toy, result, edit))
    maps, tokens = data["maps"][0], data["prompts"][0]["tokens"]
    expected = folded(result.maps, 0, result.maps.sizes[0], tokens).numpy()
    small = (expected > 0.01) & (expected < 0.05)
    error = np.abs(decoded(maps, maps["after"][0], len(tokens)) - expected)[small]
    assert small.any() and error.max() < 0.001


def test_words_and_tokens_are_the_tokenizers(toy, swap):
    result, edit = swap
    for prompt, words in zip(HOUSE, read(explore(toy, result, edit))["prompts"]):
        assert [(word["text"], word["columns"]) for word in words["words"]] == toy.tokenizer.words(prompt)
        assert [token["kind"] for token in words["tokens"]][:1] == ["start"]
        last = words["tokens"][-1]
        assert last["kind"] == "padding" and last["at"] + last["count"] == toy.tokenizer.context
        for word in words["words"]:
            assert "".join(words["tokens"][column]["text"] for column in word["columns"]) == word["text"]


@pytest.mark.parametrize("name", ["swap", "night"])
def test_the_edit_is_the_edit(name, toy, request):
    result, edit = request.getfixturevalue(name)
    data = read(explore(toy, result, edit))
    [target], source, tokens = data["edit"]["targets"], data["prompts"][0]["tokens"], data["prompts"][1]["tokens"]
    single = [j for j, token in enumerate(tokens) if token["count"] == 1]
    given = {(i, j): weight for i, j, weight in target["pairs"]}
    for i, token in enumerate(source):
        for j in single if token["count"] == 1 else []:
            assert given.get((i, j), 0) == pytest.approx(edit.mapper[0, token["at"], tokens[j]["at"]].item(), abs=1e-4)
    for j in single:
        assert target["has_source"][j] == edit.has_source[0, tokens[j]["at"]]
        assert target["weights"][j] == edit.equalizer[0, tokens[j]["at"]]
    for step in range(result.steps):
        at = edit.at(step, result.steps)
        for j in single:
            first, last = target["windows"][j]
            assert (first <= step < last) == at.cross_open[0, 0, 0, tokens[j]["at"]].item()
        assert at.any_open == bool(at.cross_open.any())
        assert (data["edit"]["self"][0] <= step < data["edit"]["self"][1]) == at.self_open
        if edit.blend:
            assert (step >= data["blend"]) == edit.blend.at(step, result.steps).active


def test_masks_are_the_masks(toy, swap):
    result, edit = swap
    masks = read(explore(toy, result, edit))["masks"]
    assert (masks["height"], masks["width"]) == tuple(result.masks.shape[-2:])
    bits = np.unpackbits(unpack(masks["targets"][0], np.uint8))[: result.masks[:, 0].numel()]
    assert np.array_equal(bits.reshape(result.masks[:, 0].shape), result.masks[:, 0].numpy())


def picture(url: str) -> np.ndarray:
    kind, data = url.split(";base64,")
    assert kind in ("data:image/webp", "data:image/png")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=float)


def test_pictures(toy, swap):
    """The final pictures exactly, and for each step the predicted x0."""
    result, edit = swap
    pictures = read(explore(toy, result, edit))["pictures"]
    assert pictures["at"] == list(range(1, 9))
    for prompt, final in enumerate(pictures["final"]):
        assert np.array_equal(picture(final), np.asarray(result.images[prompt]))
        for step, url in enumerate(pictures["steps"][prompt]):
            [expected] = toy.decode_latents(result.pred_x0[step, prompt : prompt + 1])
            assert np.abs(picture(url) - np.asarray(expected)).mean() < 6  # of 255


def test_without_what_all_keeps_there_is_no_before(toy, swap):
    result, edit = swap
    data = read(explore(toy, replace(result, own_maps=None), edit))
    assert all(maps["before"] == [None, None] for maps in data["maps"])
    assert data["edit"]["targets"][0]["pairs"]


# ---------------------------------------------------------------- requests


def test_refusals_are_one_line(toy, swap):
    result, edit = swap
    other = Swap(toy.tokenizer, ["a red house on a road", "a red tree on a road"])
    windows = Swap(toy.tokenizer, HOUSE, 0.2)
    for arguments, words in [
        ((replace(result, maps=None),), "record=True"),
        ((result, other), "a red tree"),
        ((result, windows), "is not the edit of this result"),
        ((replace(result, edit=None), edit), "is not the edit of this result"),
        ((result, Around(edit)), "the edit is not the edit of this result"),
        ((result, edit, (5, 5)), "(5, 5)"),
        ((result, edit, 8), "the sizes are"),
    ]:
        with pytest.raises(RequestError, match=re.escape(words)) as error:
            explore(toy, *arguments)
        assert "\n" not in str(error.value)


def test_the_edit_may_be_left_out_or_made_again(toy, swap):
    result, edit = swap
    blend = LocalBlend(toy.tokenizer, HOUSE, [["house"], ["castle"]])
    again = Swap(toy.tokenizer, HOUSE, {"castle": (0.25, 0.8), "default_": 0.6}, 0.5, blend)
    assert explore(toy, result) == explore(toy, result, edit) == explore(toy, result, again)
    elsewhere = replace(again, blend=LocalBlend(toy.tokenizer, HOUSE, "road"))
    with pytest.raises(RequestError, match="is not the edit of this result"):
        explore(toy, result, elsewhere)


class Around(minip2p.AttentionEdit):
    """An edit of one's own that uses a Swap."""

    def __init__(self, swap):
        self.swap = swap

    def at(self, step, steps):
        return self.swap.at(step, steps)


def test_an_edit_inside_another_one_may_be_shown(toy):
    swap = Swap(toy.tokenizer, HOUSE)
    result = toy.generate(HOUSE, steps=2, edit=Around(swap), record=True, **QUIET)
    assert read(explore(toy, result))["edit"] is None and read(explore(toy, result, swap))["edit"]["targets"]


def test_a_local_blend_alone_says_when_it_begins(toy):
    blend = LocalBlend(toy.tokenizer, HOUSE, ["house", "castle"], start=0.5)
    result = toy.generate(HOUSE, steps=4, edit=blend, record=True, **QUIET)
    data = read(explore(toy, result))
    assert data["blend"] == 2 and data["edit"] is None and data["masks"]


def test_one_size_on_request(toy, swap):
    result, edit = swap
    [maps] = read(explore(toy, result, edit, size=(8, 8)))["maps"]
    assert (maps["height"], maps["width"]) == (8, 8)


@pytest.mark.parametrize("steps, guidance, prompts, make", [
    (3, 7.5, "cat", None),
    (3, 7.5, "", None),
    (2, 7.5, HOUSE, None),
    (1, 7.5, HOUSE, Swap),
    (3, 1, HOUSE, Swap),
    (3, 7.5, CATS, Add),
    (3, 7.5, TWENTY, None),
    (2, 7.5, HOUSE, lambda tokenizer, prompts: lambda attn, site: attn.roll(1, -1)),
])  # fmt: skip
def test_other_runs(toy, steps, guidance, prompts, make):
    edit = make and make(toy.tokenizer, prompts)
    result = toy.generate(prompts, steps=steps, guidance=guidance, edit=edit, record="all", **QUIET)
    data = read(explore(toy, result, edit))
    assert len(data["prompts"]) == len(data["maps"][0]["after"]) == len(data["pictures"]["steps"]) == len(result.prompts)
    assert data["shown"] == list(range(1, steps + 1))
    assert (data["edit"] is not None) == isinstance(edit, minip2p.Edit)


def test_recordings_and_inversions(toy):
    edit = Swap(toy.tokenizer, HOUSE)
    recording = toy.record(HOUSE[0], seed=3, steps=4, **QUIET)
    inversion = minip2p.invert(toy, toy.generate(HOUSE[0], steps=4, **QUIET).images[0], HOUSE[0], "ddim", steps=4, **QUIET)
    for kept in ({"recording": recording}, {"inversion": inversion}):
        result = toy.generate(HOUSE, edit=edit, record="all", **kept, **QUIET)
        data = read(explore(toy, result, edit))
        assert data["run"]["seed"] is None and len(data["pictures"]["steps"][0]) == 4


# ---------------------------------------------------------------- text

EVIL = [
    "a 🐱 on <script>alert(1)",
    "a \"dog\" & 🐕 on </script> </title>",
    "<!-- a cat's hat",
    "a \u2028 dog \\u003c %% cat",
]  # fmt: skip


def test_text_is_escaped(toy):
    result = toy.generate(EVIL, steps=1, record=True, **QUIET)
    page = explore(toy, result)
    assert [prompt["text"] for prompt in read(page)["prompts"]] == EVIL
    template = TEMPLATE.read_text(encoding="utf-8")
    for tag in ("<script", "</script", "</title", "<!--"):
        assert page.count(tag) == template.count(tag)
    assert html.unescape(re.search("<title>(.*?)</title>", page, re.DOTALL)[1]) == " \u2192 ".join(EVIL)
    emoji = read(page)["prompts"][0]["words"][1]
    pieces = [read(page)["prompts"][0]["tokens"][column]["text"] for column in emoji["columns"]]
    assert emoji["text"] == "🐱" and pieces == [f"🐱 {i + 1}/{len(pieces)}" for i in range(len(pieces))]


def test_the_page_loads_nothing(toy, swap):
    page = explore(toy, *swap)
    assert set(re.findall(r"https?://[^\s\"'`]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<link|src=|@import|url\(|fetch\(|XMLHttp", page)


def test_a_notebook_shows_the_page(toy, swap):
    page = explore(toy, *swap)
    assert isinstance(page, str) and isinstance(page, Page) and len(repr(page)) < 60
    frame = page._repr_html_()
    assert frame.startswith("<iframe ") and html.unescape(re.search('srcdoc="(.*?)"', frame, re.DOTALL)[1]) == page


# ---------------------------------------------------------------- size


def test_fifty_steps_of_the_toy_are_under_a_megabyte(toy):
    edit = Swap(toy.tokenizer, HOUSE)
    page = explore(toy, toy.generate(HOUSE, seed=3, edit=edit, record="all", **QUIET), edit)
    data = read(page)
    assert len(data["shown"]) == len(data["pictures"]["at"]) == 50 and len(data["maps"]) == 3
    assert len(page.encode()) < 1e6


def large(toy, prompts: list[str], steps: int) -> Result:
    """What Stable Diffusion returns at 512 x 512, with maps that are rougher than real ones."""
    context, generator = toy.tokenizer.context, torch.Generator().manual_seed(0)
    sites = [Site(f"{side}", "cross", "up", side, side, side <= 16) for side in (64, 32, 16, 8)]

    def maps() -> Maps:
        scores = {site: torch.randn(1, len(prompts), site.height**2, context, generator=generator) for site in sites}
        drift = {site: torch.randn(steps, len(prompts), site.height**2, context, generator=generator) for site in sites[2:3]}
        made = {site: (scores[site] + 0.1 * drift.get(site, torch.zeros(steps, 1, 1, 1))).softmax(-1).half() for site in sites}
        return Maps(toy.tokenizer, tuple(prompts), made)

    latents = torch.zeros(steps, len(prompts), 4, 64, 64)
    images = [noise_picture(seed) for seed in range(len(prompts))]
    return Result(images, latents[-1], latents[0], latents, latents, tuple(prompts), steps, 7.5, 0, None, maps(), maps())


def noise_picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC)


def test_pages_of_stable_diffusion_are_under_four_megabytes(toy):
    """Only the 16 x 16 maps, at most 13 pictures a prompt, of at most 256 pixels; all steps while there is room."""
    sd = SimpleNamespace(decode_latents=lambda latents: [noise_picture(i) for i in range(len(latents))])
    words = ["cat", "dog", "red", "house", "road", "grass", "night", "snow"]
    for prompts, steps in ((HOUSE, 50), ([" ".join(words * 3), " ".join(words[::-1] * 3)], 50), ([" ".join(words * 3)] * 4, 50)):
        page = explore(sd, large(toy, prompts, steps))
        data = read(page)
        assert [(maps["height"], maps["width"]) for maps in data["maps"]] == [(16, 16)]
        assert len(data["pictures"]["at"]) <= 13 and picture(data["pictures"]["steps"][0][0]).shape == (256, 256, 3)
        assert data["shown"][0] == 1 and data["shown"][-1] == steps and set(data["pictures"]["at"]) <= set(data["shown"])
        assert len(page.encode()) < 4e6
        if len(prompts) == 2:
            assert data["shown"] == list(range(1, 51))


def test_the_mean_is_over_all_steps_where_some_are_left_out(toy, monkeypatch):
    monkeypatch.setattr("minip2p.figures.explorer.ROOM", 40_000)
    result = toy.generate(HOUSE[0], steps=20, record=True, **QUIET)
    data = read(explore(toy, result))
    [maps], tokens = data["maps"], data["prompts"][0]["tokens"]
    assert 2 <= len(data["shown"]) < 20
    shares = unpack(maps["after"][0]["shares"], "<f4").reshape(-1, len(tokens))
    expected = folded(result.maps, 0, (16, 16), tokens).mean((2, 3))
    assert np.allclose(shares[-1], expected[-1], atol=1e-6)
    assert np.allclose(shares[:-1], expected[[step - 1 for step in data["shown"]]], atol=1e-6)
