"""Tokenizers with added tokens, as textual inversion and Custom Diffusion make them, and phrases next to punctuation."""

import json
from pathlib import Path

import pytest
from transformers import AddedToken
from transformers import CLIPTokenizer as Reference

from minip2p import CheckpointError
from minip2p.tokenizer import END, START, CLIPTokenizer
from tests.pipelines import write_tokenizer

TEXTS = [
    "a <cat-toy> on the grass", "a <cat-toy>, <cat-toy>", "a<cat-toy>b", "A <CAT-TOY> and a <Big Dog>", "<cat-toy>_1 <cat-toy",
    "a <big dog>'s <new1>", "<cat-toy><cat-toy>", "",
]  # fmt: skip
ADDED = ["<cat-toy>", "<Big Dog>", "<new1>"]


def flags(special: bool) -> dict:
    return {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not special, "special": special}


def write_added(folder: Path, form: str) -> None:
    """The three tokens, in one of the files in which transformers has written them over the years."""
    write_tokenizer(folder)
    first = 1 + max(json.loads((folder / "vocab.json").read_text()).values())
    ids = {token: first + i for i, token in enumerate(ADDED)}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps(ids))
    elif form == "tokenizer_config.json":
        entries = {str(i): {"content": token, **flags(token == "<new1>")} for token, i in ids.items()}
        special = {str(first - 2 + i): {"content": token, **flags(True)} for i, token in enumerate((START, END))}
        (folder / form).write_text(json.dumps(config | {"added_tokens_decoder": special | entries}))
    else:  # as transformers 5 writes everything
        reference = Reference.from_pretrained(folder)
        reference.add_tokens([*ADDED[:2], AddedToken("<new1>", special=True)])
        for file in folder.iterdir():
            file.unlink()
        reference.save_pretrained(folder)
        assert {file.name for file in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_added_tokens_are_one_id_as_in_transformers(tmp_path, form):
    write_added(tmp_path, form)
    ours, reference = CLIPTokenizer(tmp_path), Reference.from_pretrained(tmp_path)
    expected = reference(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert ours(TEXTS).tolist() == expected.tolist()
    assert ours("<cat-toy>")[0, 1] == reference.convert_tokens_to_ids("<cat-toy>") == max(ours.bpe.get_vocab().values()) - 2


def test_an_added_token_is_a_word_like_any_other(tmp_path):
    write_added(tmp_path, "added_tokens.json")
    ours = CLIPTokenizer(tmp_path)
    assert ours.words("a <cat-toy>, red") == [("a", [1]), ("<cat-toy>", [2]), (",", [3]), ("red", [4])]
    assert ours.positions("a <cat-toy> and a <Cat-Toy>", "<CAT-TOY>")[0] == 2
    assert len(ours.positions("a <cat-toy> and a <Cat-Toy>", "<cat-toy>")) == 2
    assert ours.find("a <cat-toy", "<cat-toy>") == []


@pytest.mark.parametrize(
    "file, content, message",
    [
        (
            "added_tokens.json",
            {"<a>": 5},
            r"added_tokens.json: the added token '<a>' has the number 5, against the vocabulary: download",
        ),
        ("added_tokens.json", {"cat</w>": 9999}, r"the added token 'cat</w>' has the number 9999, against the vocabulary"),
        ("added_tokens.json", {"<a>": "x"}, r"added_tokens.json: .* is not an added token: download it again"),
        ("added_tokens.json", {"<a>": -1}, r"is not an added token"),
        ("added_tokens.json", {"": 9999}, r"is not an added token"),
        ("added_tokens.json", [1], r"added_tokens.json is not a JSON object"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {"content": "<a>"}}},
            r"tokenizer_config.json: .* is not an added",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": {"content": "<a>", "special": 3}}}, r"is not an added token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": 3}}, r"is not an added token"),
        ("tokenizer_config.json", {"added_tokens_decoder": "x"}, r"its added tokens are 'x': download it again"),
        ("tokenizer.json", {"added_tokens": [3]}, r"is not an added token"),
    ],
)
def test_damaged_added_tokens_are_refused(tmp_path, file, content, message):
    write_tokenizer(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as error:
        CLIPTokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "prompt, phrase, words",
    [
        ("a red cat (asleep), by a river", "(asleep)", ["(", "asleep", "),"]),
        ("a (red) cat", "(red) cat", ["(", "red", ")", "cat"]),
        ("a ((cat)), a (cat) by", "(cat)", ["((", "cat", ")),", "(", "cat", ")"]),
        ("a cat... by", ".", ["..."]),
        ("a child's (cat's) river", "(cat's)", ["(", "cat", "'s", ")"]),
        ("a cat, by", "cat)", []),
        ("a cat), by", "(cat)", []),
    ],
)
def test_punctuation_that_joins_the_next_token(tmp_path, prompt, phrase, words):
    write_tokenizer(tmp_path)
    ours = CLIPTokenizer(tmp_path)
    found = ours.find(prompt, phrase)
    own = [(word, positions) for word, positions in ours.words(prompt) if set(positions) & set(found)]
    assert [word for word, _ in own] == words
    assert found == [position for _, positions in own for position in positions]


def test_the_reported_prompt(tmp_path):
    """From comfyui-daam #10."""
    write_tokenizer(tmp_path)
    ours = CLIPTokenizer(tmp_path)
    prompt = "house (cat), river"
    words = ours.words(prompt)
    assert [word for word, _ in words] == ["house", "(", "cat", "),", "river"]
    assert ours.positions(prompt, "(cat)") == [position for _, own in words[1:4] for position in own]
    with pytest.raises(ValueError, match=r"use one of its words: 'house', '\(', 'cat', '\),', 'river'$"):
        ours.positions(prompt, "(dog)")
