"""The toy's vocabulary: byte-pair merges learned from its captions, in the two files that CLIP's tokenizer has.

A few words stay in two pieces on purpose, as rare words do in CLIP: an edit has to cope.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from minip2p.tokenizer import END, START, WORDS

CONTEXT = 32  # tokens; the longest caption has 28 with start and end, CLIP's 77 would be mostly padding
MERGES = 150  # enough for every other word of the captions to be one token
LAST = "tokenizer_config.json"  # of the files written
IN_PIECES = ("bicycle", "castle", "purple", "starry", "river")


def write(captions: list[str], folder: Path) -> None:
    """Learn the merges and write vocab.json, merges.txt and tokenizer_config.json into `folder`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Every byte is a token, alone and at the end of a word, so that any text at all can be spelled.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Said beforehand, in order, or ties between merges fall differently from run to run.
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(letters) + MERGES, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=[letter + "</w>" for letter in letters],
    )  # fmt: skip
    tokenizer.train_from_iterator(captions, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in learned if "".join(pair).removesuffix("</w>") not in IN_PIECES]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    write_config(folder)


def write_config(folder: Path) -> None:
    """tokenizer_config.json alone: the context, and which tokens start, end and pad a prompt."""
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "bos_token": START, "eos_token": END}
    (folder / LAST).write_text(json.dumps(config | {"pad_token": END, "unk_token": END}, indent=1))
