"""CUDA graphs change nothing but the time. Where there is no GPU, a stand-in replays torch's operations instead of kernels."""

from copy import deepcopy
from dataclasses import replace
from itertools import count
from weakref import WeakSet

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minip2p import Add, LocalBlend, RequestError, Reweight, StableDiffusion, Swap
from minip2p.attention import AttentionEdit

PROMPTS = ["a red cat on the grass", "a red dog on the grass"]
RUN = {"steps": 5, "size": 32, "progress": False}
DEVICES = [("cpu", "float32")] + [("cuda", "float32"), ("cuda", "float16")] * torch.cuda.is_available()


class Operations(TorchDispatchMode):
    """torch.cuda.CUDAGraph for a CPU: notes torch's operations, and repeats them on the same tensors."""

    pools: dict[int, WeakSet] = {}  # the graphs of each

    def capture_begin(self, pool: int) -> None:
        assert self.pools.get(pool, True), "a pool is gone with its last graph, and a capture into it fails on a GPU"
        self.pools.setdefault(pool, WeakSet()).add(self)
        self.done = []
        self.__enter__()

    def capture_end(self) -> None:
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        result = operation(*given, **(named or {}))
        self.done.append((operation, given, named or {}, result))
        return result

    def replay(self) -> None:
        for operation, given, named, result in self.done:
            for kept, new in zip(tree_leaves(result), tree_leaves(operation(*given, **named))):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


@pytest.fixture(params=DEVICES, ids=" ".join)
def models(request, sd1, monkeypatch) -> tuple[StableDiffusion, StableDiffusion]:
    """A model without and with graphs, with the same weights."""
    if request.param[0] == "cuda":
        graphed = StableDiffusion.load(sd1.folder, *request.param, cuda_graph=True)
        return replace(graphed, cuda_graph=False), graphed
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Operations)
    monkeypatch.setattr(Operations, "pools", {})
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", count().__next__)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    return sd1.ours, replace(sd1.ours, cuda_graph=True)


