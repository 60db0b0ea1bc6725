"""Checks of what a caller gives to a figure or a page: RequestError, in one line, for what it cannot show."""

from collections.abc import Iterable
from types import NoneType

import torch
from torch import Tensor

from minip2p.attention import AttentionEdit
from minip2p.attention_store import Maps
from minip2p.checks import brief, check_made_for, check_prompt, is_whole
from minip2p.edits import Edit
from minip2p.errors import RequestError
from minip2p.local_blend import LocalBlend
from minip2p.result import Result
from minip2p.tokenizer import CLIPTokenizer


def maps_of(result: Result) -> Maps:
    """The maps of a result; RequestError if it was generated without."""
    if result.maps is None:
        raise RequestError("this result has no attention maps: call generate(..., record=True)")
    return result.maps


def check_steps(steps: Iterable[int], total: int) -> None:
    """RequestError unless these are numbers of steps, counted from 0."""
    if not isinstance(steps, Iterable):
        raise RequestError(f"steps is {brief(steps)}: give a list of numbers, counted from 0")
    for step in steps:
        if not is_whole(step) or not 0 <= step < total:
            raise RequestError(f"step {brief(step)} is not in this run: it had {total}, counted from 0 to {total - 1}")


def check_edit(result: Result, edit) -> None:
    """RequestError if this is not the edit that the result was made with; for None nothing is checked."""
    own = result.edit
    same = edit is own or isinstance(edit, Edit) and isinstance(own, Edit) and contents(edit) == contents(own)
    around = isinstance(edit, Edit) and not isinstance(own, (Edit, LocalBlend, NoneType))  # a user's own, which may use this one
    if edit is not None and not callable(edit):
        raise RequestError(f"edit is {brief(edit)}: give the Swap, Add or Reweight of this result")
    if isinstance(edit, AttentionEdit) and not same and not (around and edit.prompts == result.prompts):
        name = f"the edit of {list(edit.prompts)}" if isinstance(edit, Edit) else "the edit"
        raise RequestError(f"{name} is not the edit of this result: give that one")


def check_aligned(tokenizer: CLIPTokenizer, edit, target: int) -> None:
    """RequestError unless this is an edit with an alignment, made with this tokenizer, and has this target."""
    if not isinstance(edit, Edit):
        raise RequestError(f"edit is {brief(edit)}: give a Swap, Add or Reweight, whose alignment can be drawn")
    check_made_for(edit, tokenizer, edit.prompts)
    check_prompt(edit.prompts, target, first=1)


def check_free(free: Result, result: Result, edit: Edit, target: int) -> None:
    """RequestError unless these runs are of the edit's source and target, from the same noise, and `free` without an edit."""
    for run in (free, result):
        check_prompt(run.prompts, target, first=1)
        for number in (0, target):
            if run.prompts[number] != edit.prompts[number]:
                pair = f"{edit.prompts[number]!r} in the edit and {run.prompts[number]!r} in a run"
                raise RequestError(f"prompt {number} is {pair}: give both the same prompts")
    if free.edit is not None:
        raise RequestError("the run without the edit has one: generate it without")
    if not torch.equal(free.start[0], result.start[0]):
        raise RequestError("the run without the edit begins with other noise: give both the same seed, inversion or recording")


def contents(edit: Edit) -> list:
    """The settings of an edit and of its local blend, as values that == compares."""
    parts = [getattr(edit, name) for name in ("prompts", "mapper", "has_source", "equalizer", "cross_replace", "self_replace")]
    blend = edit.blend
    parts += [blend.start, blend.threshold, blend.include, blend.exclude, blend.user_mask] if blend else []
    return [part.tolist() if isinstance(part, Tensor) else part for part in parts]
