"""Two prompts -> which source tokens each target token takes its attention map from.

An alignment is a pair (M, keep): with source maps S (P, T) and the target's own maps A (P, T), the target gets
(S @ M) * keep + A * (1 - keep). M is (T, T), source tokens down, target tokens across; keep is (T,), 1 where a source
token was found. Adding a phrase compares token by token, swapping a word compares word by word.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer

Words = list[tuple[str, list[int]]]


def longest_common_subsequence(source: list, target: list) -> list[int]:
    """For each item of `target`, the index of its partner in `source`, or -1. Where several answers are equally long, items
    late in the target go without a partner first, then items late in the source: as in Hertz et al."""
    n, m = len(source), len(target)
    length = [[0] * (m + 1) for _ in range(n + 1)]  # length[i][j]: of source[:i] and target[:j]
    for i in range(n):
        for j in range(m):
            same = source[i] == target[j]
            length[i + 1][j + 1] = 1 + length[i][j] if same else max(length[i][j + 1], length[i + 1][j])
    partners, i, j = [-1] * m, n, m
    while i and j:
        if length[i][j] == length[i][j - 1]:
            j -= 1
        elif length[i][j] == length[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def align_tokens(tokenizer: CLIPTokenizer, source: str, target: str) -> list[int]:
    """For each target position up to its end token, the source position it takes its map from, or -1 for a new token.

    <a cat> -> <a big cat> gives [0, 1, -1, 2, 3]. Hertz et al. align with Needleman-Wunsch, gap 0, match 1,
    mismatch -1, which is the same.
    """
    source_ids, target_ids = (tokenizer.encode(tokenizer.check(prompt)).ids for prompt in (source, target))
    inner = longest_common_subsequence(source_ids, target_ids)
    return [0] + [i + 1 if i >= 0 else -1 for i in inner] + [len(source_ids) + 1]


def for_adding(tokenizer: CLIPTokenizer, source: str, target: str) -> tuple[Tensor, Tensor]:
    """(M, keep) where shared tokens keep the source's maps, and new tokens their own."""
    partners = align_tokens(tokenizer, source, target)
    return matrix([([i], [j]) for j, i in enumerate(partners) if i >= 0], partners[-1], len(partners) - 1, tokenizer.context)


def for_swapping(tokenizer: CLIPTokenizer, source: str, target: str) -> tuple[Tensor, Tensor]:
    """(M, keep) where a swapped word takes the map of the word it replaces; new words keep their own, deleted ones drop out."""
    source_words, target_words = tokenizer.words(source), tokenizer.words(target)
    pairs = [
        (source_words[i][1], target_words[j][1])
        for i, j in pair_words([word for word, _ in source_words], [word for word, _ in target_words])
    ]
    ends = [1 + sum(len(positions) for _, positions in words) for words in (source_words, target_words)]
    return matrix([([0], [0]), *pairs, ([ends[0]], [ends[1]])], *ends, tokenizer.context)


def pair_words(source: list[str], target: list[str]) -> list[tuple[int, int]]:
    """Which word of the source each word of the target stands for: itself, or the word it replaces.

    Between words that both prompts share, as many words as were there replace one another in order; none are all new or
    all deleted; any other number is ambiguous. Prompts of equal length that this cannot pair are paired word by word.
    """
    partners = longest_common_subsequence(source, target)
    pairs, ambiguous, swaps = [], None, 0
    i = j = 0
    for stop_j, stop_i in [(j, i) for j, i in enumerate(partners) if i >= 0] + [(len(target), len(source))]:
        old, new = range(i, stop_i), range(j, stop_j)
        if len(old) == len(new):
            pairs += zip(old, new)
            swaps += len(old)
        elif old and new:
            ambiguous = (" ".join(source[k] for k in old), " ".join(target[k] for k in new))
        pairs.append((stop_i, stop_j))
        i, j = stop_i + 1, stop_j + 1
    pairs.pop()  # the pair of the two ends, which are no words
    if not ambiguous and (swaps or source == target):
        return pairs
    if len(source) == len(target):
        return list(zip(range(len(source)), range(len(target))))
    if ambiguous:
        raise PromptError(
            f"cannot tell which word of {ambiguous[1]!r} replaces which of {ambiguous[0]!r}: "
            "swap as many words as there were, or use Add, where new words bring their own maps"
        )
    raise PromptError(f"no word of {' '.join(source)!r} is swapped in {' '.join(target)!r}: use Add, which adds and drops words")


def matrix(pairs: list[tuple[list[int], list[int]]], source_end: int, target_end: int, T: int) -> tuple[Tensor, Tensor]:
    """(M, keep) from pairs of token positions. Tokens pair off where their counts agree; else each source token's map is
    shared out equally. Behind the end tokens, the first padding maps to the first padding, and so on."""
    M = torch.zeros(T, T)
    for old, new in pairs:
        if len(old) == len(new):
            M[old, new] = 1.0
        else:
            M[torch.tensor(old)[:, None], torch.tensor(new)] = 1 / len(new)
    padding = T - 1 - max(source_end, target_end)
    M[torch.arange(padding) + source_end + 1, torch.arange(padding) + target_end + 1] = 1.0
    return M, (M.sum(0) > 0).float()


def check_prompts(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[str]:
    """The prompts of an edit, the source first; PromptError unless they are two or more that fit into the context."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) < 2:
        raise PromptError(
            f"the prompts of an edit are {prompts!r}: give a list of them, the source first and at least one target"
        )
    return [tokenizer.check(prompt) for prompt in prompts]


def places(tokenizer: CLIPTokenizer, prompts: Sequence[str], word: str) -> list[tuple[int, list[int]]]:
    """(row, token positions) of a word or phrase in the prompts that have it; PromptError if none has."""
    found = [(row, tokenizer.find(prompt, word)) for row, prompt in enumerate(prompts)]
    found = [(row, positions) for row, positions in found if positions]
    if not found:
        listing = "; ".join(tokenizer.listing(prompt) for prompt in prompts)
        raise PromptError(f"{word!r} is in none of the prompts {list(prompts)}: use one of their words: {listing}")
    return found


def is_swap(tokenizer: CLIPTokenizer, source: str, target: str) -> bool:
    """Is `target` clearly `source` with words swapped (else it adds or drops words, or moves some)?"""
    names = [[word for word, _ in tokenizer.words(prompt)] for prompt in (source, target)]
    partners = longest_common_subsequence(*names)
    try:
        paired = dict(map(reversed, pair_words(*names)))
    except PromptError:
        return False
    # Whoever says Swap gets a word-by-word reading; nobody else is given one that puts a word which both have in another's place.
    return all(j in paired and names[0][paired[j]] == names[1][j] for j, i in enumerate(partners) if i >= 0)
