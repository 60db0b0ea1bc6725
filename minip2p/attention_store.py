"""Keeping attention maps during a run, and reading afterwards which pixels attended to which word."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.checks import check_prompt
from minip2p.errors import RequestError
from minip2p.tokenizer import CLIPTokenizer


class AttentionStore(AttentionEdit):
    """Keeps maps and returns them unchanged.

    By default it keeps all cross-attention maps, averaged over heads. full: it keeps every head, and low-resolution
    self-attention too; that is all that an edit can ask of a source, see recording.py.
    """

    def __init__(self, full: bool = False):
        self.full = full
        self.maps: dict[Site, Tensor] = {}  # each (steps, prompts, [H,] P, T), float16

    def at(self, step: int, steps: int) -> "AttentionStore":
        self.step, self.steps = step, steps
        if step == 0:
            self.maps = {}
        return self

    def wants(self, site: Site) -> bool:
        return site.kind == "cross" or self.full and site.low_resolution

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        kept = attn.detach() if self.full else attn.detach().mean(1)
        if site not in self.maps:
            self.maps[site] = torch.empty((self.steps, *kept.shape), dtype=torch.float16, device=attn.device)
        self.maps[site][self.step] = kept
        return attn


def finest_low_resolution(sites: Sequence[Site]) -> list[Site]:
    """The cross-attention layers that word maps, local blend and figures read: the low-resolution ones of the largest size.

    In Stable Diffusion these are five layers of 16 x 16 at 512 x 512 (as in the authors' release) and of 24 x 24 at 768 x 768.
    """
    low = [site for site in sites if site.kind == "cross" and site.low_resolution]
    largest = max(site.height * site.width for site in low)
    return [site for site in low if site.height * site.width == largest]


@dataclass(frozen=True, repr=False)
class Maps:
    """The cross-attention maps of one run, averaged over heads."""

    tokenizer: CLIPTokenizer
    prompts: tuple[str, ...]
    by_site: dict[Site, Tensor]  # each (steps, B, P, T), float16

    def __repr__(self) -> str:
        sizes = ", ".join(f"{height} x {width}" for height, width in self.sizes)
        return f"<Maps of {len(self.prompts)} prompts, {len(next(iter(self.by_site.values())))} steps, layers of {sizes}>"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the layers, the finest first."""
        return sorted({(site.height, site.width) for site in self.by_site}, reverse=True)

    def sites(self, size: tuple[int, int] | None = None) -> list[Site]:
        """The layers of one size; None: the layers that word maps are read from, see `finest_low_resolution`."""
        if size is None:
            return finest_low_resolution(list(self.by_site))
        try:
            pair = tuple(size)
        except TypeError:  # one number
            pair = size
        found = [site for site in self.by_site if (site.height, site.width) == pair]
        if not found:
            raise RequestError(f"no cross-attention layer has maps of size {size}: the sizes are {self.sizes}")
        return found

    def layers(self, size: tuple[int, int] | None = None) -> str:
        """For captions: how many layers are averaged, and their size."""
        sites = self.sites(size)
        return f"{len(sites)} layer{'s' * (len(sites) > 1)} of {sites[0].height} x {sites[0].width}"

    def tokens(self, prompt: int = 0, size: tuple[int, int] | None = None) -> Tensor:
        """(steps, h, w, T): each token's share of each pixel's attention, averaged over the layers of `sites(size)`."""
        check_prompt(self.prompts, prompt)
        sites = self.sites(size)
        mean = torch.stack([self.by_site[site][:, prompt].float() for site in sites]).mean(0)
        return mean.unflatten(1, (sites[0].height, sites[0].width))

    def word(self, word: str, prompt: int = 0, mean: bool = False, size: tuple[int, int] | None = None) -> Tensor:
        """(steps, h, w): the share of each pixel's attention that a word or phrase gets, summed over its tokens.

        mean: the average over the steps, (h, w). PromptError if the prompt does not have the word.
        """
        tokens = self.tokens(prompt, size)
        shares = tokens[..., self.tokenizer.positions(self.prompts[prompt], word)].sum(-1)
        return shares.mean(0) if mean else shares
