"""The denoising loop: guidance, noise, what a result holds; pictures in and out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import minip2p
from minip2p import LocalBlend, PromptError, RequestError, Reweight, StableDiffusion, Swap
from minip2p.pipeline import defaults
from minip2p.result import side_by_side
from minip2p.scheduler import ddim_step, pred_x0
from tests.pipelines import difference

STEPS, T = 4, 77
PROMPTS = ["a red cat on the grass", "a bicycle on a red bicycle"]


@pytest.fixture(scope="module", params=["sharp1", "sharp2"])
def both(request):
    """A model that predicts the noise, and one that predicts v."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def sd(both) -> StableDiffusion:
    return both.ours


@pytest.fixture(scope="module")
def recorded(sd) -> minip2p.Result:
    return generate(sd, record=True)


def generate(sd: StableDiffusion, prompts=PROMPTS, **options) -> minip2p.Result:
    return sd.generate(prompts, **{"steps": STEPS, "progress": False} | options)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return difference(a, b) < 1e-5


# ---------------------------------------------------------------- recorded maps


def test_each_pixel_distributes_all_its_attention(recorded):
    for maps in (*recorded.maps.by_site.values(), recorded.maps.tokens(1)):
        torch.testing.assert_close(maps.float().sum(-1), torch.ones(maps.shape[:-1]), rtol=0, atol=2e-3)


def test_all_cross_attention_layers_are_recorded(sd, recorded):
    sites = [site for site in sd.unet.sites(16, 16) if site.kind == "cross"]
    assert list(recorded.maps.by_site) == sites and {site.place for site in sites} == {"down", "mid", "up"}
    for site, maps in recorded.maps.by_site.items():
        assert maps.shape == (STEPS, 2, site.height * site.width, T) and maps.dtype == torch.float16


def test_maps_of_words(sd, recorded):
    maps = recorded.maps
    tokens = maps.tokens(1)
    assert tokens.shape == (STEPS, 16, 16, T) and maps.word("cat").shape == (STEPS, 16, 16)
    positions = [2, 3, 7, 8]  # the two tokens of "bicycle", twice
    assert torch.equal(maps.word("bicycle", prompt=1), tokens[..., positions].sum(-1))
    assert torch.equal(maps.word("red bicycle", prompt=1), tokens[..., 6:9].sum(-1))
    assert torch.equal(maps.word("bicycle", prompt=1, mean=True), maps.word("bicycle", 1).mean(0))
    assert not torch.allclose(maps.word("red", 0), maps.word("red", 1))
    for word, prompt, reason in (
        ("cat", 1, "'cat' is not in the prompt"),
        ("dog", 0, "'a', 'red', 'cat'"),
        ("", 0, "''"),
    ):
        with pytest.raises(PromptError, match=reason):
            maps.word(word, prompt)
    for options, reason in (({"prompt": 2}, "prompt is 2 and there are"), ({"size": (5, 5)}, r"size \(5, 5\): the sizes are \[\(16, 16\), ")):
        with pytest.raises(RequestError, match=reason):
            maps.word("cat", **options)


def test_maps_of_each_size(recorded):
    maps = recorded.maps
    assert maps.sizes == [(16, 16), (8, 8), (4, 4)]
    for size in maps.sizes:
        layers = [of_site for site, of_site in maps.by_site.items() if (site.height, site.width) == size]
        torch.testing.assert_close(maps.tokens(1, size).flatten(1, 2), torch.stack([of[:, 1].float() for of in layers]).mean(0))
        assert maps.layers(size) == f"{len(layers)} layer{'s' * (len(layers) > 1)} of {size[0]} x {size[1]}"
    assert torch.equal(maps.word("cat", size=(16, 16)), maps.word("cat"))


