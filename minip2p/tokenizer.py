"""CLIP's tokenizer: prompt -> token ids, and which tokens make up which word.

Byte-pair encoding over lower-cased words (Sennrich et al. 2016; Radford et al. 2021), run by the `tokenizers` library.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import LongTensor

from minip2p.errors import CheckpointError, PromptError

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: the end of a contraction, letters, one digit, or a run of anything else but spaces.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MAX_ID = 2**31  # token ids are below this


class CLIPTokenizer:
    """Prompts to ids as Stable Diffusion makes them: start, the prompt's tokens, end, then padding up to `context` tokens."""

    def __init__(self, folder: str | Path, context: int = 77, pad_id: int | None = None):
        """`folder` holds vocab.json and merges.txt, or both in one tokenizer.json, and may hold added tokens.

        The padding token is the one with pad_id, or the one that the folder's config names (SD 1: the end token, SD 2: "!").
        """
        folder = Path(folder)
        self.context = context
        vocab, merges = read_vocabulary(folder)
        added = read_added_tokens(folder, vocab)
        pad = read_pad_token(folder) if pad_id is None else next((token for token, i in vocab.items() if i == pad_id), pad_id)
        if pad not in vocab:
            raise CheckpointError(
                f"{folder}: the vocabulary does not have the token {pad!r} that pads: download the folder again"
            )
        try:
            self.bpe = build(vocab, merges)
            self.bpe.add_special_tokens(sorted({START, END, pad}))  # a special token is found wherever it stands in a prompt
            self.bpe.add_tokens(added)
        except Exception as error:  # the library raises plain Exceptions for a vocabulary that it cannot take
            cause = " ".join(str(error).split())
            raise CheckpointError(f"{folder} holds no byte-pair vocabulary ({cause}): download the folder again") from None
        self.start, self.end, self.pad = vocab[START], vocab[END], vocab[pad]
        self.whole = {self.start, self.end, self.pad, *(vocab[token.content] for token in added)}  # ids that are one word each

    def __call__(self, prompts: str | list[str]) -> LongTensor:
        """Token ids (B, T), T = `context`. A longer prompt is cut, as in Stable Diffusion; `check` refuses such a prompt."""
        rows = []
        for prompt in prompts if isinstance(prompts, (list, tuple)) else [prompts]:
            ids = [self.start, *self.encode(prompt).ids[: self.context - 2], self.end]
            rows.append(ids + [self.pad] * (self.context - len(ids)))
        return torch.tensor(rows, dtype=torch.long, device="cpu")

    def encode(self, prompt: str):
        """The prompt's tokens, without start, end and padding, as the `tokenizers` library returns them."""
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt must be a string, not {type(prompt).__name__}: {prompt!r}; put it in quotes")
        try:
            return self.bpe.encode(prompt, add_special_tokens=False)
        except UnicodeEncodeError:  # half of a surrogate pair
            raise PromptError(f"the prompt {prompt!a} holds a character that is not valid Unicode: type it again") from None

    def check(self, prompt: str) -> str:
        """The prompt itself if all of it fits into the context; PromptError otherwise."""
        room, length = self.context - 2, len(self.encode(prompt).ids)
        if length > room:
            raise PromptError(
                f"the prompt {shorten(prompt)!r} has {length} tokens and the text encoder reads {room}: "
                f"shorten it by {length - room} tokens"
            )
        return prompt

    def words(self, prompt: str) -> list[tuple[str, list[int]]]:
        """The prompt's words in order, each with the positions of its tokens; position 0 is the start token.

        Punctuation is a word of its own: "a cat, asleep" has the words a / cat / , / asleep. An added token is one word.
        """
        words: list[tuple[str, list[int]]] = []
        spelled, positions = "", []
        encoded = self.encode(self.check(prompt))
        for i, (token, token_id) in enumerate(zip(encoded.tokens, encoded.ids), start=1):
            positions = [*positions, i]
            if token_id in self.whole:
                words.append((self.bpe.id_to_token(token_id), positions))
            else:
                spelled += token
                if not token.endswith("</w>"):  # the word goes on
                    continue
                words.append((decoders.ByteLevel().decode([spelled.removesuffix("</w>")]), positions))
            spelled, positions = "", []
        return words

    def find(self, prompt: str, phrase: str) -> list[int]:
        """Positions of all tokens of a word or phrase, at every place where it stands in the prompt; [] if nowhere.

        Punctuation is compared character by character: "(cat)" is found in "(cat), asleep", where "),", is one token.
        """
        pieces, wanted = list(self.pieces(prompt)), [piece for piece, _ in self.pieces(phrase)]
        names = [piece for piece, _ in pieces]
        if not wanted:
            return []
        starts = [i for i in range(len(names)) if names[i : i + len(wanted)] == wanted]
        return sorted({p for i in starts for _, positions in pieces[i : i + len(wanted)] for p in positions})

    def pieces(self, prompt: str) -> Iterator[tuple[str, list[int]]]:
        """The prompt's words, except that each character of a punctuation mark is a piece with all of the mark's positions."""
        for word, positions in self.words(prompt):
            is_mark = not any(character.isalnum() for character in word)
            yield from ((character, positions) for character in word) if is_mark else [(word, positions)]

    def positions(self, prompt: str, phrase: str) -> list[int]:
        """As `find`, but PromptError where the phrase is not in the prompt."""
        found = self.find(prompt, phrase)
        if not found:
            raise PromptError(f"{phrase!r} is not in the prompt {prompt!r}: use one of its words: {self.listing(prompt)}")
        return found

    def listing(self, prompt: str) -> str:
        """The prompt's words for a message, each in quotes, because a word can be a comma."""
        return ", ".join(dict.fromkeys(repr(word) for word, _ in self.words(prompt)))


