"""The explorer: one HTML page on which a reader points at a word and sees where it looks, at every step.

`explore` packs what a Result holds (maps, predicted x0, masks, pictures) and what an Edit says (mapper, windows, weights) into
JSON, and puts it into the template explorer.html. The script there does the rest; it loads nothing and needs no network.

A prompt's tokens become columns: start, each token of a word, end, and all padding as one. Frames are the steps that the
page shows and, last, the mean over all steps. Cells are stored in 8 bits (`quantise`); shares are stored as float32.
"""

import base64
import html
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features
from tokenizers import decoders
from torch import Tensor

from minip2p.attention_store import Maps
from minip2p.edits import Edit
from minip2p.figures.checks import check_edit, maps_of
from minip2p.figures.edits import blend_start
from minip2p.figures.panels import evenly
from minip2p.tokenizer import CLIPTokenizer

TEMPLATE = Path(__file__).with_suffix(".html")
ROOM = 3_000_000  # cells that a page holds, about one byte each before compression
SMALL = 128  # pixels: of pictures up to this side, every step is shown
PICTURES, SIDE = 26, 256  # of larger ones, so many in all, and this side


class Page(str):
    """An HTML document that shows itself in a notebook."""

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 60rem; border: 0"
        return f'<iframe title="Where each word looks" style="{style}" srcdoc="{html.escape(self)}"></iframe>'

    def __repr__(self) -> str:
        return f"<an explorer page of {len(self.encode()) / 1000:.0f} kB>"


def explore(sd, result, edit: Edit | None = None, size: tuple[int, int] | None = None) -> Page:
    """A self-contained HTML page about a result that was made with record=True, or with record="all" to show more.

    edit: the edit that the result was made with, or None, which means the same; the page shows its alignment, windows and
    weights, unless the edit is a plain function, which does not tell them. size: the (height, width) of the maps to show. None:
    all sizes, or the finest low-resolution one where all are too many. RequestError if the result has no maps, or none of this
    size, or was made with another edit.
    """
    maps_of(result)
    check_edit(result, edit)
    edit = edit if isinstance(edit, Edit) else result.edit
    texts = [Columns.of(result.maps.tokenizer, prompt) for prompt in result.prompts]
    sizes, shown = choose(result, texts, size)
    data = {
        "prompts": [{"text": prompt, "tokens": text.tokens, "words": text.words} for prompt, text in zip(result.prompts, texts)],
        "run": {"steps": result.steps, "guidance": result.guidance, "seed": result.seed},
        "shown": [step + 1 for step in shown],
        "maps": [pack_maps(result, texts, pair, shown) for pair in sizes],
        "edit": describe(edit, texts, result.steps) if isinstance(edit, Edit) else None,
        "masks": None if result.masks is None else pack_masks(result.masks[shown]),
        "blend": blend_start(edit, result.steps),
        "pictures": pictures(sd, result, shown),
    }
    title = " \N{RIGHTWARDS ARROW} ".join(result.prompts)
    data = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")  # "<" could end the script element
    before, between, after = TEMPLATE.read_text(encoding="utf-8").split("%%")
    return Page(before + html.escape(title) + between + data + after)


