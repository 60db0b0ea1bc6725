"""Several edits of one source in one batch, and the naive rivals of each edit."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minip2p import Edit
from minip2p.attention import wants


class Beside:
    """Edits of one source and one target each (None: no control), run beside each other: rows source, target, target, ...

    blend: a LocalBlend of all the prompts, which acts in the rows that `blended` numbers, from 1.
    """

    def __init__(self, edits: Sequence[Edit | None], blend=None, blended: Sequence[int] = ()):
        self.edits, self.blend = edits, blend and SomeRows(blend, blended)

    def at(self, step: int, steps: int):
        parts = [edit.at(step, steps) if edit else None for edit in self.edits]

        def edit_maps(maps: Tensor, site) -> Tensor:
            rows = [maps[:1]]
            for i, part in enumerate(parts, 1):
                own = maps[i : i + 1]
                rows.append(part(torch.cat([maps[:1], own]), site)[1:] if wants(part, site) else own)
            return torch.cat(rows)

        edit_maps.wants = lambda site: any(wants(part, site) for part in parts)
        return edit_maps


class SomeRows:
    """A local blend that leaves the other rows alone."""

    def __init__(self, blend, rows: Sequence[int]):
        self.blend, self.others = blend, [i for i in range(len(blend.prompts) - 1) if i + 1 not in rows]
        self.active, self.read = blend.active, blend.read

    def mask(self, shares: Tensor, size: tuple[int, int]) -> Tensor:
        mask = self.blend.mask(shares, size)
        mask[self.others] = 1.0
        return mask

    def apply(self, latents: Tensor, mask: Tensor) -> Tensor:
        return self.blend.apply(latents, mask)


def only_nth(edit: Edit, positions: Sequence[int]) -> Edit:
    """The naive swap: the swapped word's map is carried over, every other one is the target's own."""
    chosen = torch.zeros_like(edit.keep)
    chosen[:, positions] = 1.0
    return replace(edit, keep=edit.keep * chosen, self_window=(0.0, 0.0))


def unaligned(edit: Edit) -> Edit:
    """The naive addition: token n takes the map of token n, whatever word that is."""
    return replace(edit, M=torch.eye(edit.M.shape[-1])[None], keep=torch.ones_like(edit.keep))


def own_maps(edit: Edit) -> Edit:
    """The naive re-weighting: the word's own map times its weight, and nothing of the source."""
    return replace(edit, keep=torch.zeros_like(edit.keep), self_window=(0.0, 0.0))
