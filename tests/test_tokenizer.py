"""Token ids equal transformers', for any text; words are made of all tokens, each once."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer as Reference

from minip2p import CheckpointError, PromptError
from minip2p.tokenizer import END, START, CLIPTokenizer
from tests.pipelines import write_tokenizer

PADS = (END, "!")
TEXTS = {
    "plain": "a red cat next to a blue house",
    "empty": "",
    "spaces": "  a   red  cat ",
    "tabs and newlines": "a\tred\ncat\r\n sat",
    "other spaces": "a\u00a0red\u3000cat\u2028sat",
    "capitals": "A Red CAT, İSTANBUL and ΟΔΟΣ",
    "punctuation": 'cat, dog; (house)... "car" -- a+b=c?! end.',
    "exclamation": "hello! hello!world ! !!! a",
    "contractions": "it's we'll don't I'M they've he'd o'clock 'tis",
    "digits": "in 2024 or 007, 3.14 m² ½ Ⅷ",
    "emoji": "a cat 🐱 and 👩‍👩‍👧 in 🇫🇷",
    "accents composed": "café naïve Übermaß",
    "accents decomposed": "cafe\u0301 nai\u0308ve U\u0308bermaß",
    "lonely accents": "\u0301 a \u0345",
    "cjk": "猫が好き 한국어 \u1112\u1161\u11ab 中文。",
    "indic": "क्षि बिल्ली",
    "special": f"a{END}cat {START} {END}{END}",
    "looks special": "<|ENDOF|> </w> a</w> <|cat|>",
    "zero width": "a\u200bcat\u00adsat\ufeff",
    "control": "a\x00cat\x1b",
    "over-long": "a red cat " * 40,
    "over-long emoji": "🐱" * 60,
}


@pytest.fixture(scope="module", params=PADS, ids=["sd1", "sd2"])
def tokenizers(request, tmp_path_factory) -> tuple[CLIPTokenizer, Reference]:
    """Ours and transformers', which pad as Stable Diffusion 1 and 2 do."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, request.param)
    return CLIPTokenizer(folder), Reference.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer(folder)


def reference_ids(reference: Reference, prompts: list[str]) -> torch.Tensor:
    return reference(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


# ---------------------------------------------------------------- ids


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ids_equal_transformers(tokenizers, text):
    ours, reference = tokenizers
    ids = ours(text)
    assert ids.dtype == torch.long and ids.shape == (1, 77)
    assert torch.equal(ids, reference_ids(reference, [text]))


def test_a_batch_is_its_rows(tokenizers):
    ours, reference = tokenizers
    assert torch.equal(ours(list(TEXTS.values())), reference_ids(reference, list(TEXTS.values())))


def test_start_end_and_padding(tokenizers):
    ours, reference = tokenizers
    ids = ours("a cat")[0]
    assert ids[0] == ours.start and ids[3] == ours.end and set(ids[4:].tolist()) == {ours.pad} == {reference.pad_token_id}
    cut = ours("a " * 200)[0]
    assert cut[0] == ours.start and cut[-1] == ours.end and len(cut) == 77


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("in_map", [False, True])
def test_padding_token_is_the_one_transformers_takes(tmp_path, in_map, wrapped):
    """Old folders name it in special_tokens_map.json, which goes before the config; some wrap it in an object."""
    write_tokenizer(tmp_path)
    added = {"__type": "AddedToken", "content": "!", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    pad = added if wrapped else "!"
    file = tmp_path / ("special_tokens_map.json" if in_map else "tokenizer_config.json")
    config = json.loads(file.read_text()) if file.exists() else {"bos_token": START, "eos_token": END, "unk_token": END}
    file.write_text(json.dumps(config | {"pad_token": pad}))
    assert CLIPTokenizer(tmp_path).pad == Reference.from_pretrained(tmp_path).pad_token_id == 0


# ---------------------------------------------------------------- words

pieces = st.sampled_from(
    ["cat", "CAT", "bicycle", "'s", ",", "...", " ", "  ", "\n", "!", "7", "é", "e\u0301", "Σ", "猫", "🐱", START, END]
)


@given(st.one_of(st.text(max_size=30), st.lists(pieces, max_size=14).map("".join)))
def test_any_text_has_the_reference_s_ids_and_each_token_in_one_word(tokenizers, text):
    ours, reference = tokenizers
    assert torch.equal(ours(text), reference_ids(reference, [text]))
    ids = ours.encode(text).ids
    if len(ids) > 75:
        with pytest.raises(PromptError):
            ours.words(text)
        return
    words = ours.words(text)
    assert [p for _, positions in words for p in positions] == list(range(1, 1 + len(ids)))
    for word, positions in words:
        assert word and ours.encode(word).ids == [ids[p - 1] for p in positions]
        assert set(positions) <= set(ours.find(text, word))


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a red cat", [("a", [1]), ("red", [2]), ("cat", [3])]),
        ("A  Red\ncat,", [("a", [1]), ("red", [2]), ("cat", [3]), (",", [4])]),
        ("bicycle by river", [("bicycle", [1, 2]), ("by", [3]), ("river", [4, 5])]),
        ("a child's cat", [("a", [1]), ("child", [2]), ("'s", [3]), ("cat", [4])]),
        ("Cafe\u0301", [("café", [1, 2, 3, 4, 5])]),
        ("a 🐱!", [("a", [1]), ("🐱!", [2, 3, 4, 5, 6])]),
        (f"cat{END}cat", [("cat", [1]), (END, [2]), ("cat", [3])]),
        ("", []),
    ],
)
def test_words(ours, prompt, words):
    assert ours.words(prompt) == words