def build(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """CLIP's byte-pair encoding with a vocabulary."""
    bpe = Tokenizer(models.BPE(vocab, merges, unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return bpe


# ---------------------------------------------------------------- files


def is_token_id(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ID


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges; CheckpointError if a file is missing or is not what its name says."""
    both = folder / "tokenizer.json"
    if both.is_file() and not (folder / "vocab.json").is_file():  # transformers 5 writes nothing else
        model = read_json(both).get("model")
        vocab, lines = (model.get(part) if isinstance(model, dict) else None for part in ("vocab", "merges"))
        if not isinstance(vocab, dict) or not isinstance(lines, list) or not all(isinstance(line, (str, list)) for line in lines):
            raise CheckpointError(f"{both} has no byte-pair vocabulary: it is not CLIP's tokenizer; download it again")
        merges = [tuple(line.split() if isinstance(line, str) else map(str, line)) for line in lines]
        names = both, both
    else:
        names = folder / "vocab.json", folder / "merges.txt"
        vocab = read_json(names[0])
        merges = [tuple(line.split()) for line in read_text(names[1]).splitlines() if line and not line.startswith("#version")]
    missing = [token for token in (START, END) if token not in vocab]
    if missing or not all(map(is_token_id, vocab.values())):
        cause = f"has no {missing[0]}" if missing else "has tokens without a number"
        raise CheckpointError(f"{names[0]} {cause}: it is not a CLIP vocabulary; download it again")
    for pair in merges:
        if len(pair) != 2 or not vocab.keys() >= {*pair, "".join(pair)}:
            line = shorten(" ".join(pair))
            raise CheckpointError(f"{names[1]} does not match {names[0].name} at {line!r}: download both again")
    return vocab, merges


def read_added_tokens(folder: Path, vocab: dict[str, int]) -> list[AddedToken]:
    """The tokens that were added after training, as by textual inversion; their ids are put into `vocab`.

    Three files may list them, as transformers wrote them over the years: added_tokens.json, tokenizer.json and
    tokenizer_config.json. CheckpointError for a list that is damaged or contradicts the vocabulary.
    """
    found: dict[str, AddedToken] = {}
    by_id = {token_id: token for token, token_id in vocab.items()}
    for file, entries in added_token_lists(folder):
        for token_id, entry in entries:
            entry = entry if isinstance(entry, dict) else {}
            content = entry.get("content")
            flags = {key: entry[key] for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in entry}
            valid = isinstance(content, str) and content and is_token_id(token_id)
            if not valid or not all(isinstance(flag, bool) for flag in flags.values()):
                raise CheckpointError(f"{file}: {shorten(repr(entry))} is not an added token: download it again")
            if vocab.get(content, token_id) != token_id or by_id.get(token_id, content) != content:
                cause = f"the added token {shorten(content)!r} has the number {token_id}, against the vocabulary"
                raise CheckpointError(f"{file}: {cause}: download the folder again")
            vocab[content], by_id[token_id] = token_id, content
            if content not in (START, END):  # which are special tokens already
                found[content] = AddedToken(content, **flags)
    return list(found.values())


def added_token_lists(folder: Path) -> Iterator[tuple[Path, list[tuple[int, dict]]]]:
    """(file, [(id, entry)]) of each file that lists added tokens; an entry has the fields of an AddedToken."""
    for name in ("added_tokens.json", "tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        content = read_json(file)
        if name == "added_tokens.json":
            yield file, [(token_id, {"content": token}) for token, token_id in content.items()]
            continue
        entries = content.get("added_tokens" if name == "tokenizer.json" else "added_tokens_decoder") or []
        if isinstance(entries, dict):
            yield file, [(int(key) if key.isdecimal() else -1, entry) for key, entry in entries.items()]
        elif isinstance(entries, list):
            yield file, [(entry.get("id", -1) if isinstance(entry, dict) else -1, entry) for entry in entries]
        else:
            raise CheckpointError(f"{file}: its added tokens are {shorten(repr(entries))}: download it again")


def read_pad_token(folder: Path) -> str:
    """The padding token that the tokenizer's config names; CLIP's own default is the end token."""
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        token = read_json(file).get("pad_token") if file.is_file() else None
        if token is not None:
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str):
                raise CheckpointError(f"{file}: pad_token is {shorten(repr(token))}, not a token: download it again")
            return token
    return END


def read_json(file: Path) -> dict:
    """A JSON object from a file; CheckpointError if the file is missing or holds something else."""
    text = read_text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object: it was cut short or is something else, download it again")
    return content


def read_text(file: Path) -> str:
    """A text file; CheckpointError if it is missing or is not text."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{file} is not text: it is not what its name says, download it again") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): it belongs to every model, download it") from None


def shorten(text: str, width: int = 60) -> str:
    """The text, or its beginning and an ellipsis, for a one-line message."""
    return text if len(text) <= width else text[: width - 3] + "..."
