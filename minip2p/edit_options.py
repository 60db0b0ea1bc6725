"""What a caller gives to an edit: windows, weights, a base; and which kind of edit two prompts suggest."""

from collections.abc import Iterator

import torch
from torch import Tensor

from minip2p.align import longest_common_subsequence, pair_words
from minip2p.checks import brief, check_edit_prompts, check_made_for, check_window, is_number, word_positions
from minip2p.errors import PromptError, RequestError
from minip2p.local_blend import LocalBlend
from minip2p.tokenizer import CLIPTokenizer

LARGEST = 65504  # of float16, in which maps are kept


def cross_windows(tokenizer: CLIPTokenizer, targets: tuple[str, ...], given) -> Tensor:
    """(N, T, 2), float64, from a number, a pair, or a dict of them; in a dict without "default_" other words have [0, 1)."""
    name, table = "cross_replace_steps", given if isinstance(given, dict) else {"default_": given}
    pairs = {word: check_window(value, f"{name}[{word!r}]" if table is given else name) for word, value in table.items()}
    default = torch.tensor(pairs.pop("default_", (0.0, 1.0)), dtype=torch.float64, device="cpu")
    windows = default.repeat(len(targets), tokenizer.context, 1)
    for row, positions, pair in of_each_token(tokenizer, targets, pairs, "windows"):
        windows[row, positions] = torch.tensor(pair, dtype=torch.float64, device="cpu")
    return windows


def weight_positions(
    tokenizer: CLIPTokenizer, targets: tuple[str, ...], weights: dict[str, float]
) -> Iterator[tuple[int, list[int], float]]:
    """(index of the target, token positions, weight) of each word. RequestError or PromptError for what cannot be used."""
    if not isinstance(weights, dict) or not weights:
        raise RequestError(f"the weights are {brief(weights)}: give a dict of words and numbers, such as {{'night': 2.0}}")
    for word, weight in weights.items():
        if not is_number(weight) or not abs(weight) <= LARGEST:
            raise RequestError(f"the weight of {word!r} is {weight!r}: give a number from -{LARGEST} to {LARGEST}")
    yield from of_each_token(tokenizer, targets, {word: float(weight) for word, weight in weights.items()}, "weights")


def of_each_token(tokenizer: CLIPTokenizer, targets: tuple[str, ...], values: dict, name: str) -> Iterator[tuple]:
    """(index of the target, token positions, value) of each word; PromptError for a token that two words give a value."""
    owners: dict[tuple[int, int], str] = {}
    for word, value in values.items():
        for row, positions in word_positions(tokenizer, targets, word):
            other = next((owners[row, p] for p in positions if (row, p) in owners), None)
            if other is not None:
                raise PromptError(f"{word!r} and {other!r} share a word, which then has two {name}: leave one of them out")
            owners |= {(row, p): word for p in positions}
            yield row, positions, value


def checked_options(
    tokenizer: CLIPTokenizer, prompts: tuple[str, ...], cross_replace_steps, self_replace_steps, blend, has_base: bool = False
) -> dict:
    """Windows and blend as an `Edit` has them. RequestError or PromptError for one that cannot be used.

    has_base: a window that is None is left out, so that the base edit's stays.
    """
    options = {}
    if not (has_base and cross_replace_steps is None):
        options["cross_replace"] = cross_windows(tokenizer, prompts[1:], cross_replace_steps)
    if not (has_base and self_replace_steps is None):
        options["self_replace"] = check_window(self_replace_steps, "self_replace_steps")
    if blend is not None:
        if not isinstance(blend, LocalBlend):
            raise RequestError(f"blend is {brief(blend)}: give LocalBlend(tokenizer, prompts, words), or leave it out")
        options["blend"] = check_made_for(blend, tokenizer, prompts, "local blend")
    return options


def check_base(base, kind: type, tokenizer: CLIPTokenizer, prompts: list[str]):
    """The edit to re-weight; RequestError unless it is of this kind, PromptError if it was made for other prompts."""
    if not isinstance(base, kind):
        raise RequestError(f"base is {brief(base)}: give the Swap or Add to re-weight, or leave it out")
    return check_made_for(base, tokenizer, check_edit_prompts(tokenizer, prompts), "base edit")


def is_swap(tokenizer: CLIPTokenizer, source: str, target: str) -> bool:
    """True if `target` clearly is `source` with words swapped; False if words are added, dropped or moved.

    Stricter than `Swap`, which pairs prompts of equal length word by word when asked: no shared word may change its partner.
    """
    names = [[word for word, _ in tokenizer.words(prompt)] for prompt in (source, target)]
    partners = longest_common_subsequence(*names)
    try:
        paired = dict(map(reversed, pair_words(*names)))
    except PromptError:
        return False
    return all(j in paired and names[0][paired[j]] == names[1][j] for j, i in enumerate(partners) if i >= 0)
