"""Inversion: against a second implementation on diffusers' UNet, and what must hold of each method and each edit."""

import dataclasses

import pytest
import torch
from torch import Tensor

from lessons import pictures
from minip2p import Add, LocalBlend, Reweight, StableDiffusion, images, invert
from minip2p.inversion import METHODS, optimise_null_text
from minip2p.scheduler import Schedule
from minip2p.unet import UNet
from tests.inversions import DOG, NIGHT, PROMPT, QUIET, RATE, SIZE, STEPS, input_picture
from tests.pipelines import difference


def squared_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs) ** 2).mean().item()


# ---------------------------------------------------------------- against the published algorithms


class Published:
    """DDIM inversion and null-text optimisation written down from the papers, on diffusers' UNet, one latent at a time."""

    def __init__(self, pipeline, steps: int):
        self.pipeline, self.steps = pipeline, steps
        self.v_prediction = pipeline.scheduler.config.prediction_type == "v_prediction"
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, 0)
        self.jump = 1000 // steps

    def text(self, prompt: str) -> Tensor:
        ids = self.pipeline.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return self.pipeline.text_encoder(ids)[0].detach()

    def eps(self, z: Tensor, t: int, text: Tensor) -> Tensor:
        output = self.pipeline.unet(z, t, text).sample
        return self.abar[t].sqrt().float() * output + (1 - self.abar[t]).sqrt().float() * z if self.v_prediction else output

    def level(self, t: int) -> float:
        return self.abar[max(t, 0)].item()

    def move(self, z: Tensor, eps: Tensor, now: int, then: int) -> Tensor:
        a, b = self.level(now), self.level(then)
        return b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps

    @torch.no_grad()
    def invert(self, z: Tensor, prompt: str) -> list[Tensor]:
        pivot = [z]
        for k in range(self.steps):
            t = 1 + k * self.jump
            pivot.append(self.move(pivot[-1], self.eps(pivot[-1], t, self.text(prompt)), t - self.jump, t))
        return pivot

    @torch.no_grad()
    def guided(self, z: Tensor, prompt: str, w: float) -> list[Tensor]:
        """The latents of an ordinary generation, in the order of an inversion."""
        pivot = [z]
        for k in reversed(range(self.steps)):
            t = 1 + k * self.jump
            uncond, cond = self.eps(z, t, self.text("")), self.eps(z, t, self.text(prompt))
            z = self.move(z, uncond + w * (cond - uncond), t, t - self.jump)
            pivot.append(z)
        return pivot[::-1]

    def null_text(self, pivot: list[Tensor], prompt: str, w: float) -> tuple[list[Tensor], list[list[float]]]:
        z, empty, found, losses = pivot[-1], self.text(""), [], []
        for i in range(self.steps):
            t = 1 + (self.steps - 1 - i) * self.jump
            of_fifty = i * 50 / self.steps
            empty = empty.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([empty], lr=0.01 * (1 - of_fifty / 100))
            losses.append([])
            with torch.no_grad():
                conditional = self.eps(z, t, self.text(prompt))
            for _ in range(10):
                unconditional = self.eps(z, t, empty)
                ahead = self.move(z, unconditional + w * (conditional - unconditional), t, t - self.jump)
                loss = torch.nn.functional.mse_loss(ahead, pivot[-2 - i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
                if loss.item() < 1e-5 + of_fifty * 2e-5:
                    break
            empty = empty.detach()
            found.append(empty)
            with torch.no_grad():
                unconditional = self.eps(z, t, empty)
                z = self.move(z, unconditional + w * (conditional - unconditional), t, t - self.jump)
        return found, losses


def test_the_trajectory_to_noise_is_the_published_one(pair, inversions, request):
    flavour = request.node.callspec.params["pair"]
    pivot = inversions[flavour, "ddim"].latents
    assert pivot.shape == (STEPS + 1, 4, 8, 8) and pivot.dtype == torch.float32
    fitted = images.open_image(input_picture(), (SIZE, SIZE))
    assert torch.equal(pivot[:1], pair.ours.encode_image(fitted))
    for ours, theirs in zip(pivot, Published(pair.reference, STEPS).invert(pivot[:1], PROMPT)):
        assert difference(ours, theirs[0]) < 1e-4


@pytest.mark.parametrize("goal", ["inverted", "near"])
def test_null_text_is_the_published_optimisation(pair, inversions, request, goal):
    published = Published(pair.reference, STEPS)
    if goal == "inverted":
        pivot = list(inversions[request.node.callspec.params["pair"], "ddim"].latents.split(1))
    else:  # a pivot so near that the optimisation stops early
        pivot = published.guided(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), PROMPT, 7.3)
    found, theirs = published.null_text(pivot, PROMPT, 7.5)
    cond = pair.ours.encode_text(PROMPT)
    null_text, ours = optimise_null_text(pair.ours, torch.cat(pivot), cond, 7.5, 10, 0.01, progress=False)
    assert [len(step_losses) for step_losses in ours] == [len(step_losses) + 1 for step_losses in theirs]
    assert (min(len(step_losses) for step_losses in theirs) < 10) == (goal == "near")
    for step_losses, reference in zip(ours, theirs):
        assert step_losses[:-1] == pytest.approx(reference, rel=1e-2)
    start = published.text("")
    assert difference(null_text - start, torch.cat(found) - start) < 0.02


# ---------------------------------------------------------------- what must hold of each method


def test_back_with_the_recorded_noise_is_exact(pair, monkeypatch):
    recorded, to_eps = [], Schedule.to_eps
    monkeypatch.setattr(Schedule, "to_eps", lambda *given: recorded.append(to_eps(*given)) or recorded[-1])
    pivot = invert(pair.ours, input_picture(), PROMPT, "ddim", steps=10, size=SIZE, **QUIET).latents
    monkeypatch.setattr(Schedule, "to_eps", lambda *given: recorded.pop())
    result = pair.ours.generate(PROMPT, steps=10, guidance=1, latents=pivot[-1:], **QUIET)
    assert not recorded
    assert difference(result.latents, pivot[:1]) < 1e-5
    assert difference(result.trajectory[:, 0], pivot.flip(0)) < 1e-5


@pytest.mark.parametrize("flavour", ["sd1", "sd2"])
def test_null_text_lowers_the_loss_at_every_step(inversions, flavour):
    for step_losses in inversions[flavour, "null-text"].losses:
        assert step_losses[-1] < step_losses[0] and len(step_losses) <= 11


def test_null_text_reconstructs_what_ddim_loses(pair, inversions, request):
    flavour = request.node.callspec.params["pair"]
    errors = {}
    for method in ("ddim", "null-text"):
        inversion = inversions[flavour, method]
        result = pair.ours.generate(PROMPT, inversion=inversion, **QUIET)
        assert torch.equal(result.start, inversion.latents[-1:])
        errors[method] = squared_error(result.latents, inversion.latents[:1])
    assert errors["null-text"] < errors["ddim"] / 5, errors
    assert errors["null-text"] == pytest.approx(inversions[flavour, "null-text"].losses[-1][-1], rel=1e-2), "as the optimisation left it"


def test_only_the_embedding_gets_a_gradient(sd1, inversions):
    for network in (sd1.ours.unet, sd1.ours.text_encoder, sd1.ours.vae):
        for weight in network.parameters():
            assert weight.grad is None and not weight.requires_grad
    inversion = inversions["sd1", "null-text"]
    assert not inversion.null_text.requires_grad and not inversion.latents.requires_grad
    assert inversion.null_text.shape == (STEPS, 77, 48) and inversion.null_text.dtype == torch.float32


def forward_and_back(unet: UNet, null: Tensor, checkpointing: bool) -> tuple[int, Tensor, Tensor]:
    """How many numbers are stored for the gradient; the output; the embedding's gradient."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        output = unet(torch.ones(1, 4, 8, 8), 500, null, checkpointing=checkpointing)
    return sum(kept), output, torch.autograd.grad(output.square().sum(), null)[0]


def test_checkpointing_stores_less_and_gives_the_same(pair):
    null = pair.ours.encode_text("").requires_grad_()
    plain, checkpointed = (forward_and_back(pair.ours.unet, null, checkpointing) for checkpointing in (False, True))
    assert checkpointed[0] < plain[0] / 3
    assert torch.equal(checkpointed[1], plain[1])
    assert difference(checkpointed[2], plain[2]) < 1e-6


def test_null_text_can_use_checkpointing(sd1, inversions, monkeypatch):
    asked, forward = [], UNet.forward

    def spy(unet, *given, checkpointing=False, **named):
        asked.append(checkpointing)
        return forward(unet, *given, checkpointing=checkpointing, **named)

    monkeypatch.setattr(UNet, "forward", spy)
    inversion = invert(sd1.ours, input_picture(), PROMPT, steps=STEPS, size=SIZE, lr=RATE, checkpointing=True, **QUIET)
    assert sum(asked) == sum(len(step_losses) for step_losses in inversion.losses), "for every unconditional evaluation, and for no other"
    assert difference(inversion.null_text, inversions["sd1", "null-text"].null_text) < 1e-5


def test_null_text_reconstructs_a_picture_of_the_toy_where_ddim_does_not(toy):
    """Errors of latents, relative to the picture's. Every step's loss falls, and the last latents are near the picture's."""
    house, caption = pictures.picture("house")
    inversion = invert(toy, house, caption, steps=8, lr=0.1, inner_steps=6, **QUIET)
    assert all(step_losses[-1] < step_losses[0] for step_losses in inversion.losses), inversion.losses
    ddim = dataclasses.replace(inversion, method="ddim", uncond=None)
    errors = [
        difference(toy.generate(inversion.prompt, inversion=of_method, **QUIET).latents, inversion.latents[:1])
        for of_method in (inversion, ddim)
    ]
    assert errors[0] < 0.25 and errors[0] < errors[1] / 2, errors


def test_negative_prompt_uses_the_source_prompt_twice(sd1, inversions):
    inversion = inversions["sd1", "negative-prompt"]
    result = sd1.ours.generate([PROMPT, DOG], inversion=inversion, **QUIET)
    by_hand = sd1.ours.generate([PROMPT, DOG], negative=PROMPT, latents=inversion.latents[-1:], steps=STEPS, **QUIET)
    assert torch.equal(result.latents, by_hand.latents)
    at_one = sd1.ours.generate(PROMPT, guidance=1, latents=inversion.latents[-1:], steps=STEPS, **QUIET)
    assert difference(result.latents[:1], at_one.latents) < 1e-4, "guidance cancels for the source"
    assert torch.equal(inversion.uncond, sd1.ours.encode_text(PROMPT)) and inversion.null_text is None


def test_direct_keeps_the_source_on_the_pivot_and_leaves_the_targets_alone(sd1, inversions, monkeypatch):
    seen, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda unet, z, *rest, **named: seen.append(z) or forward(unet, z, *rest, **named))
    inversion = inversions["sd1", "direct"]
    direct = sd1.ours.generate([PROMPT, DOG], inversion=inversion, **QUIET)
    pivot = inversion.latents
    assert torch.equal(direct.trajectory[:, 0], pivot.flip(0)) and torch.equal(direct.latents[0], pivot[0])
    assert torch.equal(torch.stack([z[0] for z in seen]), pivot.flip(0)[:-1]), "the network is given the pivot too"
    plain = sd1.ours.generate([PROMPT, DOG], inversion=inversions["sd1", "ddim"], **QUIET).latents
    assert difference(direct.latents[1], plain[1]) < 1e-5
    assert difference(plain[0], pivot[0]) > 0.1