@pytest.mark.parametrize("size, shape", [((64, 96), (8, 12)), (128, (16, 16)), ((32, 48), (8, 12))])
def test_word_maps_are_of_the_finest_low_resolution_layers(sd, size, shape):
    result = generate(sd, "a cat", size=size, steps=1, record=True)
    assert result.maps.word("cat", mean=True).shape == shape
    height, width = (size, size) if isinstance(size, int) else size
    assert result.images[0].size == (width, height) and result.latents.shape == (1, 4, height // 4, width // 4)


def test_recording_does_not_change_the_picture(sd, recorded):
    plain = generate(sd)
    assert plain.maps is None and close(recorded.latents, plain.latents)
    assert all(np.abs(np.int16(a) - np.int16(b)).max() <= 1 for a, b in zip(plain.images, recorded.images))


def test_recorded_maps_are_the_edited_ones(sd, recorded):
    prompts = [PROMPTS[0], PROMPTS[0]]
    maps = generate(sd, prompts, edit=Reweight(sd.tokenizer, prompts, {"cat": 0}, cross_replace_steps=0.5), record=True).maps
    assert not maps.word("cat", 1)[: STEPS // 2].any() and maps.word("cat", 1)[STEPS // 2 :].all()
    torch.testing.assert_close(maps.word("cat", 0), recorded.maps.word("cat", 0), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- record="all"


def test_maps_before_the_edit_are_those_of_a_run_without_an_edit_at_the_first_step(sd):
    """At later steps the edit has changed the latents, and with them the target's own maps."""
    prompts = ["a red cat on the grass", "a red dog on the grass"]
    edit = Swap(sd.tokenizer, prompts, 1.0, 0.0)  # edited self-attention would change cross-attention in the same step
    edited, free = generate(sd, prompts, edit=edit, record="all"), generate(sd, prompts, record=True)
    assert edited.own_maps.by_site.keys() == edited.maps.by_site.keys() == free.maps.by_site.keys()
    first = next(iter(free.maps.by_site))  # later layers see features that the first layer's edit has changed
    assert difference(edited.own_maps.by_site[first][0].float(), free.maps.by_site[first][0].float()) < 1e-3
    for site, free_maps in free.maps.by_site.items():
        own, maps = edited.own_maps.by_site[site].float(), edited.maps.by_site[site].float()
        assert difference(own[0, 0], free_maps[0, 0].float()) < 1e-3, "the source's maps are never edited"
        assert difference(maps[:, 1], maps[:, 0]) < 1e-3 < difference(own[:, 1], maps[:, 1])
    assert difference(edited.own_maps.by_site[first][1, 1].float(), free.maps.by_site[first][1, 1].float()) > 1e-3
    assert free.own_maps is None


def test_predicted_x0_and_the_trajectory_are_one_ddim_run(sd):
    result = generate(sd, record="all")
    assert result.pred_x0.shape == (STEPS, *result.latents.shape) and result.trajectory.shape == (STEPS + 1, *result.latents.shape)
    assert torch.equal(result.trajectory[-1], result.latents)
    for i, (_, a, a_next) in enumerate(sd.schedule.levels(STEPS)):
        z, x0 = result.trajectory[i], result.pred_x0[i]
        eps = (z - a**0.5 * x0) / (1 - a) ** 0.5
        assert difference(ddim_step(z, eps, a, a_next), result.trajectory[i + 1]) < 1e-4
        assert difference(pred_x0(z, eps, a), x0) < 1e-4


def test_a_result_holds_what_the_run_was(sd, recorded):
    assert (recorded.steps, recorded.guidance, recorded.prompts) == (STEPS, 7.5, tuple(PROMPTS)) and recorded.masks is None
    assert torch.equal(recorded.trajectory[0], recorded.start.expand(2, -1, -1, -1))
    assert defaults(None, None, None) == (50, 7.5)


# ---------------------------------------------------------------- how things show themselves


def test_a_repr_is_one_line(sd, recorded):
    prompts = ["a red cat on the grass", "a red dog on the grass"]
    blended = generate(sd, prompts, edit=LocalBlend(sd.tokenizer, prompts, ["cat", "dog"]), steps=1, size=32)
    assert repr(recorded) == "<Result of 2 pictures, 64 x 64, 4 steps, guidance 7.5>"
    assert repr(recorded.maps) == "<Maps of 2 prompts, 4 steps, layers of 16 x 16, 8 x 8, 4 x 4>"
    assert repr(sd).startswith(f"<StableDiffusion {sd.path}, ") and repr(sd).endswith(" M weights, cpu, float32>")
    assert all("\n" not in repr(thing) and len(repr(thing)) < 200 for thing in (recorded, recorded.maps, sd, blended))


def test_a_result_shows_its_pictures_in_a_notebook(recorded):
    shown = Image.open(io.BytesIO(recorded._repr_png_()))
    assert shown.size == (128, 64)
    assert np.array_equal(np.asarray(shown), np.concatenate([np.asarray(image) for image in recorded.images], axis=1))
    assert np.array_equal(np.asarray(shown), np.asarray(side_by_side(recorded.images)))


# ---------------------------------------------------------------- guidance


def by_hand(sd: StableDiffusion, prompt: str, guidance: float, negative: str = "") -> torch.Tensor:
    """The same picture's latents, from one network call per prompt and step."""
    cond, uncond = sd.encode_text(prompt), sd.encode_text(negative)
    z = sd.init_latents(0)
    with torch.no_grad():
        for t, a, a_next in sd.schedule.levels(STEPS):
            eps_cond, eps_uncond = (sd.schedule.to_eps(sd.unet(z, t, text), z, a) for text in (cond, uncond))
            z = ddim_step(z, eps_uncond + guidance * (eps_cond - eps_uncond), a, a_next)
    return z


@pytest.mark.parametrize("guidance, batch", [(7.5, 4), (0, 4), (1.0, 2), (1, 2)])
def test_guidance(sd, monkeypatch, guidance, batch):
    sizes, forward = [], sd.unet.forward

    def counted(latents, t, text, edit=None, n_uncond=0):
        sizes.append((latents.shape[0], text.shape[0], n_uncond))
        return forward(latents, t, text, edit, n_uncond)

    monkeypatch.setattr(sd.unet, "forward", counted)
    latents = generate(sd, guidance=guidance).latents
    assert sizes == [(batch, batch, batch - 2)] * STEPS
    for prompt, ours in zip(PROMPTS, latents):
        assert close(ours, by_hand(sd, prompt, guidance)[0])


def test_a_negative_prompt_takes_the_place_of_the_empty_one(sd):
    result = generate(sd, PROMPTS[0], negative="a blue house")
    assert difference(result.latents, by_hand(sd, PROMPTS[0], 7.5, "a blue house")) < 3e-5  # uneven attention amplifies rounding
    assert not close(result.latents, by_hand(sd, PROMPTS[0], 7.5))


# ---------------------------------------------------------------- noise


def test_all_prompts_start_from_one_noise(sd, recorded):
    assert recorded.start.shape == (1, 4, 16, 16) and recorded.prompts == tuple(PROMPTS)
    assert torch.equal(recorded.start, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    for prompt, together in zip(PROMPTS, recorded.latents):
        assert close(together, generate(sd, prompt).latents[0])


def test_a_seed_is_a_picture(sd, recorded):
    torch.manual_seed(5)
    again, other = generate(sd, record=True), generate(sd, seed=1)
    assert torch.equal(again.latents, recorded.latents) and not close(other.latents, recorded.latents)
    assert [a.tobytes() for a in again.images] == [b.tobytes() for b in recorded.images]


def test_latents_to_start_from(sd, recorded):
    assert close(generate(sd, latents=recorded.start).latents, recorded.latents)
    one_each = torch.cat([recorded.start, sd.init_latents(1)])
    latents = generate(sd, latents=one_each).latents
    assert close(latents[0], recorded.latents[0]) and close(latents[1], generate(sd, seed=1).latents[1])
    assert generate(sd, "a cat", latents=torch.zeros(1, 4, 8, 12, dtype=torch.float64), steps=1).images[0].size == (48, 32)


# ---------------------------------------------------------------- pictures


def test_pictures_to_latents_and_back(both):
    reference, sd = both.reference, both.ours
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    latents = sd.encode_image(Image.fromarray(pixels))
    assert latents.shape == (1, 4, 16, 24) and latents.dtype == torch.float32 and not latents.requires_grad
    scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert close(latents, reference.vae.encode(scaled).latent_dist.mean * reference.vae.config.scaling_factor)
        theirs = reference.vae.decode(latents / reference.vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    (picture,) = sd.decode_latents(latents)
    assert picture.size == (96, 64) and picture.mode == "RGB"
    assert np.abs(np.asarray(picture, float) - ((theirs / 2 + 0.5).clamp(0, 1) * 255).numpy()).max() <= 0.51
    assert len(sd.decode_latents(latents.expand(3, -1, -1, -1))) == 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_kind_of_picture_is_encoded_as_its_colours(sd, mode):
    picture = Image.linear_gradient("L").resize((64, 64)).convert(mode)
    assert torch.equal(sd.encode_image(picture), sd.encode_image(picture.convert("RGB")))


@pytest.mark.parametrize("alpha, grey", [(0, 255), (51, 204), (255, 0)])
def test_transparency_lies_over_white_as_in_open_image(sd, alpha, grey):
    black = Image.new("RGBA", (64, 64), (0, 0, 0, alpha))
    assert torch.equal(sd.encode_image(black), sd.encode_image(Image.new("RGB", (64, 64), (grey,) * 3)))
