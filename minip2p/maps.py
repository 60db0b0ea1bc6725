"""Reading attention maps: what a run notes down on the way, and which word looked where."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minip2p.attention import Site, wants
from minip2p.checks import is_whole
from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer


@dataclass
class Seam:
    """What the UNet is handed in one step: the edit, and a sheet on which maps are noted that somebody will read.

    With guidance the batch is [without text, with text]; only the half with text is seen or edited, the last `rows` rows.
    """

    edit: object  # a function (maps, site) -> maps, or None
    noted: Sequence[Site]
    rows: int
    source: dict[Site, Tensor] | None = None  # (1, H, P, T), a recording's maps; the source is then not among the rows
    notes: dict[Site, Tensor] = field(default_factory=dict)  # (prompts, P, T) after the edit, heads averaged

    def wants(self, site: Site) -> bool:
        return site in self.noted or wants(self.edit, site)

    def __call__(self, maps: Tensor, site: Site) -> Tensor:
        """maps (rows, H, P, T) of the half with text -> new ones."""
        if self.source is not None:
            maps = torch.cat([self.replayed(site, maps), maps])
        if wants(self.edit, site):
            maps = self.edit(maps, site)
        if site in self.noted:
            self.notes[site] = maps.detach().mean(1)
        return maps[-self.rows :]

    def replayed(self, site: Site, like: Tensor) -> Tensor:
        """The source's maps from the recording, (1, H, P, T); PromptError if nobody thought they would be wanted."""
        if site not in self.source:
            raise PromptError(
                f"the edit asks for the {site.kind} maps of size {site.height} x {site.width}, which a recording does not hold: "
                "give the edit a method wants(site) that leaves them out, or run it without the recording"
            )
        return self.source[site].to(like.dtype)


def nearest(sites: Sequence[Site], side: int = 16) -> list[Site]:
    """The cross-attention sites whose maps are nearest side x side; in Stable Diffusion at 512 x 512, five of 16 x 16."""
    cross = [site for site in sites if site.kind == "cross"]
    best = min(cross, key=lambda site: (abs((site.height * site.width) ** 0.5 - side), -site.height))
    return [site for site in cross if (site.height, site.width) == (best.height, best.width)]


def layout_sites(sites: Sequence[Site]) -> list[Site]:
    """The cross-attention sites whose maps a local blend reads: a quarter as wide as the latent, but not below 16 x 16.

    At 512 x 512 that is the authors' 16 x 16; at 768 x 768, 24 x 24. The nearest there is, where none is so.
    """
    return nearest(sites, max(16, round(max(site.latent_pixels for site in sites) ** 0.5 / 4)))


@dataclass(frozen=True)
class Maps:
    """The cross-attention maps of one run, as they were after any edit, averaged over heads."""

    tokenizer: CLIPTokenizer
    prompts: tuple[str, ...]
    by_site: dict[Site, Tensor]  # each (steps, B, P, T), float16

    def tokens(self, prompt: int = 0) -> Tensor:
        """(steps, h, w, T): every token's map, averaged over the layers whose size is nearest 16 x 16."""
        if not is_whole(prompt) or not 0 <= prompt < len(self.prompts):
            raise PromptError(f"there is no prompt {prompt!r} in this run: it had {len(self.prompts)}, counted from 0")
        sites = nearest(list(self.by_site))
        mean = torch.stack([self.by_site[site][:, prompt].float() for site in sites]).mean(0)
        return mean.unflatten(1, (sites[0].height, sites[0].width))

    def word(self, word: str, prompt: int = 0, mean: bool = False) -> Tensor:
        """(steps, h, w): the share of each pixel's attention that goes to a word or phrase, all its tokens and places
        added up; with `mean`, the average over the steps, (h, w). PromptError if the prompt does not have the word."""
        tokens = self.tokens(prompt)
        shares = tokens[..., self.tokenizer.positions(self.prompts[prompt], word)].sum(-1)
        return shares.mean(0) if mean else shares