def test_nfe_counts_every_evaluation_of_the_network(sd1):
    rows = []
    counter = sd1.ours.unet.register_forward_pre_hook(lambda unet, given: rows.append(len(given[0])))
    try:
        for method, expected in (("ddim", 2), ("direct", 2), ("null-text", 2 + 2 * (1 + 2 + 1))):
            rows.clear()
            inversion = invert(sd1.ours, input_picture(), PROMPT, method, steps=2, size=SIZE, inner_steps=2, **QUIET)
            assert inversion.nfe == sum(rows) == expected
    finally:
        counter.remove()


def test_a_repr_is_one_line(inversions):
    assert repr(inversions["sd1", "ddim"]) == f"<Inversion of {PROMPT!r} by ddim, 4 steps, guidance 7.5>"


# ---------------------------------------------------------------- edits of a picture


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_and_a_blend_leave_the_source_as_it_is_alone(sd1, inversions, method):
    inversion, tokenizer = inversions["sd1", method], sd1.ours.tokenizer
    prompts = [PROMPT, DOG, NIGHT]
    blend = LocalBlend(tokenizer, prompts, ["cat", "dog", "night"], start=0.0)
    edit = Reweight(tokenizer, prompts, {"red": 4.0}, base=Add(tokenizer, prompts, 0.8, 0.4, blend))
    result = sd1.ours.generate(prompts, inversion=inversion, edit=edit, **QUIET)
    alone = sd1.ours.generate(PROMPT, inversion=inversion, **QUIET)
    assert difference(result.latents[:1], alone.latents) < 1e-4
    outside = (result.masks[-1] == 0).expand(-1, 4, -1, -1)
    source = result.latents[:1].expand(2, -1, -1, -1)
    assert torch.equal(result.latents[1:][outside], source[outside])
    for target in result.latents[1:]:
        assert difference(target, result.latents[0]) > 1e-4
    if method == "direct":
        assert torch.equal(result.latents[0], inversion.latents[0])