def swap(sd):
    return Swap(sd.tokenizer, PROMPTS, 0.8, 0.4, LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"]))


def reweight(sd):
    return Reweight(sd.tokenizer, PROMPTS, {"grass": -2.0}, base=Add(sd.tokenizer, PROMPTS, {"default_": 0.8, "dog": (0.2, 0.6)}))


class Keeper(AttentionEdit):
    """Keeps the very tensors that it is given, changes them in place, and does something else in each step."""

    def __init__(self, step: int = 0):
        self.kept, self.step = [], step

    def at(self, step, steps):
        self.step = step
        return self

    def wants(self, site):
        return site.kind == "cross"

    def __call__(self, attn, site):
        self.kept.append(attn)
        return attn.mul_(1 + self.step)


CASES = {  # name: (the edit of a model, guidance, record)
    "none": (lambda sd: None, 7.5, False),
    "swap and blend": (swap, 7.5, False),
    "swap and blend, recorded": (swap, 1.0, "all"),
    "re-weight": (reweight, 7.5, True),
    "an edit of one's own": (lambda sd: Keeper(), 7.5, False),
    "a function, recorded": (lambda sd: lambda attn, site: attn.flip(-1), 1.0, "all"),
}


@pytest.mark.parametrize("edit, guidance, record", CASES.values(), ids=CASES)
def test_graphs_change_nothing(models, edit, guidance, record):
    runs, edits = [], []
    for sd in models:
        for seed in range(3):  # a kind of call that comes once in a run is captured in the second and replayed in the third
            edits.append(edit(sd))
            runs.append(sd.generate(PROMPTS, seed, edit=edits[-1], guidance=guidance, record=record, **RUN))
    for plain, graphed in zip(runs[:3], runs[3:]):
        assert torch.equal(plain.trajectory, graphed.trajectory)
        for site, maps in plain.maps.by_site.items() if record else ():
            assert torch.equal(maps, graphed.maps.by_site[site])
        assert (plain.masks is None) == (graphed.masks is None)
        assert plain.masks is None or torch.equal(plain.masks, graphed.masks)
    if isinstance(edits[0], Keeper):
        assert all(map(torch.equal, edits[0].kept, edits[3].kept)), "what an edit kept is not overwritten"


def test_graphs_replay_recordings_and_follow_a_change_of_size(models):
    for size in (32, 48, 32):
        options = RUN | {"size": size}
        pictures = []
        for sd in models:
            recording = sd.record(PROMPTS[0], **options)
            pictures.append(sd.generate(PROMPTS, recording=recording, edit=swap(sd), progress=False).latents)
        assert torch.equal(*pictures)


def test_a_graph_is_captured_once_for_each_choice_of_layers(models, monkeypatch):
    """Windows of 0.8 and 0.4 in 5 steps: two with self-attention, two without, and one without edited maps."""
    _, sd = models
    forwards = []
    forward = sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward", lambda *given, **named: forwards.append(given) or forward(*given, **named))
    edit = Swap(sd.tokenizer, PROMPTS, 0.8, 0.4)
    sd.generate(PROMPTS, edit=edit, **RUN)
    assert len(forwards) == 5, "a first call and a capture of two choices, and one call of the third"
    sd.generate(PROMPTS, edit=edit, **RUN)
    assert len(forwards) == 6, "the capture of the third"
    sd.generate(PROMPTS, edit=edit, **RUN)
    assert len(forwards) == 6


@torch.no_grad()
def test_an_output_is_the_caller_s_own(models):
    plain, graphed = models
    noise, text = graphed.init_latents(0, 32), graphed.encode_text(PROMPTS[0])
    noise = noise.to(plain.dtype)
    outputs = [graphed.graphed(noise, t, text, AttentionEdit()) for t in (1, 201, 401, 601)]
    for t, output in zip((1, 201, 401, 601), outputs):
        assert torch.equal(output, plain.unet(noise, t, text, AttentionEdit()))


@torch.no_grad()
def test_weights_may_be_changed_or_replaced_between_runs(models):
    plain, _ = models
    plain = replace(plain, unet=deepcopy(plain.unet))
    graphed = replace(plain, cuda_graph=True)
    layer = plain.unet.conv_in
    for change in (
        lambda: None,
        lambda: layer.bias.add_(0.1),
        lambda: setattr(layer.bias, "data", layer.bias + 0.1),
        lambda: setattr(layer, "bias", torch.nn.Parameter(layer.bias + 0.1)),
    ):
        change()
        assert torch.equal(*(sd.generate(PROMPTS, edit=swap(sd), **RUN).latents for sd in (plain, graphed)))
    other = replace(graphed, unet=models[0].unet)
    assert torch.equal(*(sd.generate(PROMPTS, edit=swap(sd), **RUN).latents for sd in (models[0], other)))


def test_a_call_with_gradients_has_no_graphs(models):
    _, sd = models
    text = sd.encode_text(PROMPTS[0]).requires_grad_()
    noise = sd.init_latents(0, 32).to(sd.dtype)
    for _ in range(3):
        assert sd.graphed(noise, 1, text, AttentionEdit()).requires_grad
    assert not sd.graphed.captured


def test_the_edit_is_asked_once_about_each_layer(models):
    _, sd = models
    asked = []

    class Asked(AttentionEdit):
        def wants(self, site):
            asked.append(site)
            return site.kind == "cross"

    sd.generate(PROMPTS, edit=Asked(), **RUN)
    assert len(asked) == RUN["steps"] * len(set(asked))


def test_an_error_during_a_capture_ends_it(models, monkeypatch):
    plain, sd = models
    expected = plain.generate(PROMPTS, edit=swap(plain), **RUN).latents
    forward, calls = sd.unet.forward, []

    def failing(*given, **named):
        calls.append(given)
        result = forward(*given, **named)
        if len(calls) == 2:  # the capture
            raise RuntimeError("a spoiled layer")
        return result

    monkeypatch.setattr(sd.unet, "forward", failing)
    with pytest.raises(RuntimeError, match="a spoiled layer"):
        sd.generate(PROMPTS, edit=swap(sd), **RUN)
    assert torch.equal(sd.generate(PROMPTS, edit=swap(sd), **RUN).latents, expected)


def test_a_first_call_that_was_stopped_counts_for_nothing(models, monkeypatch):
    """It may not have loaded the kernels, which a capture cannot do."""
    plain, sd = models
    captures = []
    capture = type(sd.graphed).capture
    monkeypatch.setattr(type(sd.graphed), "capture", lambda *given: captures.append(given) or capture(*given))

    def stopping(attn, site):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sd.generate(PROMPTS, edit=stopping, **RUN)
    wanting = lambda attn, site: attn / 2  # wants the same layers
    latents = sd.generate(PROMPTS, edit=wanting, **RUN | {"steps": 1}).latents
    assert not captures and torch.equal(latents, plain.generate(PROMPTS, edit=wanting, **RUN | {"steps": 1}).latents)


def test_an_edit_that_returns_other_shapes_is_refused_in_a_replay_too(models):
    _, sd = models
    calls = []

    def spoiled(attn, site):
        calls.append(site)
        return attn if calls.count(site) < 4 else attn[..., 1:]  # in the fourth step

    with pytest.raises(RequestError, match="return maps of the same shape"):
        sd.generate(PROMPTS, edit=spoiled, **RUN)
    assert torch.equal(*(model.generate(PROMPTS, edit=swap(model), **RUN).latents for model in models)), "later runs are right"


def test_a_device_without_cuda_has_no_graphs(sd1):
    with pytest.raises(RequestError, match="cuda_graph is for NVIDIA GPUs and the device is cpu: leave it out"):
        StableDiffusion.load(sd1.folder, "cpu", cuda_graph=True)
