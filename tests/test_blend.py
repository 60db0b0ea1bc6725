"""Local blend: the mask against a second implementation, what the mask protects, and a user's masks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import minip2p
from minip2p import LocalBlend, PromptError, RequestError, Site, StableDiffusion, Swap, invert
from tests.inversions import PROMPT, input_picture
from tests.pipelines import difference
from tests.restatement import blend_mask, marks

STEPS, T = 5, 77
PROMPTS = ["a red cat on the grass", "a red dog on the grass", "a red bicycle on the grass"]
PAIR = PROMPTS[:2]


@pytest.fixture(scope="module")
def sd(sharp1) -> StableDiffusion:
    return sharp1.ours


def run(sd, prompts: list[str], blend, **options) -> minip2p.Result:
    edit = Swap(sd.tokenizer, prompts, blend=blend)
    return sd.generate(prompts, **{"edit": edit, "steps": STEPS, "progress": False} | options)


def random_maps(layers: int, height: int, width: int) -> dict[Site, Tensor]:
    """Maps of some layers of one size, rough enough that masks have holes."""
    generator = torch.Generator().manual_seed(layers)
    sites = [Site(f"up_blocks.{i}.attn2", "cross", "up", height, width) for i in range(layers)]
    return {site: (4 * torch.randn(len(PROMPTS), height * width, T, generator=generator)).softmax(-1) for site in sites}


def masks(blend: LocalBlend, latent: tuple[int, int], *steps: dict[Site, Tensor]) -> list[Tensor]:
    """The mask after each step, from the maps (1 + N, P, T) of the layers at that step."""
    blend, found = blend.prepare(torch.device("cpu")), []
    for step, maps in enumerate(steps):
        blend = blend.at(step, len(steps))
        for site, of_site in maps.items():
            of_site = of_site[: len(blend.prompts)]
            heads = torch.stack([1.5 * of_site, 0.5 * of_site], dim=1)  # a mean of heads, not one of them
            assert torch.equal(blend(heads, site), heads)
        found.append(blend.update_mask(latent))
    return found


# ---------------------------------------------------------------- the mask


@pytest.mark.parametrize(
    "words, exclude",
    [
        ([["cat"], ["dog"], ["bicycle"]], [[], [], []]),
        ([["cat"], ["dog", "grass"], ["bicycle"]], [["red"], ["red"], ["red"]]),
        ([["cat"], [], []], [[], ["dog"], ["grass"]]),
        ([["red", "the"]] * 3, [["on", "grass"]] * 3),
    ],
)
@pytest.mark.parametrize("size, latent", [((16, 16), (16, 16)), ((8, 12), (16, 24)), ((16, 16), (32, 32)), ((6, 4), (15, 10))])
def test_the_mask_equals_the_second_implementation(sharp1, words, exclude, size, latent):
    """Of the sum over two steps, with a mean over layers in each."""
    blend = LocalBlend(sharp1.ours.tokenizer, PROMPTS, words, exclude, threshold=0.55)
    first, second = random_maps(2, *size), random_maps(3, *size)
    ours = masks(blend, latent, first, second)[-1]
    summed = sum(sum(maps.values()) / len(maps) for maps in (first, second)).unflatten(1, size)
    include, exclude = (
        torch.stack([marks(sharp1.reference.tokenizer, prompt, *wanted) for prompt, wanted in zip(PROMPTS, table)])
        for table in (words, exclude)
    )
    assert torch.equal(ours[:, 0], blend_mask(summed, include, exclude, latent, threshold=0.55))
    assert 0 < ours.mean() < 1


def test_a_mask_grows_by_a_pixel_unites_source_and_target_and_loses_the_excluded(sd):
    """On maps with one bright pixel per word, so that the mask is known in advance."""
    maps = torch.zeros(3, 16, 16, T)
    maps[0, 4, 4, 3] = maps[1, 10, 12, 3] = 1.0  # cat in the source, dog in the first target
    maps[2, 15, 0, 3], maps[2, 8, 8, 4] = 0.9, 0.25  # bicycle has two tokens; the second is below the threshold
    maps[1, 4, 5, 6] = maps[0, 0, 0, 6] = 1.0  # grass
    site = Site("", "cross", "up", 16, 16)
    blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog", "bicycle"], exclude=["grass"])
    expected = torch.zeros(2, 1, 16, 16)
    expected[:, 0, 3:6, 3:6] = expected[0, 0, 9:12, 11:14] = expected[1, 0, 14:, :2] = 1
    expected[0, 0, 4, 5] = 0
    assert torch.equal(masks(blend, (16, 16), {site: maps.flatten(1, 2)})[0], expected)


def test_words_are_looked_up_in_every_prompt_or_in_their_own(sd):
    for words in (["cat", "dog", "bicycle"], "red", ["red", "the grass"]):
        wanted = [words] if isinstance(words, str) else words
        own = [[word for word in wanted if sd.tokenizer.find(prompt, word)] for prompt in PROMPTS]
        everywhere, per_prompt = (LocalBlend(sd.tokenizer, PROMPTS, given, given) for given in (words, own))
        assert torch.equal(everywhere.include, per_prompt.include) and torch.equal(everywhere.exclude, per_prompt.exclude)
    in_source_alone = LocalBlend(sd.tokenizer, PROMPTS, [["red"], [], ["bicycle"]])
    assert [row.nonzero().flatten().tolist() for row in in_source_alone.include] == [[2], [], [3, 4]]
    assert torch.equal(LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog", ["bicycle"]]).include[2], in_source_alone.include[2])


# ---------------------------------------------------------------- in a run


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 128)])
def test_outside_the_mask_the_targets_are_the_source_exactly(sd, size):
    """With latents of 32 x 32 the maps that are read are smaller than the latents."""
    result = run(sd, PROMPTS, LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog", "bicycle"], threshold=0.9), size=size, steps=2)
    height, width = size[0] // 4, size[1] // 4
    assert result.masks.shape == (2, 2, 1, height, width) and set(result.masks.unique().tolist()) == {0, 1}
    source = result.latents[0]
    for target, mask in zip(result.latents[1:], result.masks[-1]):
        outside = (mask == 0).expand_as(target)
        assert 0 < outside.float().mean() < 1
        assert torch.equal(target[outside], source[outside]) and not torch.equal(target[~outside], source[~outside])


@pytest.mark.parametrize("start, steps, first", [(0.2, 50, 10), (0.2, 4, 0), (0, 5, 0), (0.29, 100, 28), (1, 5, 5), (0.5, 5, 2)])
def test_blending_starts_at_its_share_of_the_steps(sd, start, steps, first):
    blend = LocalBlend(sd.tokenizer, PAIR, ["cat", "dog"], start=start)
    assert [blend.at(step, steps).active for step in range(steps)] == [step >= first for step in range(steps)]


def test_before_its_start_nothing_is_blended(sd):
    nowhere, options = np.zeros((16, 16)), {"steps": 3, "size": 32}
    unblended = run(sd, PAIR, None, **options).latents
    never = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=1.0, mask=nowhere), **options).latents
    last = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=2 / 3, mask=nowhere), **options).latents
    assert difference(never, unblended) < 1e-5
    assert torch.equal(last[1], last[0]) and not torch.equal(never[1], never[0])


def test_a_blend_without_another_edit_is_an_edit(sd):
    """Its attention maps are those of generation without an edit."""
    blend = LocalBlend(sd.tokenizer, PAIR, ["cat", "dog"], start=0.0, threshold=0.8)
    result = run(sd, PAIR, None, edit=blend, record="all")
    plain = run(sd, PAIR, None, edit=None)
    outside = (result.masks[-1, 0] == 0).expand(4, -1, -1)
    assert 0 < outside.float().mean() < 1
    assert torch.equal(result.latents[1][outside], result.latents[0][outside])
    assert difference(result.latents[0], plain.latents[0]) < 1e-5 < difference(result.latents[1], plain.latents[1])
    for site, maps in result.maps.by_site.items():
        assert torch.equal(maps, result.own_maps.by_site[site])


def test_a_second_run_with_the_same_blend_begins_anew(sd):
    blend = LocalBlend(sd.tokenizer, PAIR, ["cat", "dog"], threshold=0.8)
    options = {"steps": 2, "size": 32}
    first, other, again = (run(sd, PAIR, blend, seed=seed, **options) for seed in (0, 1, 0))
    assert torch.equal(first.masks, again.masks) and torch.equal(first.latents, again.latents)
    assert not torch.equal(first.masks, other.masks)


# ---------------------------------------------------------------- a user's mask

LEFT = np.zeros((32, 32), dtype=bool)
LEFT[:, :16] = True


@pytest.mark.parametrize(
    "given",
    [LEFT, LEFT.astype(np.float32), (LEFT * 255).astype(np.uint8), torch.tensor(LEFT), torch.tensor(LEFT).float() * 0.8 + 0.1,
     (100 + LEFT * 50).astype(np.uint8), LEFT[:, ::-1][:, ::-1], LEFT.tolist(), Image.fromarray(LEFT), Image.fromarray((LEFT * 255).astype(np.uint8)).convert("RGB").resize((64, 64))],
    ids=["bool", "float", "uint8", "tensor", "soft tensor", "soft uint8", "flipped view", "list", "1-bit picture", "RGB picture"],
)  # fmt: skip
def test_a_user_s_mask_of_any_kind(sd, given):
    blend = LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=given)
    [mask] = masks(blend, (16, 24), random_maps(1, 16, 24))
    assert torch.equal(mask, (torch.arange(24) < 12).float().expand(1, 1, 16, 24))


def test_a_resized_mask_that_exceeds_one_is_still_from_zero_to_one(sd):
    blend = LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=np.full((16, 16), 1.01))
    assert masks(blend, (16, 16), random_maps(1, 16, 16))[0].all()


@pytest.mark.parametrize("dark", [
    Image.new("L", (16, 16), 1), Image.new("RGB", (16, 16), (90, 90, 90)), Image.fromarray(np.full((16, 16), 300, np.uint16)),
])  # fmt: skip
def test_a_dark_picture_is_no_mask(sd, dark):
    """The white of a picture is known; that of an array is guessed."""
    with pytest.raises(RequestError, match="mask is a dark picture, so nothing may change"):
        LocalBlend(sd.tokenizer, PAIR, mask=dark)
    assert LocalBlend(sd.tokenizer, PAIR, mask=Image.new("L", (16, 16), 200)).user_mask.all()


def test_a_user_s_mask_alone_and_with_words(sd):
    result = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=LEFT), size=(64, 96), steps=2)
    assert torch.equal(result.latents[1, ..., 12:], result.latents[0, ..., 12:])
    assert not torch.equal(result.latents[1, ..., :12], result.latents[0, ..., :12])
    maps = random_maps(1, 16, 16)
    both, alone = (
        masks(LocalBlend(sd.tokenizer, PAIR, ["cat", "dog"], "grass", threshold=0.8, mask=mask), (16, 16), maps)[0]
        for mask in (LEFT, None)
    )
    assert torch.equal(both[..., :8], alone[..., :8]) and not both[..., 8:].any() and alone[..., 8:].any()


@pytest.mark.parametrize(
    "crop, columns, expected",
    [
        (None, 44, 6),  # invert cuts 8 of the 64 columns at both ends: 36 of 48 are marked, 6 of 8 in the latent
        ((0, 0, 48, 48), 24, 4),
        ((40, 0, 64, 24), 52, 4),
    ],
)
def test_a_user_s_mask_is_cut_as_the_inverted_picture(sd, crop, columns, expected, tmp_path):
    """A mask squeezed to the latent's shape instead would mark other columns."""
    picture, mask = input_picture(), np.zeros((48, 64))
    mask[:, :columns] = 1
    options = {"steps": 1, "progress": False}
    inversion = invert(sd, picture, PROMPT, "ddim", size=32, crop=crop, **options)
    inversion.save(tmp_path / "picture.safetensors")
    loaded = minip2p.Inversion.load(tmp_path / "picture.safetensors")
    recording = sd.record(PROMPT, inversion=inversion, progress=False)
    right = (torch.arange(8) < expected).float().expand(1, 1, 1, 8, 8)
    for source in ({"inversion": inversion}, {"inversion": loaded}, {"recording": recording}):
        result = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=mask), steps=None, **source)
        assert torch.equal(result.masks, right)
    fitted = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=LEFT), steps=None, inversion=inversion)
    assert torch.equal(fitted.masks, (torch.arange(8) < 4).float().expand(1, 1, 1, 8, 8)), "a mask on the fitted picture stays"
    with pytest.raises(RequestError, match="mask is 10 wide and 48 high: give one of the picture's size, 64 wide and 48 high"):
        run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=mask[:, :10]), steps=None, inversion=inversion)


