"""Which source tokens each target token takes its map from: the published table, and what must hold for any two prompts."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minip2p import PromptError, align
from minip2p.tokenizer import CLIPTokenizer
from tests.pipelines import write_tokenizer
from tests.restatement import needleman_wunsch

T = 77
tokens_of = {"bicycle": 2, "castle": 6, "river": 2}  # in the vocabulary of tests/pipelines.py; any other word here is one
ORDINARY = ["a", "red", "cat", "on", "the", "grass"]
SPECIAL = ["dog", "house", *tokens_of]
quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def sentences(words: list[str], least: int = 0):
    return st.lists(st.sampled_from(words), min_size=least, max_size=5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer(folder)


def shorter(tokenizer: CLIPTokenizer, *prompts: str, room: int) -> CLIPTokenizer:
    """The same tokenizer with a context in which the longest of the prompts leaves `room` tokens of padding."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.context = room + 2 + max(len(tokenizer.encode(prompt).ids) for prompt in prompts)
    return tokenizer


def ends(tokenizer: CLIPTokenizer, *prompts: str) -> list[int]:
    return [len(tokenizer.encode(prompt).ids) + 1 for prompt in prompts]


def expected(T: int, *pairs: tuple[list[int], list[int]]) -> torch.Tensor:
    """M in which the source positions of each pair are shared out over its target positions."""
    M = torch.zeros(T, T)
    for old, new in pairs:
        M[torch.tensor(old)[:, None], torch.tensor(new)] = torch.eye(len(old)) if len(old) == len(new) else 1 / len(new)
    return M


