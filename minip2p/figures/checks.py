"""Checks of what a caller gives to a figure or a page: RequestError, in one line, for what it cannot show."""

from collections.abc import Sequence

from torch import Tensor

from minip2p.attention import AttentionEdit
from minip2p.attention_store import Maps
from minip2p.checks import brief, is_whole
from minip2p.edits import Edit
from minip2p.errors import RequestError
from minip2p.result import Result


def maps_of(result: Result) -> Maps:
    """The maps of a result; RequestError if it was generated without."""
    if result.maps is None:
        raise RequestError("this result has no attention maps: call generate(..., record=True)")
    return result.maps


def check_prompt(prompts: Sequence[str], prompt: int, first: int = 0) -> None:
    """RequestError unless this is the number of a prompt, from `first` on: 1 if it must be a target."""
    if not is_whole(prompt) or not first <= prompt < len(prompts):
        kind, last = "target" if first else "prompt", len(prompts) - 1
        numbers = f"give a number from {first} to {last}" if last >= first else "there is none"
        raise RequestError(f"{kind} is {brief(prompt)} and there are {len(prompts)} prompts, counted from 0: {numbers}")


def check_steps(steps: Sequence[int], total: int) -> None:
    """RequestError unless these are numbers of steps, counted from 0."""
    for step in steps:
        if not is_whole(step) or not 0 <= step < total:
            raise RequestError(f"step {brief(step)} is not in this run: it had {total}, counted from 0 to {total - 1}")


def check_edit(result: Result, edit) -> None:
    """RequestError if this is not the edit that the result was made with; for None nothing is checked."""
    own = result.edit
    same = edit is own or isinstance(edit, Edit) and isinstance(own, Edit) and contents(edit) == contents(own)
    around = isinstance(edit, Edit) and own is not None and not isinstance(own, Edit)  # an edit of one's own that uses this one
    if isinstance(edit, (str, dict)):
        raise RequestError(f"edit is {brief(edit)}: give the Swap, Add or Reweight of this result, or leave it out")
    if isinstance(edit, AttentionEdit) and not same and not (around and edit.prompts == result.prompts):
        name = f"the edit of {list(edit.prompts)}" if isinstance(edit, Edit) else "the edit"
        raise RequestError(f"{name} is not the edit of this result: give that one, or leave it out")


def check_aligned(edit, prompts: Sequence[str], target: int) -> None:
    """RequestError unless this is an edit with an alignment, of these prompts, and has this target."""
    if not isinstance(edit, Edit):
        raise RequestError(f"edit is {brief(edit)}: give a Swap, Add or Reweight, whose alignment can be drawn")
    if edit.prompts != tuple(prompts):
        raise RequestError(f"the edit is of {list(edit.prompts)} and the run of {list(prompts)}: give both the same prompts")
    check_prompt(edit.prompts, target, first=1)


def contents(edit: Edit) -> list:
    """The settings of an edit and of its local blend, as values that == compares."""
    parts = [getattr(edit, name) for name in ("prompts", "mapper", "has_source", "equalizer", "cross_replace", "self_replace")]
    blend = edit.blend
    parts += [blend.start, blend.threshold, blend.include, blend.exclude, blend.user_mask] if blend else []
    return [part.tolist() if isinstance(part, Tensor) else part for part in parts]
