"""Several edits of one source in one batch, and the naive form of each edit."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minip2p import AttentionEdit, Edit
from minip2p.compose import as_edit


class Beside(AttentionEdit):
    """Edits of one source and one target each, side by side: the rows are source, target, target, ... None: no control."""

    def __init__(self, edits: Sequence[Edit | None]):
        self.edits = [as_edit(edit) for edit in edits]
        self.wanted: dict = {}

    def prepare(self, device, fit_mask=None) -> "Beside":
        return Beside([edit.prepare(device, fit_mask) for edit in self.edits])

    def at(self, step: int, steps: int) -> "Beside":
        return Beside([edit.at(step, steps) for edit in self.edits])

    def wants(self, site) -> bool:
        self.wanted[site] = [edit.wants(site) for edit in self.edits]
        return any(self.wanted[site])

    def __call__(self, attn: Tensor, site) -> Tensor:
        rows = [attn[:1]]
        for edit, wanted, own in zip(self.edits, self.wanted[site], attn[1:].split(1)):
            rows.append(edit(torch.cat([attn[:1], own]), site)[1:] if wanted else own)
        return torch.cat(rows)

    def after_step(self, latents: Tensor) -> Tensor:
        source = latents[:1]
        pairs = [torch.cat([source, own]) for own in latents[1:].split(1)]
        return torch.cat([source, *(edit.after_step(pair)[1:] for edit, pair in zip(self.edits, pairs))])


def only_nth(edit: Edit, positions: Sequence[int]) -> Edit:
    """The naive swap: only the swapped word takes the source's map, and self-attention is not replaced."""
    chosen = torch.zeros_like(edit.has_source)
    chosen[:, positions] = 1.0
    return replace(edit, mapper=edit.mapper * chosen[:, None], has_source=edit.has_source * chosen, self_replace=(0.0, 0.0))