# ---------------------------------------------------------------- errors of one line


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, "no words whose places may change"),
        ({"words": []}, "no words whose places may change"),
        ({"words": [[], []]}, "no words whose places may change"),
        ({"words": [], "mask": LEFT}, "no words whose places may change"),
        ({"words": "bicycle"}, "'bicycle' is in none .* 'a', 'red', 'cat'"),
        ({"words": ["cat", "bicycle"]}, "'bicycle' is in none"),
        ({"words": ""}, "'' is in none"),
        ({"words": [["dog"], ["dog"]]}, "'dog' is not in the prompt 'a red cat"),
        ({"words": [["cat"], ["dog"], ["cat"]]}, "words for 3 prompts and there are 2"),
        ({"words": [["cat"], [5]]}, "must be a string, not int: 5"),
        ({"words": 5}, "words are 5"),
        ({"words": ["cat", None]}, "words are"),
        ({"words": "cat", "exclude": "bicycle"}, "'bicycle' is in none"),
        ({"words": "cat", "exclude": 0}, "words are 0"),
        *[({"words": "cat", "start": start}, "start is") for start in (-0.1, 1.1, float("nan"), "0.2", None, True)],
        *[({"words": "cat", "threshold": threshold}, "threshold is") for threshold in (-1, 30, float("nan"), "x", None)],
        ({"mask": np.zeros((16, 16, 3))}, r"mask has shape \(16, 16, 3\)"),
        ({"mask": torch.zeros(1, 16, 16)}, r"mask has shape \(1, 16, 16\)"),
        ({"mask": np.zeros((0, 16))}, r"mask has shape \(0, 16\)"),
        ({"mask": np.full((16, 16), 1000, np.uint16)}, "mask has values up to 1000"),
        ({"mask": np.full((16, 16), np.nan)}, "mask has values up to nan"),
        ({"mask": "mask.png"}, "mask is 'mask.png'"),
    ],
    ids=str,
)  # fmt: skip
def test_errors(sd, options, reason):
    with pytest.raises(RequestError, match=reason) as error:
        LocalBlend(sd.tokenizer, PAIR, **options)
    assert "\n" not in str(error.value) and ": " in str(error.value)


@pytest.mark.parametrize("prompts", ["a cat", ["a cat"], [], None])
def test_prompts_must_be_source_and_targets(sd, prompts):
    with pytest.raises(PromptError, match="prompts of an edit"):
        LocalBlend(sd.tokenizer, prompts, "cat")