@pytest.mark.parametrize("method", METHODS)
def test_an_identity_edit_is_the_reconstruction(sd1, inversions, method):
    prompts, inversion = [PROMPT, PROMPT], inversions["sd1", method]
    edit = Reweight(sd1.ours.tokenizer, prompts, {"cat": 1}, None, 1.0, 1.0)
    result = sd1.ours.generate(prompts, inversion=inversion, edit=edit, **QUIET)
    alone = sd1.ours.generate(prompts, inversion=inversion, **QUIET)
    assert difference(result.latents[:1], alone.latents[:1]) < 1e-4
    if method == "direct":  # the target has the source's maps, but its latents are not put back on the pivot
        assert torch.equal(result.latents[0], inversion.latents[0])
        assert difference(result.latents[1], result.latents[0]) > 1e-2
    else:
        assert difference(result.latents, alone.latents) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_fall_in_half_precision_too(sd1, inversions, dtype):
    half = StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    inversion = invert(half, input_picture(), PROMPT, steps=STEPS, size=SIZE, lr=RATE, **QUIET)
    full = inversions["sd1", "null-text"]
    assert inversion.latents.dtype == inversion.null_text.dtype == torch.float32
    assert all(step_losses[-1] < step_losses[0] for step_losses in inversion.losses)
    start = sd1.ours.encode_text("")
    moves = [(of.null_text - start).flatten(1) for of in (inversion, full)]
    cosine = torch.cosine_similarity(*moves, dim=1)
    assert cosine[0] > 0.9 and cosine.min() > 0.5, "the gradients are those of float32, none of them rounded to zero"
    ours, theirs = half.generate([PROMPT, DOG], inversion=full, **QUIET), sd1.ours.generate([PROMPT, DOG], inversion=full, **QUIET)
    rounding = 50 * torch.finfo(half.dtype).eps  # 5 % in float16, 39 % in bfloat16: this random model amplifies rounding
    assert difference(ours.latents.float(), theirs.latents) < rounding, "an inversion in float32 fits"
    ours = sd1.ours.generate([PROMPT, DOG], inversion=inversion, **QUIET)
    assert difference(ours.latents, theirs.latents) < rounding, "and the reverse"
