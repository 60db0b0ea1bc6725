"""CUDA graphs: the UNet's kernels captured once and started together in every step, with the edit between them.

A fast GPU computes many of a step's thousand kernels sooner than Python starts them. A CUDA graph starts a captured sequence
of kernels at once, on the same places in memory. An edit cannot be captured, because it is Python and may do something else in
every step. So the capture is cut at each layer whose maps the edit wants: graph, edit, graph, edit, ..., graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.checks import check_edited
from minip2p.unet import UNet


@dataclass(frozen=True)
class CapturedCall:
    """One kind of UNet call. The tensors are the places in memory from which the graphs read and to which they write."""

    latents: Tensor
    t: Tensor
    text: Tensor
    graphs: list[torch.cuda.CUDAGraph]
    maps: list[tuple[Tensor, Site]]  # between each graph and the next: what the edit is given
    output: Tensor

    def replay(self, latents: Tensor, t: int, text: Tensor, edit: AttentionEdit) -> Tensor:
        """The UNet's output for these inputs, as `UNet.forward` gives it."""
        self.latents.copy_(latents)
        self.t.fill_(t)
        self.text.copy_(text)
        for graph, (attn, site) in zip(self.graphs, self.maps):
            graph.replay()
            attn.copy_(check_edited(edit(attn.clone(), site), attn, site))  # a clone, because an edit may keep what it is given
        self.graphs[-1].replay()
        return self.output.clone()


class Cuts(AttentionEdit):
    """Stands in for the edit while a call is captured: ends one graph and begins the next at each layer that the edit wants."""

    def __init__(self, wanted: tuple[Site, ...], pool: tuple[int, int]):
        self.wanted, self.pool = wanted, pool
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.maps: list[tuple[Tensor, Site]] = []

    def begin(self) -> None:
        self.graphs.append(torch.cuda.CUDAGraph())
        self.graphs[-1].capture_begin(self.pool)

    def end(self) -> None:
        self.graphs[-1].capture_end()

    def wants(self, site: Site) -> bool:
        return site in self.wanted

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        self.end()
        self.maps.append((attn, site))
        self.begin()
        return attn


class Chosen(AttentionEdit):
    """An edit that has been asked already which layers it wants."""

    def __init__(self, edit: AttentionEdit, wanted: tuple[Site, ...]):
        self.edit, self.wanted = edit, wanted

    def wants(self, site: Site) -> bool:
        return site in self.wanted

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        return self.edit(attn, site)


class GraphedUNet:
    """Called as the UNet is, with an AttentionEdit; one run at a time.

    The first call of a kind runs as usual, the second is captured, and from then on the graphs are replayed. Calls are of one
    kind if their shapes are equal and the edit wants the same layers. The edit is asked about all layers before the first.
    Graphs keep their memory until a call has other shapes.
    """

    def __init__(self, unet: UNet):
        self.unet = unet
        self.stream = torch.cuda.Stream(next(unet.parameters()).device)  # CUDA captures no work of the default stream
        self.addresses: list[int] = []  # of the weights in memory
        self.shapes: tuple = ()
        self.captured: dict[tuple[Site, ...], CapturedCall | None] = {}  # by the layers wanted; None after the first call

    def for_a_run(self) -> "GraphedUNet":
        """Itself, without its graphs if weights were replaced since: graphs read them from fixed addresses."""
        addresses = [weight.data_ptr() for weight in self.unet.parameters()]
        if addresses != self.addresses:
            self.addresses, self.captured = addresses, {}
        return self

    def __call__(self, latents: Tensor, t: int, text: Tensor, edit: AttentionEdit, n_uncond: int = 0) -> Tensor:
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cuda"):
            return self.unet(latents, t, text, edit, n_uncond)  # the caller's modes would be captured, too
        shapes = (latents.shape, latents.dtype, text.shape, text.dtype, n_uncond)
        if shapes != self.shapes:
            self.shapes, self.sites, self.captured = shapes, self.unet.sites(*latents.shape[-2:]), {}
        wanted = tuple(site for site in self.sites if edit.wants(site))
        if wanted not in self.captured:
            # A first call also loads kernels, which cannot be captured.
            output = self.unet(latents, t, text, Chosen(edit, wanted), n_uncond)
            self.captured[wanted] = None
            return output
        if self.captured[wanted] is None:
            self.captured[wanted] = self.capture(latents, text, wanted, n_uncond)
        return self.captured[wanted].replay(latents, t, text, edit)

    def capture(self, latents: Tensor, text: Tensor, wanted: tuple[Site, ...], n_uncond: int) -> CapturedCall:
        """One call, cut where the edit will run. Its kernels are noted down and not run."""
        inputs = latents.clone(), torch.zeros((), dtype=torch.long, device=latents.device), text.clone()
        if not any(self.captured.values()):  # a pool of memory goes with its last graph, and graphs of two shapes share none
            self.pool = torch.cuda.graph_pool_handle()
        cuts = Cuts(wanted, self.pool)
        torch.cuda.synchronize(latents.device)
        torch.cuda.empty_cache()  # memory that is free, but kept by torch, is of no use to a capture
        with torch.cuda.stream(self.stream):
            cuts.begin()
            try:
                output = self.unet(*inputs, cuts, n_uncond)
            finally:
                cuts.end()
        return CapturedCall(*inputs, cuts.graphs, cuts.maps, output)