def run(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_the_vocabulary_is_the_one_these_tests_think(tokenizer):
    counts = {word: len(positions) for word, positions in tokenizer.words(" ".join(ORDINARY + SPECIAL))}
    assert counts == {word: tokens_of.get(word, 1) for word in ORDINARY + SPECIAL}


@pytest.mark.parametrize(
    "source, target, partners",
    [
        ("a cat", "a big cat", [0, 1, -1, -1, 2, 3]),  # "big" is two tokens in the toy's words
        ("a cat", "a red cat", [0, 1, -1, 2, 3]),
        ("a cat", "a cat cat", [0, 1, 2, -1, 3]),
        ("a cat on", "a dog on", [0, 1, -1, 3, 4]),
        ("a red cat", "cat red a", [0, 3, -1, -1, 4]),
        ("a bicycle", "a red bicycle", [0, 1, -1, 2, 3, 4]),
        ("a red cat", "a cat", [0, 1, 3, 4]),
        ("a cat", "a cat", [0, 1, 2, 3]),
        ("", "a cat", [0, -1, -1, 1]),
        ("a cat", "", [0, 3]),
        ("a cat", "A  CAT", [0, 1, 2, 3]),
    ],
)
def test_table_of_added_tokens(tokenizer, source, target, partners):
    assert align.align_tokens(tokenizer, source, target) == partners
    M, keep = align.for_adding(tokenizer, source, target)
    for j, i in enumerate(partners):
        assert M[:, j].nonzero().flatten().tolist() == ([i] if i >= 0 else []) and keep[j] == (i >= 0)


@quick
@given(sentences(ORDINARY + SPECIAL), sentences(ORDINARY + SPECIAL), st.integers(0, 5))
def test_adding_any_words(tokenizer, source, target, room):
    source, target = " ".join(source), " ".join(target)
    tokenizer = shorter(tokenizer, source, target, room=room)
    ids = [tokenizer(prompt)[0].tolist() for prompt in (source, target)]
    end, new_end = ends(tokenizer, source, target)
    partners = align.align_tokens(tokenizer, source, target)
    found = [i for i in partners if i >= 0]

    assert len(partners) == new_end + 1 and (partners[0], partners[-1]) == (0, end)
    assert found == sorted(set(found)) and all(ids[0][i] == ids[1][j] for j, i in enumerate(partners) if i >= 0)
    assert (len(found), partners) == needleman_wunsch(ids[0][: end + 1], ids[1][: new_end + 1])

    M, keep = align.for_adding(tokenizer, source, target)
    padding = [(end + k, new_end + k) for k in range(1, tokenizer.context - max(end, new_end))]
    pairs = [([i], [j]) for i, j in [(i, j) for j, i in enumerate(partners) if i >= 0] + padding]
    assert torch.equal(M, expected(tokenizer.context, *pairs)) and torch.equal(keep, M.sum(0))
    # A source token without a partner was deleted, or is padding pushed past the end.
    assert [row for row in range(tokenizer.context) if not M[row].any()] == sorted(
        set(range(tokenizer.context)) - {i for (i,), _ in pairs}
    )


@quick
@given(sentences(ORDINARY), st.sampled_from(SPECIAL), st.sampled_from(SPECIAL), sentences(ORDINARY), st.integers(0, 5))
def test_swapping_one_word_among_any(tokenizer, before, old, new, after, room):
    """Also where the two words have different numbers of tokens: all others stay with themselves, only further on."""
    source, target = " ".join([*before, old, *after]), " ".join([*before, new, *after])
    tokenizer = shorter(tokenizer, source, target, room=room)
    M, keep = align.for_swapping(tokenizer, source, target)
    first, x, y = 1 + len(before), tokens_of.get(old, 1), tokens_of.get(new, 1)
    behind = tokenizer.context - max(ends(tokenizer, source, target)) + len(after)  # tokens behind the word that have room
    later = (run(first + x, first + x + behind - 1), run(first + y, first + y + behind - 1))
    pairs = [(run(0, first - 1), run(0, first - 1)), (run(first, first + x - 1), run(first, first + y - 1)), later]
    assert torch.equal(M, expected(tokenizer.context, *pairs))
    assert torch.equal(keep, (M.sum(0) > 0).float())
    if old == new:
        assert torch.equal(M, torch.eye(tokenizer.context))


@quick
@given(sentences(ORDINARY + SPECIAL), sentences(ORDINARY + SPECIAL), st.integers(0, 5))
def test_swapping_any_words(tokenizer, source, target, room):
    """Attention is only moved or dropped: each row sums to one or zero, and words go to words, whole and in order."""
    source, target = " ".join(source), " ".join(target)
    tokenizer = shorter(tokenizer, source, target, room=room)
    assert align.is_swap(tokenizer, source, source)
    try:
        M, keep = align.for_swapping(tokenizer, source, target)
    except PromptError:
        assert not align.is_swap(tokenizer, source, target)
        return
    end, new_end = ends(tokenizer, source, target)
    rows = M.sum(1)
    assert ((rows - 1).abs() < 1e-6).logical_or(rows == 0).all()
    assert torch.equal(keep, (M.sum(0) > 0).float())
    assert M[0, 0] == M[end, new_end] == M[0].sum() == M[:, 0].sum() == M[end].sum() == M[:, new_end].sum() == 1
    for k in range(1, tokenizer.context - max(end, new_end)):
        assert M[end + k].nonzero().tolist() == [[new_end + k]] and M[:, new_end + k].sum() == 1
    assert M[end + 1 :, : new_end + 1].sum() == 0 == M[: end + 1, new_end + 1 :].sum()

    pairs, last = [], -1
    for word, old in tokenizer.words(source):
        went_to = sorted({i for row in old for i in M[row].nonzero().flatten().tolist()})
        if went_to:
            (new,) = [positions for _, positions in tokenizer.words(target) if positions == went_to]
            assert new[0] > last
            pairs, last = [*pairs, (old, new)], new[-1]
        else:
            assert M[old].sum() == 0
    inner = expected(tokenizer.context, *pairs)
    assert torch.equal(M[1:end, 1:new_end], inner[1:end, 1:new_end])
    for _, new in pairs:
        assert torch.allclose(M[:, new].sum(), torch.tensor(float(sum(len(old) for old, n in pairs if n == new))))


@pytest.mark.parametrize(
    "source, target, words",
    [
        ("a cat", "a dog", [(0, 0), (1, 1)]),
        ("a bicycle on the grass", "a cat on the grass", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ("a cat on the castle", "a dog on the castle", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        # swapped (cat, dog), deleted (red) and added (at night) in one
        ("a cat next to the red house", "a dog next to the house at night", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (6, 5)]),
        ("cat, asleep", "dog, asleep", [(0, 0), (1, 1), (2, 2)]),
        # nothing stands between shared words to be swapped, so prompts of equal length are read word by word
        ("cat dog", "dog cat", [(0, 0), (1, 1)]),
        ("a red cat on the grass", "a dog on the green grass", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
        ("a red cat on the grass", "a cat on the green grass", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
    ],
)
def test_swapped_words(tokenizer, source, target, words):
    """The last ones are read so where Swap is asked for; the command line, left to choose, takes Add."""
    names = [[word for word, _ in tokenizer.words(prompt)] for prompt in (source, target)]
    clear = all(names[0][i] == names[1][j] or names[0][i] not in names[1] for i, j in words)
    assert align.is_swap(tokenizer, source, target) == clear
    M, _ = align.for_swapping(tokenizer, source, target)
    old, new = tokenizer.words(source), tokenizer.words(target)
    inner = expected(T, *[(old[i][1], new[j][1]) for i, j in words])
    end, new_end = ends(tokenizer, source, target)
    assert torch.equal(M[1:end, 1:new_end], inner[1:end, 1:new_end])


@pytest.mark.parametrize(
    "source, target, reason",
    [
        ("a red cat", "a dog", "'dog' replaces which of 'red cat'"),
        ("a cat on the grass", "a red dog on the grass", "'red dog' replaces which of 'cat'"),
        ("a cat", "a cat on the grass", "use Add"),
        ("a red cat", "a cat", "use Add"),
        ("", "a cat", "use Add"),
    ],
)
def test_what_is_no_swap(tokenizer, source, target, reason):
    assert not align.is_swap(tokenizer, source, target)
    with pytest.raises(PromptError, match=reason) as error:
        align.for_swapping(tokenizer, source, target)
    assert "\n" not in str(error.value) and "Add" in str(error.value)
