"""Record once, edit many: keep the source's run, so that each later edit runs its targets alone.

An edit needs of its source only what stands on the left of the formula in edits.py: its maps, and, for a local blend, its
latents. Recording is an edit that changes nothing and writes the maps down; replaying puts them in front of the targets' own.
"""

import sys
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from minip2p.attention import Site
from minip2p.checks import check_numbers, check_prompts
from minip2p.edits import holds_layout
from minip2p.inversion import Inversion
from minip2p.saved import Kept, fingerprint, settle


@dataclass(frozen=True)
class Recording(Kept):
    """One prompt's run, made by `record`; hand it to `generate`. Everything is in sampling order."""

    verb: ClassVar[str] = "record"

    latents: Tensor  # (steps + 1, 4, h, w), float32, from the noise to the picture
    without: Tensor  # (1 or steps, T, D), float32: what the half without text was told
    maps: dict[Site, Tensor]  # each (steps, H, P, T), float16, every head apart, as an edit sees them
    weights: Tensor  # (2, numbers), the fingerprint of the model, see saved.py
    prompt: str
    negative: str
    steps: int
    guidance: float
    dtype: str  # of the model that made it

    @property
    def start(self) -> Tensor:
        """(1, 4, h, w): the noise."""
        return self.latents[:1]

    @property
    def path(self) -> Tensor:
        """Where the source was at each step, and is put again."""
        return self.latents

    def check(self, sd, source: str, steps: int | None, guidance: float | None, negative: str) -> None:
        """PromptError unless a run of `sd` with these (None or "": not said) is one that this recording was made for."""
        self.fits(sd, prompt=source, steps=steps, guidance=guidance, negative=negative or None)

    def to(self, device: torch.device) -> "Recording":
        """The same recording with its maps on a device; one that was loaded is moved at every `generate`, unless once before."""
        return replace(self, maps={site: maps.to(device) for site, maps in self.maps.items()})

    def at(self, step: int) -> dict[Site, Tensor]:
        """The source's maps of one step, each (1, H, P, T)."""
        return {site: maps[step : step + 1] for site, maps in self.maps.items()}

    def parts(self) -> tuple[dict[str, Tensor], dict]:
        tensors = {"latents": self.latents, "without": self.without, "weights": self.weights}
        tensors |= {f"maps.{site.name}": maps for site, maps in self.maps.items()}
        said = {name: getattr(self, name) for name in ("prompt", "negative", "steps", "guidance", "dtype")}
        return tensors, said | {"sites": [asdict(site) for site in self.maps]}

    @classmethod
    def from_parts(cls, tensors: dict[str, Tensor], said: dict) -> "Recording":
        """The way back from `parts`. ValueError if they do not fit together."""
        sites = [Site(**site) for site in said.pop("sites")]
        maps = {site: tensors.pop(f"maps.{site.name}") for site in sites}
        loaded = cls(maps=maps, **tensors, **said)
        if len(loaded.latents) != loaded.steps + 1 or any(len(of_site) != loaded.steps for of_site in maps.values()):
            raise ValueError
        return loaded


@dataclass(frozen=True)
class Recorder:
    """The edit that changes nothing: it copies the maps it is shown to their places."""

    maps: dict[Site, Tensor]
    step: int = 0

    def at(self, step: int, steps: int) -> "Recorder":
        return replace(self, step=step)

    def wants(self, site: Site) -> bool:
        return site in self.maps

    def __call__(self, maps: Tensor, site: Site) -> Tensor:
        self.maps[site][self.step] = maps[0]
        return maps


@torch.no_grad()
def record(
    sd,
    prompt: str,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    inversion: Inversion | None = None,
    latents: Tensor | None = None,
    negative: str = "",
    size: int | tuple[int, int] | None = None,
    progress: bool = True,
) -> Recording:
    """Run one prompt, or the photograph of an inversion, and keep what edits need of it. Arguments as in `generate`.

    The maps stay on the model's device: 1.9 GB for Stable Diffusion 1.5 at 512 x 512 and 50 steps; `progress` says it first.
    """
    [prompt] = check_prompts(sd.tokenizer, [prompt])
    steps, guidance = settle(steps, guidance, inversion)
    seed, steps, guidance = check_numbers(sd.schedule, seed, steps, guidance, negative)
    sd.check_kept(inversion, None, [prompt], steps, guidance, negative, latents)
    start = sd.noise(seed, size) if latents is None else sd.check_latents(latents, 1, size)
    shapes = map_shapes(sd, steps, *getattr(inversion, "latents", start).shape[-2:])
    if progress:
        print(f"recording {prompt!r}: {size_in_bytes(shapes) / 1e6:,.0f} MB of maps", file=sys.stderr)
    maps = {site: torch.empty(shape, dtype=torch.float16, device=sd.device) for site, shape in shapes.items()}
    without = sd.without_text(negative, inversion)
    options = {"inversion": inversion, "latents": latents, "negative": negative, "size": size, "progress": progress}
    result = sd.generate(prompt, seed, steps, guidance, Recorder(maps), **options)
    dtype = str(sd.dtype).removeprefix("torch.")
    return Recording(result.trajectory[:, 0], without.float(), maps, fingerprint(sd), prompt, negative, steps, guidance, dtype)


def map_shapes(sd, steps: int, height: int, width: int) -> dict[Site, tuple[int, ...]]:
    """(steps, H, P, T) of all maps that an edit of a latent height x width may want: cross-attention, and small self-attention."""
    shapes = {}
    for site in sd.unet.sites(height, width):
        pixels, heads = site.height * site.width, sd.unet.get_submodule(site.name).heads
        if site.kind == "cross":
            shapes[site] = (steps, heads, pixels, sd.tokenizer.context)
        elif holds_layout(site):
            shapes[site] = (steps, heads, pixels, pixels)
    return shapes


def size_in_bytes(shapes: dict[Site, tuple[int, ...]]) -> int:
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values())
