"""CLIP's tokenizer: prompt -> token ids, and which tokens make up which word.

Byte-pair encoding over lower-cased words (Sennrich et al. 2016; Radford et al. 2021), run by the `tokenizers` library.
"""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import LongTensor

from minip2p.errors import CheckpointError, PromptError

START, END = "<|startoftext|>", "<|endoftext|>"
# What CLIP calls a word: a contraction's tail, letters, one digit, or a run of anything else but spaces.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer:
    """Prompts to ids as Stable Diffusion makes them: start, the prompt's tokens, end, then padding up to `context`."""

    def __init__(self, folder: str | Path, context: int = 77):
        """`folder` holds vocab.json and merges.txt, or both in one tokenizer.json, and may say in a config what pads (SD 1: the
        end token; SD 2: "!")."""
        folder = Path(folder)
        self.context = context
        vocab, merges = read_vocabulary(folder)
        self.bpe = Tokenizer(models.BPE(vocab, merges, unk_token=END, end_of_word_suffix="</w>"))
        self.bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self.bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        pad = read_pad_token(folder)
        if pad not in vocab:
            raise CheckpointError(
                f"{folder}: the vocabulary does not have the token {pad!r} that pads: download the folder again"
            )
        self.special = {START, END, pad}  # each is a token wherever it stands in a prompt, SD 2's "!" too
        self.bpe.add_special_tokens(sorted(self.special))
        self.start, self.end, self.pad = vocab[START], vocab[END], vocab[pad]

    def __call__(self, prompts: str | list[str]) -> LongTensor:
        """Token ids (B, T), T = `context`. Text that does not fit is cut, as Stable Diffusion does; `check` refuses it."""
        rows = []
        for prompt in prompts if isinstance(prompts, (list, tuple)) else [prompts]:
            ids = [self.start, *self.encode(prompt).ids[: self.context - 2], self.end]
            rows.append(ids + [self.pad] * (self.context - len(ids)))
        return torch.tensor(rows, dtype=torch.long)

    def encode(self, prompt: str):
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt must be a string, not {type(prompt).__name__}: {prompt!r}; put it in quotes")
        return self.bpe.encode(prompt, add_special_tokens=False)

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

        Punctuation is a word of its own: "a cat, asleep" has the words a / cat / , / asleep.
        """
        words: list[tuple[str, list[int]]] = []
        spelled, positions = "", []
        for i, token in enumerate(self.encode(self.check(prompt)).tokens, start=1):
            spelled, positions = spelled + token, [*positions, i]
            if token.endswith("</w>") or token in self.special:  # else the word goes on
                words.append((decoders.ByteLevel().decode([spelled.removesuffix("</w>")]), positions))
                spelled, positions = "", []
        return words

    def find(self, prompt: str, phrase: str) -> list[int]:
        """Positions of all tokens of a word or phrase, at every place where it stands in the prompt; [] if nowhere."""
        words = self.words(prompt)
        names = [word for word, _ in words]
        wanted = [word for word, _ in self.words(phrase)]
        if not wanted:
            return []
        starts = [i for i in range(len(names)) if names[i : i + len(wanted)] == wanted]
        return sorted({p for i in starts for _, positions in words[i : i + len(wanted)] for p in positions})

    def positions(self, prompt: str, phrase: str) -> list[int]:
        """As `find`, but PromptError where the phrase is not in the prompt."""
        found = self.find(prompt, phrase)
        if not found:
            raise PromptError(f"{phrase!r} is not in the prompt {prompt!r}: use one of its words: {self.listing(prompt)}")
        return found

    def listing(self, prompt: str) -> str:
        """The prompt's words, for a message."""
        return ", ".join(dict.fromkeys(word for word, _ in self.words(prompt)))


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges; CheckpointError if one is missing or is not what its name says."""
    both = folder / "tokenizer.json"
    if both.is_file() and not (folder / "vocab.json").is_file():  # all that transformers 5 writes
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
    if missing or not all(isinstance(i, int) and i >= 0 for i in vocab.values()):
        what = f"has no {missing[0]}" if missing else "has tokens without a number"
        raise CheckpointError(f"{names[0]} {what}: it is not a CLIP vocabulary; download it again")
    for pair in merges:
        if len(pair) != 2 or not vocab.keys() >= {*pair, "".join(pair)}:
            line = shorten(" ".join(pair))
            raise CheckpointError(f"{names[1]} does not match {names[0].name} at {line!r}: download both again")
    return vocab, merges


def read_pad_token(folder: Path) -> str:
    """The padding token that the tokenizer's config names; CLIP's own default is the end token."""
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        token = read_json(file).get("pad_token") if file.is_file() else None
        if token is not None:
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str):
                raise CheckpointError(f"{file}: pad_token is {token!r}, not a token: download it again")
            return token
    return END


def read_json(file: Path) -> dict:
    """A JSON object from a file; CheckpointError if it is not there or something else."""
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object: it was cut short or is something else, download it again")
    return content


def read_text(file: Path) -> str:
    """A text file; CheckpointError if it is not there or is no text."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{file} is not text: it is not what its name says, download it again") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): it belongs to every model, download it") from None


def shorten(text: str, width: int = 60) -> str:
    """The text, or its beginning and an ellipsis, for a one-line message."""
    return text if len(text) <= width else text[: width - 3] + "..."
