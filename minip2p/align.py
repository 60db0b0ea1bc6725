"""Two prompts -> the source tokens from which each target token takes its attention map.

The result is a pair (mapper, has_source). With source maps S (P, T) and the target's own maps A (P, T), the edited maps are
S @ mapper + A * (1 - has_source). mapper is (T, T), source tokens down, target tokens across. has_source is (T,), 1 where a
target token has a source. Add aligns token by token ("refinement"), Swap aligns word by word ("replacement").
"""

import torch
from torch import Tensor

from minip2p.errors import PromptError
from minip2p.tokenizer import CLIPTokenizer


def longest_common_subsequence(source: list, target: list) -> list[int]:
    """For each item of `target` the index of its partner in `source`, or -1.

    Where several answers are equally long, late items of the target, then late items of the source, go without a partner
    first. That is the answer of Hertz et al., who use Needleman-Wunsch with gap 0, match 1 and mismatch -1.
    """
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


def refinement_mapper(tokenizer: CLIPTokenizer, source: str, target: str) -> tuple[Tensor, Tensor]:
    """(mapper, has_source) in which tokens that both prompts share take the source's maps; new tokens keep their own."""
    partners = align_tokens(tokenizer, source, target)
    shared = [([i], [j]) for j, i in enumerate(partners) if i >= 0]
    return make_mapper(shared, partners[-1], len(partners) - 1, tokenizer.context)


def align_tokens(tokenizer: CLIPTokenizer, source: str, target: str) -> list[int]:
    """For each target position up to the end token the source position of its map, or -1 for a new token.

    <a cat> -> <a big cat> gives [0, 1, -1, 2, 3]: start token, "a", new, "cat", end token.
    """
    source_ids, target_ids = (tokenizer.encode(tokenizer.check(prompt)).ids for prompt in (source, target))
    inner = longest_common_subsequence(source_ids, target_ids)
    return [0] + [i + 1 if i >= 0 else -1 for i in inner] + [len(source_ids) + 1]


def replacement_mapper(tokenizer: CLIPTokenizer, source: str, target: str) -> tuple[Tensor, Tensor]:
    """(mapper, has_source) in which a swapped word takes the maps of the word that it replaces."""
    old, new = tokenizer.words(source), tokenizer.words(target)  # (word, token positions)
    pairs = pair_words([word for word, _ in old], [word for word, _ in new])
    ends = (1 + sum(len(positions) for _, positions in words) for words in (old, new))
    return make_mapper([(old[i][1], new[j][1]) for i, j in pairs], *ends, tokenizer.context)


def pair_words(source: list[str], target: list[str]) -> list[tuple[int, int]]:
    """(i, j) where word j of the target is, or replaces, word i of the source.

    Between two shared words, an equal number of other words replace one another in order. If one side has none there, the
    words of the other side are new or deleted. Any other number is ambiguous. Prompts of equal length that this rule cannot
    pair are paired word by word. PromptError if no word is swapped, or if it is ambiguous which.
    """
    partners = longest_common_subsequence(source, target)
    pairs, ambiguous, swaps, i, j = [], None, 0, 0, 0
    for stop_j, stop_i in [(j, i) for j, i in enumerate(partners) if i >= 0] + [(len(target), len(source))]:
        old, new = range(i, stop_i), range(j, stop_j)
        if len(old) == len(new):
            pairs += zip(old, new)
            swaps += len(old)
        elif old and new:
            ambiguous = (" ".join(source[k] for k in old), " ".join(target[k] for k in new))
        pairs.append((stop_i, stop_j))
        i, j = stop_i + 1, stop_j + 1
    pairs.pop()  # the two ends, which are not words
    if not ambiguous and (swaps or source == target):
        return pairs
    if len(source) == len(target):
        return list(zip(range(len(source)), range(len(target))))
    if ambiguous:
        raise PromptError(
            f"cannot tell which word of {ambiguous[1]!r} replaces which word of {ambiguous[0]!r}: "
            "swap as many words as there were, or use Add, where new words bring their own maps"
        )
    raise PromptError(f"no word of {' '.join(source)!r} is swapped in {' '.join(target)!r}: use Add, which adds and drops words")


def make_mapper(pairs: list[tuple[list[int], list[int]]], source_end: int, target_end: int, T: int) -> tuple[Tensor, Tensor]:
    """(mapper, has_source) from pairs of token positions (source, target); the start and end tokens are paired as well.

    A word's tokens are paired one to one where their counts agree; otherwise each takes an equal share of all source tokens of its
    word. Padding takes the padding of the same index, as in the authors' release, or the source's first padding if the source has
    a word or its end token at that index.
    """
    mapper = torch.zeros(T, T, dtype=torch.float32, device="cpu")
    for old, new in [([0], [0]), *pairs, ([source_end], [target_end])]:
        if len(old) == len(new):
            mapper[old, new] = 1.0
        else:
            mapper[torch.tensor(old, device="cpu")[:, None], torch.tensor(new, device="cpu")] = 1 / len(new)
    for j in range(target_end + 1, T if source_end + 1 < T else 0):
        mapper[max(j, source_end + 1), j] = 1.0
    return mapper, (mapper.sum(0) > 0).float()