def choose(result, texts: list["Columns"], size) -> tuple[list[tuple[int, int]], list[int]]:
    """The sizes of maps and the steps (from 0) that a page has room for."""
    frame = sum(len(text.groups) for text in texts) * (1 if result.own_maps is None else 2)  # maps of one step
    [site, *_] = result.maps.sites(size)
    cells = sum(height * width for height, width in result.maps.sizes)
    if size is None and (result.steps + 1) * frame * cells <= ROOM:
        return result.maps.sizes, list(range(result.steps))
    return [(site.height, site.width)], evenly(result.steps, max(2, ROOM // (frame * site.height * site.width) - 1))


# ---------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Columns:
    """The tokens of a prompt as a page shows them."""

    groups: list[list[int]]  # token positions of each column
    tokens: list[dict]  # {text, kind, first position, how many} of each column
    words: list[dict]  # {text, columns}
    fold: Tensor  # (T, columns), 1 where a token belongs to a column

    @classmethod
    def of(cls, tokenizer: CLIPTokenizer, prompt: str) -> "Columns":
        """The columns of a prompt: start, every token, end, and all padding as one."""
        words = tokenizer.words(prompt)
        pieces = tokenizer.encode(prompt).tokens
        end = 1 + len(pieces)
        padding = list(range(end + 1, tokenizer.context))
        columns = [("start", "start", [0])]
        for word, positions in words:
            columns += [(piece_text(pieces[p - 1], word, i, len(positions)), "word", [p]) for i, p in enumerate(positions)]
        columns += [("end", "end", [end])] + ([("padding", "padding", padding)] if padding else [])
        groups = [positions for _, _, positions in columns]
        fold = torch.zeros(tokenizer.context, len(columns), dtype=torch.float32, device="cpu")
        for column, positions in enumerate(groups):
            fold[positions, column] = 1.0
        tokens = [{"text": text, "kind": kind, "at": at[0], "count": len(at)} for text, kind, at in columns]
        return cls(groups, tokens, [{"text": word, "columns": positions} for word, positions in words], fold)

    def mean(self, values: Tensor) -> list:
        """Values per token, (T, ...) -> per column."""
        return [values[positions].double().mean(0).tolist() for positions in self.groups]


def piece_text(piece: str, word: str, index: int, count: int) -> str:
    """How a token is written: its letters, or which part of the word it is where it is only some bytes of a letter."""
    text = decoders.ByteLevel().decode([piece.removesuffix("</w>")])
    return f"{word} {index + 1}/{count}" if "\ufffd" in text else text


# ---------------------------------------------------------------- maps


def pack_maps(result, texts: list[Columns], size: tuple[int, int], shown: list[int]) -> dict:
    """All maps of one size, and what a page needs to read them: {after: [one a prompt], before: [one a prompt]}.

    `before` is null where the edit changed nothing, or where the run did not keep the maps before the edit.
    """
    after = [frames(result.maps, i, size, text, shown) for i, text in enumerate(texts)]
    before = [None] * len(texts)
    if result.own_maps is not None:
        own = [frames(result.own_maps, i, size, text, shown) for i, text in enumerate(texts)]
        before = [None if torch.equal(mine, new) else mine for mine, new in zip(own, after)]
    cells = [maps for maps in after + before if maps is not None]
    top = max(maps.abs().max().item() for maps in cells) or 1.0
    signed = any(maps.min() < 0 for maps in cells)

    def packed(maps: Tensor | None) -> dict | None:
        if maps is None:
            return None
        return {"cells": pack(quantise(maps, top, signed)), "shares": pack(maps.mean((2, 3)).numpy().astype("<f4"))}

    return {
        "height": size[0], "width": size[1], "layers": result.maps.layers(size), "top": top, "signed": signed,
        "after": [packed(maps) for maps in after], "before": [packed(maps) for maps in before],
    }  # fmt: skip


def frames(maps: Maps, prompt: int, size: tuple[int, int], text: Columns, shown: list[int]) -> Tensor:
    """(steps shown + 1, columns, height, width): the last frame is the mean over all steps."""
    columns = (maps.tokens(prompt, size).float().cpu() @ text.fold).permute(0, 3, 1, 2)
    return torch.cat([columns[shown], columns.mean(0, keepdim=True)])


def quantise(maps: Tensor, top: float, signed: bool) -> np.ndarray:
    """Codes of 8 bits: a cell is top * (code / 255)^2, or top * sign(code) * (code / 127)^2 if signed, as a code of -127 to 127.

    Squares keep small values apart: most words get a few percent where the start token gets nearly all. Each frame holds
    the difference from the one before it, modulo 256, which compresses to a quarter.
    """
    codes = (maps.abs() / top).sqrt().mul(127 if signed else 255).round() * maps.sign()
    return np.diff(codes.numpy().astype(np.int16), axis=0, prepend=np.int16(0)).astype(np.uint8)


def pack_masks(masks: Tensor) -> dict:
    """masks (steps shown, targets, 1, height, width) -> one bit a cell, one string a target."""
    height, width = masks.shape[-2:]
    bits = masks[:, :, 0].transpose(0, 1).cpu().numpy() > 0.5
    return {"height": height, "width": width, "targets": [pack(np.packbits(target)) for target in bits]}


def pack(array: np.ndarray) -> str:
    """The array's bytes, deflated, in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


# ---------------------------------------------------------------- the edit


def describe(edit: Edit, texts: list[Columns], steps: int) -> dict:
    """What the edit does to each target's columns. A window is [first, last), in steps from 0."""
    source = texts[0]
    windows = (edit.cross_replace * steps).floor()  # as in Edit.at
    targets = []
    for n, text in enumerate(texts[1:]):
        # How much of each source column's map goes to each target column: summed over its tokens, averaged over the source's.
        given = source.fold.T / source.fold.sum(0)[:, None] @ edit.mapper[n].float().cpu() @ text.fold
        targets.append({
            "pairs": [[i, j, round(given[i, j].item(), 4)] for i, j in given.nonzero().tolist()],
            "has_source": text.mean(edit.has_source[n].cpu()),
            "weights": text.mean(edit.equalizer[n].cpu()),
            "windows": [windows[n, positions[0]].int().tolist() for positions in text.groups],
        })  # fmt: skip
    return {"targets": targets, "self": [int(share * steps) for share in edit.self_replace]}


# ---------------------------------------------------------------- pictures


def pictures(sd, result, shown: list[int]) -> dict:
    """The final pictures, and the predicted x0 of some steps."""
    small = max(result.images[0].size) <= SMALL
    kept = shown if small else [shown[i] for i in evenly(len(shown), max(5, PICTURES // max(2, len(result.images))))]
    batches = result.pred_x0[kept].flatten(0, 1).split(16)
    steps = [picture_url(picture, SIDE) for batch in batches for picture in sd.decode_latents(batch)]
    return {
        "final": [picture_url(picture, 2 * SIDE, lossless=small) for picture in result.images],
        "steps": [steps[i :: len(result.images)] for i in range(len(result.images))],
        "at": [step + 1 for step in kept],
    }


def picture_url(picture: Image.Image, side: int, lossless: bool = False) -> str:
    """A data URL of the picture, made smaller where a side is longer: WebP, or PNG where Pillow has none."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    kind = "webp" if features.check("webp") else "png"
    file = io.BytesIO()
    picture.save(file, kind, quality=82, lossless=lossless, method=6)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
