"""Record once, edit many times: a source run is kept, so that each later edit runs only its targets.

An edit needs two things of its source: its maps, S in the formula of edits.py, and for a local blend its latents. A recording
holds both. `Replay` puts them in front of the targets' own maps and latents.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.checks import check_edited
from minip2p.compose import after_step, at_step
from minip2p.errors import RequestError
from minip2p.saved import SavedRun
from minip2p.unet import UNet


@dataclass(frozen=True, repr=False)
class Recording(SavedRun):
    """One prompt's run, made by `StableDiffusion.record`. All tensors are in sampling order."""

    command: ClassVar[str] = "record"

    latents: Tensor  # (steps + 1, 4, h, w), float32, from the noise to the picture
    pred_x0: Tensor  # (steps, 4, h, w), float32
    uncond: Tensor  # (steps, T, D), float32
    maps: dict[Site, Tensor]  # each (steps, H, P, T), float16
    weights: Tensor
    prompt: str
    negative: str
    steps: int
    guidance: float
    dtype: str
    cut: dict | None

    def __repr__(self) -> str:
        return f"<Recording of {self.prompt!r}, {self.steps} steps, guidance {self.guidance:g}>"

    @property
    def start(self) -> Tensor:
        return self.latents[:1]

    def prompts_to_run(self, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if len(prompts) == 1:
            raise RequestError("the only prompt is the source, which the recording already holds: give a target as well")
        return prompts[1:]

    def around(self, edit: AttentionEdit) -> AttentionEdit:
        return Replay(self, edit)

    def complete(self, edit: AttentionEdit, latents: Tensor, pred_x0: Tensor) -> tuple[Tensor, Tensor]:
        edit.check()
        sources = ((self.latents, latents), (self.pred_x0, pred_x0))
        return tuple(torch.cat([source[:, None].to(targets.device), targets], dim=1) for source, targets in sources)

    def to(self, device: torch.device) -> "Recording":
        """The same recording on a device. `generate` moves a recording that is elsewhere each time it is called."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor) and name != "weights"}
        return Recording(**vars(self) | moved | {"maps": {site: maps.to(device) for site, maps in self.maps.items()}})

    def to_file(self) -> tuple[dict[str, Tensor], dict]:
        tensors, values = super().to_file()
        maps = values.pop("maps")
        tensors |= {f"maps.{site.name}": of_site for site, of_site in maps.items()}
        return tensors, values | {"sites": [asdict(site) for site in maps]}

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], values: dict) -> "Recording":
        """The recording that `to_file` took apart. ValueError if its tensors have not one entry for each step."""
        sites = [Site(**site) for site in values.pop("sites")]
        maps = {site: tensors.pop(f"maps.{site.name}") for site in sites}
        loaded = cls(maps=maps, **tensors, **values)
        if len(loaded.latents) != loaded.steps + 1 or any(len(of_site) != loaded.steps for of_site in maps.values()):
            raise ValueError
        return loaded


class Replay(AttentionEdit):
    """An edit whose source is a recording: the recorded maps and latents stand in front of those of the targets.

    changes: one boolean tensor for each call of the edit, true if it changed the source. They are read after the run, because
    reading one waits for the device.
    """

    def __init__(self, recording: Recording, edit: AttentionEdit, step: int = 0, changes: list[Tensor] | None = None):
        self.recording, self.edit, self.step, self.changes = recording, edit, step, [] if changes is None else changes

    @property
    def masks(self):
        return self.edit.masks

    def prepare(self, device, fit_mask=None) -> "Replay":
        return Replay(self.recording.to(device), self.edit.prepare(device, fit_mask))

    def at(self, step: int, steps: int) -> "Replay":
        return Replay(self.recording, at_step(self.edit, step, steps), step, self.changes)

    def wants(self, site: Site) -> bool:
        return self.edit.wants(site)

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        """attn (N, H, P, T), the maps of the targets alone -> the same, edited."""
        if site not in self.recording.maps:
            raise RequestError(
                f"the edit asks for the {site.kind}-attention maps of {site.height} x {site.width}, which a recording does not "
                "hold: give the edit a method wants(site) that leaves them out, or run it without the recording"
            )
        source = self.recording.maps[site][self.step, None].to(attn.dtype)
        attn = torch.cat([source, attn])
        return self.targets(check_edited(self.edit(attn, site), attn, site), source)

    def after_step(self, latents: Tensor) -> Tensor:
        source = self.recording.latents[self.step + 1 : self.step + 2]
        return self.targets(after_step(self.edit, torch.cat([source, latents])), source)

    def check(self) -> None:
        """RequestError if the edit changed the source: its recorded picture would not be the one of these maps."""
        if torch.stack(self.changes).any():
            raise RequestError(
                "the edit changes the source, which is already recorded: return the first row of the maps and of the latents exactly "
                "as received, or run the edit without the recording"
            )

    def targets(self, edited: Tensor, source: Tensor) -> Tensor:
        """All rows but the source's."""
        self.changes.append((edited[:1] != source).any())
        return edited[1:]


def map_bytes(unet: UNet, height: int, width: int, steps: int, tokens: int) -> int:
    """How much memory a recording's maps take, in bytes, for a latent of height x width."""
    total = 0
    for site in unet.sites(height, width):
        if site.kind == "cross" or site.low_resolution:
            pixels = site.height * site.width
            total += 2 * steps * unet.get_submodule(site.name).heads * pixels * (tokens if site.kind == "cross" else pixels)
    return total
