"""The hand-written networks and loop give what diffusers and transformers give, on small random networks, in float32."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from minip2p.scheduler import Schedule, ddim_step, pred_x0
from minip2p.unet import timestep_embedding
from tests.conftest import Pair
from tests.pipelines import difference

PROMPTS = ["a red cat on the grass", "the bicycle by a river, at night!", ""]
SIZES = [(16, 16), (8, 16), (24, 4)]  # of latents: trained on, wide, narrow; each can be halved twice


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet_inputs(pair: Pair, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (3, 4, h, w) and the text of PROMPTS."""
    return randn(3, 4, *size), pair.ours.encode_text(PROMPTS)


# ---------------------------------------------------------------- networks


@torch.no_grad()
def test_text_encoder(pair):
    """quick_gelu in sd1, exact gelu in sd2."""
    tokens = pair.ours.tokenizer(PROMPTS)
    assert difference(pair.ours.text_encoder(tokens), pair.reference.text_encoder(tokens).last_hidden_state) < 2e-5
    assert difference(pair.ours.text_encoder(tokens[:, :9]), pair.reference.text_encoder(tokens[:, :9]).last_hidden_state) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "t", [981, 0, torch.tensor(21), torch.tensor([1, 500, 999])], ids=["int", "zero", "scalar tensor", "one each"]
)
def test_unet(pair, size, t):
    latents, text = unet_inputs(pair, size)
    assert difference(pair.ours.unet(latents, t, text), pair.reference.unet(latents, t, text).sample) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (16, 48), (40, 8)])
def test_vae(pair, size):
    images = randn(2, 3, *size).clamp(-1, 1)
    posterior = pair.reference.vae.encode(images).latent_dist
    mean, log_variance = pair.ours.vae.posterior(images)
    assert difference(pair.ours.vae.encode(images), posterior.mean) < 2e-5
    assert torch.equal(mean, pair.ours.vae.encode(images)) and difference(log_variance, posterior.logvar) < 2e-5
    latents = randn(2, 4, size[0] // 4, size[1] // 4)
    assert difference(pair.ours.vae.decode(latents), pair.reference.vae.decode(latents).sample) < 2e-5


def test_every_norm_has_the_reference_s_groups_and_eps(pair):
    """A wrong eps is only just visible in the numbers: 1e-6 in the VAE and before a transformer, 1e-5 elsewhere."""

    def norms(network: torch.nn.Module) -> dict[str, tuple[float, int]]:
        kinds = (torch.nn.GroupNorm, torch.nn.LayerNorm)
        modules = {name.removeprefix("text_model."): m for name, m in network.named_modules() if isinstance(m, kinds)}
        return {name: (module.eps, getattr(module, "num_groups", 1)) for name, module in modules.items()}

    for part in ("unet", "vae", "text_encoder"):
        assert norms(getattr(pair.ours, part)) == norms(getattr(pair.reference, part)) != {}


@torch.no_grad()
def test_full_depth(deep):
    """Four levels, two layers each, eight heads and 32 groups everywhere, as Stable Diffusion 1 has them."""
    latents, text = unet_inputs(deep, (8, 16))
    assert difference(deep.ours.unet(latents, 301, text), deep.reference.unet(latents, 301, text).sample) < 2e-5
    images = randn(1, 3, 64, 32).clamp(-1, 1)
    assert difference(deep.ours.vae.encode(images), deep.reference.vae.encode(images).latent_dist.mean) < 2e-5
    latents = randn(1, 4, 8, 4)
    assert difference(deep.ours.vae.decode(latents), deep.reference.vae.decode(latents).sample) < 2e-5


@pytest.mark.parametrize("channels", [32, 320])
@pytest.mark.parametrize("t", [0, 1, 999, torch.tensor([3, 981])])
def test_timestep_embedding(sd1, channels, t):
    from diffusers.models.embeddings import Timesteps

    like = randn(2, 4, 8, 8)
    reference = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)(torch.as_tensor(t).expand(2))
    assert difference(timestep_embedding(t, channels, like), reference) < 1e-6


@torch.no_grad()
def test_the_error_is_rounding(sd1):
    """In float64 the text encoder and the VAE give the same numbers, so nothing else is lost in float32."""
    text, vae = (copy.deepcopy(network).double() for network in (sd1.ours.text_encoder, sd1.ours.vae))
    tokens, latents = sd1.ours.tokenizer(PROMPTS), randn(2, 4, 8, 8)
    assert 0 < difference(sd1.ours.text_encoder(tokens).double(), text(tokens)) < 2e-6
    assert 0 < difference(sd1.ours.vae.decode(latents).double(), vae.decode(latents.double())) < 2e-6


# ---------------------------------------------------------------- the schedule


def scheduler(**settings) -> DDIMScheduler:
    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return DDIMScheduler(**usual | {"set_alpha_to_one": False, "clip_sample": False} | settings)


