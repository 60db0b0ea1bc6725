"""CLIP's tokenizer: prompt -> token ids, and which tokens make up which word.

Byte-pair encoding over lower-cased words (Sennrich et al. 2016; Radford et al. 2021), run by the `tokenizers` library.
"""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import LongTensor

from minip2p.errors import CheckpointError, PromptError

START, END = "<|startoftext|>", "<|endoftext|>"
# What CLIP calls a word: a contraction's tail, letters, one digit, or a run of anything else but spaces.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer:
    """Prompts to ids as Stable Diffusion makes them: start, the prompt's tokens, end, then padding up to `context`."""

    def __init__(self, folder: str | Path, context: int = 77):
        """`folder` holds vocab.json and merges.txt, and may say in a config what pads (SD 1: the end token; SD 2: "!")."""
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
        self.bpe.add_special_tokens([START, END])
        self.start, self.end = vocab[START], vocab[END]
        self.pad = vocab.get(read_pad_token(folder), self.end)

    def __call__(self, prompts: str | list[str]) -> LongTensor:
        """Token ids (B, T), T = `context`. Text that does not fit is cut, as Stable Diffusion does; `check` refuses it."""
        rows = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
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
        encoding = self.encode(self.check(prompt))
        words: list[tuple[str, list[int]]] = []
        inside = False  # a word of several tokens goes on until one that ends in </w>
        for i, (token, (start, stop)) in enumerate(zip(encoding.tokens, encoding.offsets), start=1):
            begin, positions = (begin, positions + [i]) if inside else (start, [i])
            inside = not token.endswith("</w>") and token not in (START, END)
            if not inside:
                words.append((prompt[begin:stop].strip().lower(), positions))
        return words

    def find(self, prompt: str, phrase: str) -> list[int]:
        """Positions of all tokens of a word or phrase, at every place where it stands in the prompt; [] if nowhere."""
        words = self.words(prompt)
        names = [word for word, _ in words]
        wanted = [word for word, _ in self.words(phrase)]
        if not wanted:
            return []
        starts = [i for i in range(len(names)) if names[i : i + len(wanted)] == wanted]
        return [p for i in starts for _, positions in words[i : i + len(wanted)] for p in positions]

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
    """vocab.json and merges.txt; CheckpointError if one is missing or is not what its name says."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing: the tokenizer needs vocab.json and merges.txt")
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{folder / 'vocab.json'} is not JSON: download it again") from None
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    missing = [token for token in (START, END) if token not in vocab]
    if missing or any(len(pair) != 2 for pair in merges):
        what = f"has no {missing[0]}" if missing else "does not match merges.txt, whose lines are not all pairs"
        raise CheckpointError(f"{folder / 'vocab.json'} {what}: it is not a CLIP vocabulary; download both again")
    return vocab, merges


def read_pad_token(folder: Path) -> str:
    """The padding token that the tokenizer's config names; CLIP's own default is the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if token is not None:
                return token["content"] if isinstance(token, dict) else token
    return END


def shorten(text: str, width: int = 60) -> str:
    """The text, or its beginning and an ellipsis, for a one-line message."""
    return text if len(text) <= width else text[: width - 3] + "..."
