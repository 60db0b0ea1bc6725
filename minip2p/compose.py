"""Several edits as one, and a plain function as an edit."""

from collections.abc import Callable, Sequence

from torch import Tensor

from minip2p.attention import AttentionEdit, Site
from minip2p.checks import check_edited, check_returned
from minip2p.errors import RequestError


class FunctionEdit(AttentionEdit):
    """A plain function (attn, site) -> attn as an edit. A callable object's own `at`, `wants` and `after_step` are used too."""

    def __init__(self, function: Callable[[Tensor, Site], Tensor]):
        self.function = function
        self.wants = getattr(function, "wants", super().wants)
        self.after_step = getattr(function, "after_step", super().after_step)

    def at(self, step: int, steps: int) -> AttentionEdit:
        return at_step(self.function, step, steps) if hasattr(self.function, "at") else self

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        return self.function(attn, site)


class Chain(AttentionEdit):
    """Several edits, one after the other; with none, generation without an edit."""

    def __init__(self, edits: Sequence[AttentionEdit]):
        self.edits = edits
        self.users: dict[Site, list[AttentionEdit]] = {}  # which of them want a layer's maps: `wants` is asked once

    @property
    def prompts(self) -> tuple[str, ...] | None:
        return next((edit.prompts for edit in self.edits if edit.prompts is not None), None)

    @property
    def prompt_tokens(self) -> Tensor | None:
        return next((edit.prompt_tokens for edit in self.edits if edit.prompt_tokens is not None), None)

    @property
    def masks(self) -> Sequence[Tensor]:
        return next((edit.masks for edit in self.edits if len(edit.masks)), ())

    def prepare(self, device, fit_mask=None) -> AttentionEdit:
        return Chain([edit.prepare(device, fit_mask) for edit in self.edits])

    def at(self, step: int, steps: int) -> AttentionEdit:
        return Chain([at_step(edit, step, steps) for edit in self.edits])

    def wants(self, site: Site) -> bool:
        self.users[site] = [edit for edit in self.edits if edit.wants(site)]
        return bool(self.users[site])

    def __call__(self, attn: Tensor, site: Site) -> Tensor:
        for edit in self.users[site]:
            attn = check_edited(edit(attn, site), attn, site)
        return attn

    def after_step(self, latents: Tensor) -> Tensor:
        for edit in self.edits:
            latents = after_step(edit, latents)
        return latents


def at_step(edit, step: int, steps: int) -> AttentionEdit:
    """What the edit's method `at` returns. RequestError if it forgot to return anything: the edit would silently do nothing."""
    found = edit.at(step, steps)
    if found is None:
        raise RequestError("the edit's method at(step, steps) returned None: return the edit for this step, often self")
    return as_edit(found)


def after_step(edit: AttentionEdit, latents: Tensor) -> Tensor:
    """What the edit's method `after_step` returns. RequestError unless these are latents of the same shape and dtype."""
    return check_returned(edit.after_step(latents), latents, "from after_step(latents)", "latents")


def as_edit(edit: AttentionEdit | Callable | None) -> AttentionEdit:
    """What a caller gave as `edit`, as an AttentionEdit. RequestError if it is neither an edit nor a function."""
    if isinstance(edit, AttentionEdit):
        return edit
    if edit is not None and not callable(edit):
        raise RequestError(f"edit is {edit!r:.60}: give a Swap, Add or Reweight, or a function (attn, site) -> attn")
    return Chain([]) if edit is None else FunctionEdit(edit)