SETTINGS = [
    {}, {"set_alpha_to_one": True}, {"steps_offset": 0}, {"beta_schedule": "linear", "beta_end": 0.02},
    {"timestep_spacing": "trailing"}, {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_timesteps_and_levels(settings):
    ours, reference = Schedule(**settings), scheduler(**settings)
    assert torch.equal(ours.alphas_cumprod, reference.alphas_cumprod)
    for steps in range(1, 1000):
        reference.set_timesteps(steps)
        published = reference.timesteps.tolist()[:steps]  # for 61 steps and a few others, trailing spacing gives one more: -1
        timesteps = ours.timesteps(steps)
        assert timesteps == published and all(isinstance(t, int) for t in timesteps)
        if steps > 30 and steps not in (50, 61, 100, 250, 333, 500, 999):
            continue
        before = [t - 1000 // steps for t in timesteps]
        ends = [(reference.alphas_cumprod[t] if t >= 0 else reference.final_alpha_cumprod).item() for t in before]
        starts = reference.alphas_cumprod[timesteps].tolist()
        assert ours.levels(steps) == list(zip(timesteps, starts, ends))
        assert ours.alphas(steps) == [starts[0], *ends]


def test_fifty_steps_are_the_published_ones():
    assert Schedule().timesteps(50)[:2] == [981, 961] and Schedule().timesteps(50)[-2:] == [21, 1]


@pytest.mark.parametrize("steps", [1, 3, 10, 50, 999])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_one_step(prediction, spacing, steps):
    """Also the first and the last of a run, where the end is not a timestep."""
    settings = {"prediction_type": prediction, "timestep_spacing": spacing}
    schedule, reference = Schedule(**settings), scheduler(**settings)
    reference.set_timesteps(steps)
    z, output = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    for i in sorted({0, steps // 2, steps - 1}):
        t, a_from, a_to = schedule.levels(steps)[i]
        step = reference.step(output, t, z)
        eps = schedule.to_eps(output, z, a_from)
        assert difference(ddim_step(z, eps, a_from, a_to), step.prev_sample) < 2e-6
        assert difference(pred_x0(z, eps, a_from), step.pred_original_sample) < 2e-6
        assert difference(ddim_step(ddim_step(z, eps, a_from, a_to), eps, a_to, a_from), z) < 2e-6


# ---------------------------------------------------------------- a whole run


@pytest.mark.parametrize(
    "guidance, negative, size",
    [(7.5, "", (64, 64)), (1, "", (64, 64)), (7.5, "a dog in the snow", (48, 80)), (2.5, "night", (32, 64))],
    ids=["guided", "unguided", "negative", "another size"],
)
def test_ten_steps_equal_the_diffusers_pipeline(pair, guidance, negative, size):
    latents = randn(2, 4, size[0] // 4, size[1] // 4)
    ours = pair.ours.generate(PROMPTS[:2], steps=10, guidance=guidance, negative=negative, latents=latents, progress=False)
    settings = {"num_inference_steps": 10, "guidance_scale": guidance, "negative_prompt": [negative] * 2}
    height, width = size
    reference = pair.reference(PROMPTS[:2], latents=latents, height=height, width=width, output_type="latent", **settings).images
    assert difference(ours.latents, reference) < 1e-4
    pictures = pair.reference.vae.decode(reference / pair.reference.vae.config.scaling_factor).sample
    pictures = pair.reference.image_processor.postprocess(pictures.detach(), output_type="np")
    assert np.abs(np.stack(ours.images) - 255 * pictures).max() <= 1


# ---------------------------------------------------------------- the seam


def same(maps, site):
    return maps


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_explicit_maps_equal_the_fast_path(pair, size):
    latents, text = unet_inputs(pair, size)
    fast = pair.ours.unet(latents, 321, text)
    assert 0 < difference(pair.ours.unet(latents, 321, text, edit=same), fast) < 2e-5  # 0 would mean that nothing was asked


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_sites_are_those_visited_in_order_with_their_maps_shapes(pair, size):
    latents, text = unet_inputs(pair, size)
    visited = []

    def visit(maps, site):
        visited.append((site, maps.shape))
        assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)
        return maps

    pair.ours.unet(latents, 321, text, edit=visit)
    assert [site for site, _ in visited] == pair.ours.unet.sites(*size)
    modules = dict(pair.ours.unet.named_modules())
    for site, shape in visited:
        P = site.height * site.width
        assert shape == (3, modules[site.name].heads, P, {"cross": 77, "self": P}[site.kind])
        assert site.name.startswith(site.place) and site.name.endswith({"cross": "attn2", "self": "attn1"}[site.kind])
    assert {site.place for site, _ in visited} == {"down", "mid", "up"}


@pytest.mark.parametrize("flavour, heads", [("sd1", [2, 2]), ("sd2", [2, 4]), ("deep", [8, 8, 8])])
def test_attention_head_dim_is_the_number_of_heads(request, flavour, heads):
    unet = request.getfixturevalue(flavour).ours.unet
    assert [block.attentions[0].transformer_blocks[0].attn2.heads for block in unet.down_blocks[:-1]] == heads


@torch.no_grad()
def test_an_edit_that_changes_maps_changes_the_noise_only_where_asked(sd1):
    latents, text = unet_inputs(sd1)
    plain = sd1.ours.unet(latents, 321, text)

    def blind_first(maps, site):
        return torch.cat([maps[:1].flip(-1), maps[1:]]) if site.kind == "cross" else maps

    edited = sd1.ours.unet(latents, 321, text, edit=blind_first)
    assert difference(edited[:1], plain[:1]) > 1e-3 and difference(edited[1:], plain[1:]) < 2e-5


def test_gradients_flow_to_the_text_through_both_paths(sd1):
    """Null-text inversion needs them: no map is written in place, no weight asks for a gradient."""
    latents, text = unet_inputs(sd1)
    gradients = []
    for edit in (None, same, lambda maps, site: maps * 1.0):
        text = text.detach().requires_grad_()
        (sd1.ours.unet(latents, 321, text, edit=edit) * randn(3, 4, 16, 16, seed=1)).sum().backward()
        gradients.append(text.grad)
    assert (
        gradients[0].norm() > 0
        and difference(gradients[1], gradients[0]) < 1e-4
        and difference(gradients[2], gradients[0]) < 1e-4
    )
    assert not any(weight.requires_grad or weight.grad is not None for weight in sd1.ours.unet.parameters())
