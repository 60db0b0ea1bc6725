"""Local blend: the mask against a restatement of it, what it protects, and masks drawn by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import minip2p
from minip2p import LocalBlend, PromptError, Swap
from minip2p.attention import Site
from minip2p.maps import layout_sites
from tests.pipelines import difference
from tests.restatement import blend_mask, marks, sharp_pipeline

STEPS = 5
PROMPTS = ["a red cat on the grass", "a red dog on the grass", "a red bicycle on the grass"]
PAIR = PROMPTS[:2]


@pytest.fixture(scope="module")
def reference_tokenizer(pipeline):
    return pipeline.tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sd1")


@pytest.fixture(scope="module")
def pipeline(folder):
    return sharp_pipeline(folder)


@pytest.fixture(scope="module")
def sd(pipeline, folder) -> minip2p.StableDiffusion:
    return minip2p.StableDiffusion.load(folder, device="cpu")


def run(sd, prompts: list[str], blend, **options) -> minip2p.Result:
    return sd.generate(prompts, edit=Swap(sd.tokenizer, prompts, blend=blend), steps=STEPS, progress=False, **options)


def random_maps(layers: int, height: int, width: int) -> dict[Site, Tensor]:
    """Maps of a few layers of one size, rough enough that masks have holes."""
    generator = torch.Generator().manual_seed(layers)
    sites = [Site(f"up_blocks.{i}.attn2", "cross", "up", height, width) for i in range(layers)]
    return {site: (4 * torch.randn(len(PROMPTS), height * width, 77, generator=generator)).softmax(-1) for site in sites}


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
def test_the_mask_equals_its_restatement(sd, reference_tokenizer, words, exclude, size, latent):
    blend = LocalBlend(sd.tokenizer, PROMPTS, words, exclude, threshold=0.55)
    first, second = random_maps(2, *size), random_maps(3, *size)
    ours = blend.mask(blend.read(first) + blend.read(second), latent)
    summed = sum(sum(maps.values()) / len(maps) for maps in (first, second)).unflatten(1, size)
    inside, outside = (
        torch.stack([marks(reference_tokenizer, prompt, *wanted) for prompt, wanted in zip(PROMPTS, table)])
        for table in (words, exclude)
    )
    assert torch.equal(ours[:, 0], blend_mask(summed, inside, outside, latent, threshold=0.55))
    assert 0 < ours.mean() < 1


def test_a_mask_grows_by_a_pixel_unites_source_and_target_and_loses_the_excluded(sd):
    """On maps with one bright pixel for each word, so that the mask can be told in advance."""
    maps = torch.zeros(3, 16, 16, 77)
    maps[0, 4, 4, 3] = maps[1, 10, 12, 3] = 1.0  # cat in the source, dog in the first target
    maps[2, 15, 0, 3], maps[2, 8, 8, 4] = 0.9, 0.25  # bicycle, two tokens; the second is too faint
    maps[1, 4, 5, 6] = maps[0, 0, 0, 6] = 1.0  # grass
    site = Site("", "cross", "up", 16, 16)
    blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog", "bicycle"], exclude=["grass"])
    expected = torch.zeros(2, 1, 16, 16)
    expected[:, 0, 3:6, 3:6] = expected[0, 0, 9:12, 11:14] = expected[1, 0, 14:, :2] = 1
    expected[0, 0, 4, 5] = 0
    assert torch.equal(blend.mask(blend.read({site: maps.flatten(1, 2)}), (16, 16)), expected)


def test_words_are_looked_up_in_every_prompt_or_in_their_own(sd):
    for words in (["cat", "dog", "bicycle"], "red", ["red", "the grass"]):
        wanted = [words] if isinstance(words, str) else words
        own = [[word for word in wanted if sd.tokenizer.find(prompt, word)] for prompt in PROMPTS]
        everywhere, apiece = (LocalBlend(sd.tokenizer, PROMPTS, given, given) for given in (words, own))
        assert torch.equal(everywhere.inside, apiece.inside) and torch.equal(everywhere.outside, apiece.outside)
    in_source_alone = LocalBlend(sd.tokenizer, PROMPTS, [["red"], [], ["bicycle"]])
    assert [row.nonzero().flatten().tolist() for row in in_source_alone.inside] == [[2], [], [3, 4]]
    assert torch.equal(LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog", ["bicycle"]]).inside[2], in_source_alone.inside[2])


# ---------------------------------------------------------------- in a run


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64), (128, 128)])
def test_outside_the_mask_the_targets_are_the_source_exactly(sd, size):
    """With 32 x 32 latents the maps that are read are smaller than the latents."""
    result = run(sd, PROMPTS, LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog", "bicycle"], threshold=0.9), size=size)
    height, width = size[0] // 4, size[1] // 4
    assert result.masks.shape == (STEPS, 2, 1, height, width) and set(result.masks.unique().tolist()) == {0, 1}
    source = result.latents[0]
    for target, mask in zip(result.latents[1:], result.masks[-1]):
        outside = (mask == 0).expand_as(target)
        assert 0 < outside.float().mean() < 1
        assert torch.equal(target[outside], source[outside]) and not torch.equal(target[~outside], source[~outside])


@pytest.mark.parametrize("start, steps, first", [(0.2, 50, 10), (0.2, 4, 0), (0, 5, 0), (0.29, 100, 28), (1, 5, 5), (0.5, 5, 2)])
def test_blending_starts_at_its_share_of_the_steps(sd, start, steps, first):
    blend = LocalBlend(sd.tokenizer, PAIR, ["cat", "dog"], start=start)
    assert [blend.active(step, steps) for step in range(steps)] == [step >= first for step in range(steps)]


def test_before_its_start_nothing_is_blended(sd):
    nowhere = np.zeros((16, 16))
    without = run(sd, PAIR, None).latents
    never = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=1.0, mask=nowhere)).latents
    last = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=(STEPS - 1) / STEPS, mask=nowhere)).latents
    assert difference(never, without) < 1e-5
    assert torch.equal(last[1], last[0]) and not torch.equal(never[1], never[0])


LEFT = np.zeros((32, 32), dtype=bool)
LEFT[:, :16] = True


@pytest.mark.parametrize(
    "drawn",
    [LEFT, LEFT.astype(np.float32), (LEFT * 255).astype(np.uint8), torch.tensor(LEFT), torch.tensor(LEFT).float() * 0.8 + 0.1,
     (100 + LEFT * 50).astype(np.uint8), LEFT[:, ::-1][:, ::-1], LEFT.tolist(), Image.fromarray(LEFT), Image.fromarray((LEFT * 255).astype(np.uint8)).convert("RGB").resize((64, 64))],
    ids=["bool", "float", "uint8", "tensor", "soft tensor", "soft uint8", "flipped view", "list", "1-bit picture", "RGB picture"],
)  # fmt: skip
def test_a_mask_of_one_s_own(sd, drawn):
    blend = LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=drawn)
    mask = blend.mask(torch.zeros(2, 2, 16, 16), (16, 24))
    assert torch.equal(mask, (torch.arange(24) < 12).float().expand(1, 1, 16, 24))


def test_a_resized_mask_that_overshoots_one_is_still_from_zero_to_one(sd):
    blend = LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=np.full((16, 16), 1.01))
    assert blend.mask(torch.zeros(2, 2, 16, 16), (16, 16)).all()


def test_a_blend_is_no_edit(sd):
    with pytest.raises(PromptError, match="give a Swap, Add or Reweight"):
        sd.generate(PAIR, steps=1, edit=LocalBlend(sd.tokenizer, PAIR, "grass"), progress=False)


def test_in_larger_pictures_the_maps_that_are_read_keep_their_share_of_the_latent():
    sizes = [(96, 0), (48, 1), (24, 2), (12, 3)]  # Stable Diffusion 2.1 at 768 x 768
    sites = [Site(f"up_blocks.{level}.attn2", "cross", "up", side, side, level) for side, level in sizes]
    assert [site.height for site in layout_sites(sites)] == [24]
    assert [site.height for site in layout_sites([Site("", "cross", "up", side, side, level) for side, level in [(16, 0), (8, 1)]])] == [16]


def test_a_mask_of_one_s_own_alone_and_with_words(sd):
    result = run(sd, PAIR, LocalBlend(sd.tokenizer, PAIR, start=0.0, mask=LEFT), size=(64, 96))
    assert torch.equal(result.latents[1, ..., 12:], result.latents[0, ..., 12:])
    assert not torch.equal(result.latents[1, ..., :12], result.latents[0, ..., :12])
    words, shares = ["cat", "dog"], torch.rand(2, 2, 16, 16)
    both, alone = (
        LocalBlend(sd.tokenizer, PAIR, words, "grass", threshold=0.8, mask=mask).mask(shares, (16, 16)) for mask in (LEFT, None)
    )
    assert torch.equal(both[..., :8], alone[..., :8]) and not both[..., 8:].any() and alone[..., 8:].any()


# ---------------------------------------------------------------- what cannot be done is said in one line


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, "no words whose places may change"),
        ({"words": []}, "no words whose places may change"),
        ({"words": [[], []]}, "no words whose places may change"),
        ({"words": [], "mask": LEFT}, "no words whose places may change"),
        ({"words": "bicycle"}, "'bicycle' is in none .* a, red, cat"),
        ({"words": ["cat", "bicycle"]}, "'bicycle' is in none"),
        ({"words": ""}, "'' is in none"),
        ({"words": [["dog"], ["dog"]]}, "'dog' is not in the prompt 'a red cat"),
        ({"words": [["cat"], ["dog"], ["cat"]]}, "words for 3 prompts and there are 2"),
        ({"words": [["cat"], [5]]}, "5"),
        ({"words": 5}, "words are 5"),
        ({"words": ["cat", None]}, "words are"),
        ({"words": "cat", "exclude": "bicycle"}, "'bicycle' is in none"),
        ({"words": "cat", "exclude": 0}, "words are 0"),
        *[({"words": "cat", "start": start}, "start is") for start in (-0.1, 1.1, float("nan"), "0.2", None, True)],
        *[({"words": "cat", "threshold": threshold}, "threshold is") for threshold in (-1, 30, float("nan"), "x", None)],
        ({"mask": np.zeros((16, 16, 3))}, r"mask has shape \(16, 16, 3\)"),
        ({"mask": torch.zeros(1, 16, 16)}, r"mask has shape \(1, 16, 16\)"),
        ({"mask": np.zeros((0, 16))}, r"mask has shape \(0, 16\)"),
        ({"mask": "mask.png"}, "mask is 'mask.png'"),
    ],
    ids=str,
)  # fmt: skip
def test_errors(sd, options, reason):
    with pytest.raises(PromptError, match=reason) as error:
        LocalBlend(sd.tokenizer, PAIR, **options)
    assert "\n" not in str(error.value) and ": " in str(error.value)


@pytest.mark.parametrize("prompts", ["a cat", ["a cat"], [], None])
def test_prompts_must_be_source_and_targets(sd, prompts):
    with pytest.raises(PromptError, match="prompts of an edit"):
        LocalBlend(sd.tokenizer, prompts, "cat")
