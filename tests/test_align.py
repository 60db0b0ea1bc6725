"""Alignment: the published examples, and what must hold for any two prompts."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minip2p import PromptError
from minip2p.align import align_tokens, refinement_mapper, replacement_mapper
from minip2p.edit_options import is_swap
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
    """The mapper for pairs of positions (source, target): one to one for equal counts, else in equal shares."""
    mapper = torch.zeros(T, T)
    for old, new in pairs:
        mapper[torch.tensor(old)[:, None], torch.tensor(new)] = torch.eye(len(old)) if len(old) == len(new) else 1 / len(new)
    return mapper


def padding(T: int, end: int, target_end: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of the target's padding and where its maps come from; none if the source has no padding."""
    return [([max(j, end + 1)], [j]) for j in range(target_end + 1, T if end + 1 < T else 0)]


def run(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_the_vocabulary_has_the_token_counts_that_these_tests_assume(tokenizer):
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
    assert align_tokens(tokenizer, source, target) == partners
    mapper, has_source = refinement_mapper(tokenizer, source, target)
    for j, i in enumerate(partners):
        assert mapper[:, j].nonzero().flatten().tolist() == ([i] if i >= 0 else []) and has_source[j] == (i >= 0)


@pytest.mark.parametrize(
    "source, target, first",
    [
        ("a cat", "a dog", [4, 5, 6]),
        ("a cat", "a red dog", [5, 6, 7]),  # the target is longer: index 4 is its end token
        ("a red cat", "a dog", [5, 5, 6]),  # at index 4 the source has its end token, so its first padding, 5
        ("a red cat on the grass", "a cat", [8, 8, 8, 8, 8, 9, 10]),  # at indices 4 to 6 it has words
    ],
)
def test_padding_takes_the_padding_of_the_same_index(tokenizer, source, target, first):
    """As the authors' release does; where the source has a word or its end token there, padding takes its first padding."""
    [end] = ends(tokenizer, target)
    for mapper_of in (refinement_mapper, replacement_mapper)[: 1 + (target == "a dog" and source == "a cat")]:
        mapper, has_source = mapper_of(tokenizer, source, target)
        assert [mapper[:, end + 1 + k].nonzero().flatten().tolist() for k in range(len(first))] == [[i] for i in first]
        rest = run(end + 1 + len(first), T - 1)
        assert torch.equal(mapper[:, rest], torch.eye(T)[:, rest]) and has_source[end:].all()


def test_padding_keeps_its_own_maps_where_the_source_has_none(tokenizer):
    tokenizer = shorter(tokenizer, "a castle", room=0)
    for mapper_of in (refinement_mapper, replacement_mapper):
        mapper, has_source = mapper_of(tokenizer, "a castle", "a cat")
        assert not mapper[:, 4:].any() and not has_source[4:].any() and mapper[-1, 3] == 1


@quick
@given(sentences(ORDINARY + SPECIAL), sentences(ORDINARY + SPECIAL), st.integers(0, 5))
def test_adding_any_words(tokenizer, source, target, room):
    source, target = " ".join(source), " ".join(target)
    tokenizer = shorter(tokenizer, source, target, room=room)
    ids = [tokenizer(prompt)[0].tolist() for prompt in (source, target)]
    end, target_end = ends(tokenizer, source, target)
    partners = align_tokens(tokenizer, source, target)
    found = [i for i in partners if i >= 0]

    assert len(partners) == target_end + 1 and (partners[0], partners[-1]) == (0, end)
    assert found == sorted(set(found)) and all(ids[0][i] == ids[1][j] for j, i in enumerate(partners) if i >= 0)
    assert (len(found), partners) == needleman_wunsch(ids[0][: end + 1], ids[1][: target_end + 1])

    mapper, has_source = refinement_mapper(tokenizer, source, target)
    pairs = [([i], [j]) for j, i in enumerate(partners) if i >= 0] + padding(tokenizer.context, end, target_end)
    assert torch.equal(mapper, expected(tokenizer.context, *pairs)) and torch.equal(has_source, mapper.sum(0))


@quick
@given(sentences(ORDINARY), st.sampled_from(SPECIAL), st.sampled_from(SPECIAL), sentences(ORDINARY), st.integers(0, 5))
def test_swapping_one_word_among_any(tokenizer, before, old, new, after, room):
    """Other words keep their own maps, also where the swapped words have different numbers of tokens."""
    source, target = " ".join([*before, old, *after]), " ".join([*before, new, *after])
    tokenizer = shorter(tokenizer, source, target, room=room)
    mapper, has_source = replacement_mapper(tokenizer, source, target)
    first, x, y = 1 + len(before), tokens_of.get(old, 1), tokens_of.get(new, 1)
    end, target_end = ends(tokenizer, source, target)
    pairs = [(run(0, first - 1), run(0, first - 1)), (run(first, first + x - 1), run(first, first + y - 1))]
    pairs += [(run(first + x, end), run(first + y, target_end)), *padding(tokenizer.context, end, target_end)]
    assert torch.equal(mapper, expected(tokenizer.context, *pairs))
    assert torch.equal(has_source, (mapper.sum(0) > 0).float())
    if old == new:
        assert torch.equal(mapper, torch.eye(tokenizer.context))


@quick
@given(sentences(ORDINARY + SPECIAL), sentences(ORDINARY + SPECIAL), st.integers(0, 5))
def test_swapping_any_words(tokenizer, source, target, room):
    """Attention to words is moved or dropped: a word's rows sum to one or zero, and words go to words, whole and in order."""
    source, target = " ".join(source), " ".join(target)
    tokenizer = shorter(tokenizer, source, target, room=room)
    assert is_swap(tokenizer, source, source)
    try:
        mapper, has_source = replacement_mapper(tokenizer, source, target)
    except PromptError:
        assert not is_swap(tokenizer, source, target)
        return
    end, target_end = ends(tokenizer, source, target)
    rows = mapper[: end + 1].sum(1)
    assert ((rows - 1).abs() < 1e-6).logical_or(rows == 0).all()
    assert torch.equal(has_source, (mapper.sum(0) > 0).float())
    for row, column in ((0, 0), (end, target_end)):
        assert mapper[row, column] == mapper[row].sum() == mapper[:, column].sum() == 1
    pairs = padding(tokenizer.context, end, target_end)
    assert torch.equal(mapper[:, target_end + 1 :], expected(tokenizer.context, *pairs)[:, target_end + 1 :])
    assert not mapper[end + 1 :, : target_end + 1].any()

    pairs, last = [], -1
    for word, old in tokenizer.words(source):
        went_to = sorted({i for row in old for i in mapper[row].nonzero().flatten().tolist()})
        if went_to:
            (new,) = [positions for _, positions in tokenizer.words(target) if positions == went_to]
            assert new[0] > last
            pairs, last = [*pairs, (old, new)], new[-1]
        else:
            assert mapper[old].sum() == 0
    inner = expected(tokenizer.context, *pairs)
    assert torch.equal(mapper[1:end, 1:target_end], inner[1:end, 1:target_end])


@pytest.mark.parametrize(
    "source, target, words",
    [
        ("a cat", "a dog", [(0, 0), (1, 1)]),
        ("a bicycle on the grass", "a cat on the grass", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ("a cat on the castle", "a dog on the castle", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        # "cat" is swapped, "red" is dropped and "at night" is added
        ("a cat next to the red house", "a dog next to the house at night", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (6, 5)]),
        ("cat, asleep", "dog, asleep", [(0, 0), (1, 1), (2, 2)]),
        # no word between shared words is swapped, so prompts of equal length are paired word by word
        ("cat dog", "dog cat", [(0, 0), (1, 1)]),
        ("a red cat on the grass", "a dog on the green grass", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
        ("a red cat on the grass", "a cat on the green grass", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
    ],
)
def test_swapped_words(tokenizer, source, target, words):
    """The last pairs hold where the caller asks for a swap. The command line would choose Add for them."""
    names = [[word for word, _ in tokenizer.words(prompt)] for prompt in (source, target)]
    clear = all(names[0][i] == names[1][j] or names[0][i] not in names[1] for i, j in words)
    assert is_swap(tokenizer, source, target) == clear
    mapper, _ = replacement_mapper(tokenizer, source, target)
    old, new = tokenizer.words(source), tokenizer.words(target)
    inner = expected(T, *[(old[i][1], new[j][1]) for i, j in words])
    end, target_end = ends(tokenizer, source, target)
    assert torch.equal(mapper[1:end, 1:target_end], inner[1:end, 1:target_end])


@pytest.mark.parametrize(
    "source, target, reason",
    [
        ("a red cat", "a dog", "'dog' replaces which word of 'red cat'"),
        ("a cat on the grass", "a red dog on the grass", "'red dog' replaces which word of 'cat'"),
        ("a cat", "a cat on the grass", "use Add"),
        ("a red cat", "a cat", "use Add"),
        ("", "a cat", "use Add"),
    ],
)
def test_prompts_without_a_clear_swap_are_refused(tokenizer, source, target, reason):
    assert not is_swap(tokenizer, source, target)
    with pytest.raises(PromptError, match=reason) as error:
        replacement_mapper(tokenizer, source, target)
    assert "\n" not in str(error.value) and "Add" in str(error.value)