@pytest.mark.parametrize(
    "prompt, phrase, positions",
    [
        ("a red cat, asleep", "cat", [3]),
        ("a red cat, asleep", "CAT", [3]),
        ("a red cat, asleep", " cat ", [3]),
        ("a red cat, asleep", "cat,", [3, 4]),
        ('the "cat"', "cat", [3]),
        ("cat by cat by a cat", "cat", [1, 3, 6]),
        ("the red cat by the red house", "the red", [1, 2, 5, 6]),
        ("cat cat cat", "cat cat", [1, 2, 3]),
        ("the river", "river", [2, 3]),
        ("a child's cat", "child's", [2, 3]),
        ("a child's cat", "child", [2]),
        ("a CAFE\u0301", "café", [2, 3, 4, 5, 6]),
        ("a catfish", "cat", []),
        ("a red blue cat", "red cat", []),
        ("a cat", "", []),
        ("", "cat", []),
    ],
)
def test_find(ours, prompt, phrase, positions):
    assert ours.find(prompt, phrase) == positions


def test_words_do_not_depend_on_the_padding(tokenizers):
    ours, _ = tokenizers
    assert ours.words("Hello!")[-1][0] == "!" and ours.find("hello! a ! cat", "!") != []


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: t.positions("a cat", "dog"), r"'dog' is not in the prompt 'a cat': use one of its words: 'a', 'cat'"),
        (lambda t: t.positions("a cat", ""), r"'' is not in the prompt"),
        (lambda t: t.check("a " * 76), r"'a a .*\.\.\.' has 76 tokens and the text encoder reads 75: shorten it by 1 tokens?"),
        (lambda t: t.words("🐱" * 60), r"has \d+ tokens .*: shorten"),
        (lambda t: t([3]), r"must be a string, not int: 3; put it in quotes"),
        (lambda t: t(["a cat", None]), r"must be a string, not NoneType"),
        (lambda t: t.check(b"a cat"), r"must be a string, not bytes"),
    ],
)
def test_prompt_errors_say_thing_cause_and_fix(ours, call, message):
    with pytest.raises(PromptError, match=message) as error:
        call(ours)
    assert "\n" not in str(error.value)


def test_a_prompt_that_just_fits_passes(ours):
    assert ours.check("a " * 75) == "a " * 75


def vocabulary_without(token: str):
    def content(folder) -> str:
        vocab = json.loads((folder / "vocab.json").read_text())
        return json.dumps({name: i for name, i in vocab.items() if name != token})

    return content


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("vocab.json", None, r"vocab.json cannot be read .*: .*download"),
        ("merges.txt", None, r"merges.txt cannot be read .*: .*download"),
        ("vocab.json", "{cut", r"vocab.json is not a JSON object: .*download it again"),
        ("vocab.json", "[1, 2]", r"vocab.json is not a JSON object"),
        ("vocab.json", b"\xff\xfe\x00", r"vocab.json is not text: .*download"),
        ("vocab.json", '{"a": 0}', r"vocab.json has no <\|startoftext\|>: it is not a CLIP vocabulary; download"),
        ("vocab.json", vocabulary_without(END), r"vocab.json has no <\|endoftext\|>"),
        ("vocab.json", json.dumps({START: "x", END: 1}), r"vocab.json has tokens without a number"),
        ("vocab.json", vocabulary_without("cat</w>"), r"merges.txt does not match vocab.json at .*: download both again"),
        ("merges.txt", "#version: 0.2\na b c\n", r"merges.txt does not match vocab.json at 'a b c'"),
        ("merges.txt", b"\xff\xfe\x00", r"merges.txt is not text"),
        ("tokenizer_config.json", "{cut", r"tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", '{"pad_token": 3}', r"tokenizer_config.json: pad_token is 3, not a token"),
        ("tokenizer_config.json", '{"pad_token": "<pad>"}', r"the vocabulary does not have the token '<pad>'"),
        ("special_tokens_map.json", "[]", r"special_tokens_map.json is not a JSON object"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path, file, content, message):
    write_tokenizer(tmp_path)
    content = content(tmp_path) if callable(content) else content
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as error:
        CLIPTokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("pad", PADS)
def test_one_tokenizer_json_will_do(tmp_path, pad):
    """All that transformers 5 writes."""
    write_tokenizer(tmp_path / "both", pad)
    Reference.from_pretrained(tmp_path / "both").save_pretrained(tmp_path / "one")
    assert not (tmp_path / "one/vocab.json").exists()
    ours, theirs = CLIPTokenizer(tmp_path / "one"), CLIPTokenizer(tmp_path / "both")
    assert torch.equal(ours(list(TEXTS.values())), theirs(list(TEXTS.values())))
    for content in ("{}", '{"model": {"vocab": {}, "merges": 3}}', '{"model": {"vocab": {"a": 0}, "merges": []}}', "{cut"):
        (tmp_path / "one/tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match="tokenizer.json .*download it again") as error:
            CLIPTokenizer(tmp_path / "one")
        assert "\n" not in str(error.value)
