"""What a caller gives to an edit: windows, weights, a base; and which kind of edit two prompts suggest."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from minip2p.align import longest_common_subsequence, pair_words
from minip2p.checks import brief, check_window, is_number, word_positions
from minip2p.errors import PromptError, RequestError
from minip2p.tokenizer import CLIPTokenizer


def cross_windows(tokenizer: CLIPTokenizer, targets: tuple[str, ...], given) -> Tensor:
    """(N, T, 2), float64, from a number, a pair, or a dict of them; in a dict without "default_" other words have [0, 1)."""
    table = {"default_": 1.0} | given if isinstance(given, dict) else {"default_": given}
    windows = torch.empty(len(targets), tokenizer.context, 2, dtype=torch.float64, device="cpu")
    for word, value in sorted(table.items(), key=lambda item: item[0] != "default_"):
        pair = check_window(value, f"cross_replace_steps[{word!r}]" if isinstance(given, dict) else "cross_replace_steps")
        if word == "default_":
            windows[:] = torch.tensor(pair, dtype=torch.float64, device="cpu")
            continue
        for row, positions in word_positions(tokenizer, targets, word):
            windows[row, positions] = torch.tensor(pair, dtype=torch.float64, device="cpu")
    return windows


def weight_positions(
    tokenizer: CLIPTokenizer, targets: tuple[str, ...], weights: dict[str, float]
) -> Iterator[tuple[int, list[int], float]]:
    """(index of the target, token positions, weight) of each word; PromptError for a token that is given two weights."""
    if not isinstance(weights, dict) or not weights:
        raise RequestError(f"the weights are {brief(weights)}: give a dict of words and numbers, such as {{'night': 2.0}}")
    owners: dict[tuple[int, int], str] = {}
    for word, weight in weights.items():
        if not is_number(weight) or not math.isfinite(weight):
            raise RequestError(f"the weight of {word!r} is {weight!r}: give a finite number")
        for row, positions in word_positions(tokenizer, targets, word):
            other = next((owners[row, p] for p in positions if (row, p) in owners), None)
            if other is not None:
                raise PromptError(f"{word!r} and {other!r} are the same word and have two weights: leave one of them out")
            owners |= {(row, p): word for p in positions}
            yield row, positions, float(weight)


def check_instance(value, kind: type, name: str, fix: str):
    """The value; RequestError unless it is of this kind."""
    if not isinstance(value, kind):
        raise RequestError(f"{name} is {brief(value)}: give {fix}, or leave it out")
    return value


def check_same_prompts(edit, name: str, prompts: tuple[str, ...]) -> None:
    """PromptError unless the edit was made for these prompts."""
    if edit.prompts != prompts:
        raise PromptError(f"the {name} is of {list(edit.prompts)}, not of {list(prompts)}: give both the same prompts")


def check_changed(prompts: tuple[str, ...]) -> None:
    """PromptError if a target is the source prompt, so that there is nothing to swap or add."""
    if prompts[0] in prompts[1:]:
        raise PromptError(
            f"a target is the source prompt {prompts[0]!r}: change a word, or give a word another weight (Reweight)"
        )


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
