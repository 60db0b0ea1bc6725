"""A second implementation of Prompt-to-Prompt, written from the papers on diffusers' UNet and scheduler.

The tests compare the package with this one. They share no code. Loops over single prompts and pixels are preferred here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

# ---------------------------------------------------------------- prompts


def words_of(tokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """Each word of a prompt without punctuation, with its token positions; the start token is position 0."""
    words, position = [], 1
    for word in prompt.split():
        count = len(tokenizer.tokenize(word))
        words.append((word, list(range(position, position + count))))
        position += count
    return words


def marks(tokenizer, prompt: str, *wanted: str) -> Tensor:
    """(T,): 1 at the tokens of the wanted words."""
    row = torch.zeros(tokenizer.model_max_length)
    for word, positions in words_of(tokenizer, prompt):
        row[positions] = float(word in wanted)
    return row


def padding(tokenizer, source: str, target: str) -> list[tuple[int, int]]:
    """(source, target) indices of the target's padding: the same index, or the source's first padding if that is later."""
    first, first_of_target = (len(tokenizer(prompt).input_ids) for prompt in (source, target))
    return [(max(j, first), j) for j in range(first_of_target, tokenizer.model_max_length)]


def replacement(tokenizer, source: str, target: str) -> Tensor:
    """(T, T) for two prompts of equally many words: the authors' matrix where token counts agree.

    Where they do not agree, the tokens behind the swapped word still take the maps of the same words.
    """
    mapper = torch.zeros(tokenizer.model_max_length, tokenizer.model_max_length)
    i = j = 1
    for (_, old), (_, new) in zip(words_of(tokenizer, source), words_of(tokenizer, target), strict=True):
        for x in old:
            for y in new:
                mapper[x, y] = float(x - old[0] == y - new[0]) if len(old) == len(new) else 1 / len(new)
        i, j = i + len(old), j + len(new)
    for x, y in [(0, 0), (i, j), *padding(tokenizer, source, target)]:
        mapper[x, y] = 1.0
    return mapper


def needleman_wunsch(x: list, y: list) -> tuple[int, list[int]]:
    """The score of the best global alignment (gap 0, match 1, mismatch -1), and y's partners in x, -1 where there is none."""
    score = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            diagonal = score[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], diagonal)
    partners, i, j = [-1] * len(y), len(x), len(y)
    while i and j:  # back from the end, where it is the same leaving out tokens of y first, then of x
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return score[-1][-1], partners


def refinement(tokenizer, source: str, target: str) -> tuple[list[int], list[bool]]:
    """For each target token the source token whose map it takes, and whether it takes one at all."""
    x, y = (tokenizer(prompt).input_ids for prompt in (source, target))
    _, partners = needleman_wunsch(x, y)
    partners += [i for i, _ in padding(tokenizer, source, target)]
    return [max(i, 0) for i in partners], [i >= 0 for i in partners]


# ---------------------------------------------------------------- edits of maps


def replace_with(mapper: Tensor) -> Callable:
    has_source = mapper.sum(0) > 0
    return lambda S, A: torch.where(has_source, torch.einsum("hpw,wn->hpn", S, mapper), A)


def refine_with(mapper: list[int], shared: list[bool]) -> Callable:
    return lambda S, A: torch.where(torch.tensor(shared), S[:, :, mapper], A)


@dataclass
class Blending:
    include: Tensor  # (B, T) marks
    exclude: Tensor
    size: tuple[int, int]  # of the maps that are read
    first: int  # the step from which it acts
    threshold: float


@dataclass
class Recipe:
    """The edits of the targets 1, 2, ... of a batch; windows are in steps, not in shares of them."""

    change: list[Callable]  # per target: (S, A) -> maps, each (H, P, T)
    equalizer: list[Tensor]  # per target (T,)
    windows: list[list[tuple[int, int]]]  # per target and token, [first, last) in steps
    self_window: tuple[int, int]
    blending: Blending | None = None


class Run:
    """The state of one run: its step, and the sum of the maps that the blending reads."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.step, self.sum, self.layers = recipe, 0, 0.0, []
        self.first, self.last = torch.tensor(recipe.windows).unbind(-1)  # each (targets, T), on the device of the run

    def cross(self, maps: Tensor) -> Tensor:
        rows = [maps[0]]
        for target, own in enumerate(maps[1:]):
            edited = self.recipe.change[target](maps[0], own) * self.recipe.equalizer[target]
            now = (self.first[target] <= self.step) & (self.step < self.last[target])
            rows.append(torch.where(now, edited, own))
        blending = self.recipe.blending
        if blending and maps.shape[2] == blending.size[0] * blending.size[1]:
            self.layers.append(torch.stack(rows).mean(1))
        return torch.stack(rows)

    def self_(self, maps: Tensor) -> Tensor:
        first, last = self.recipe.self_window
        if maps.shape[2] > 16 * 16 or not first <= self.step < last:
            return maps
        return torch.stack([maps[0]] * len(maps))

    def after_step(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        blending, mask = self.recipe.blending, None
        if blending:
            self.sum = self.sum + sum(self.layers) / len(self.layers)
            self.layers = []
            mask = blend_mask(
                self.sum.unflatten(1, blending.size), blending.include, blending.exclude, z.shape[-2:], blending.threshold
            )
            if self.step >= blending.first:
                z = torch.stack([z[0]] + [z[0] + mask[i] * (z[i + 1] - z[0]) for i in range(len(z) - 1)])
        self.step += 1
        return z, mask


def blend_mask(maps: Tensor, include: Tensor, exclude: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Maps (B, h, w, T) and marks (B, T) -> (B - 1, height, width) of 0 and 1."""

    def strong(marks: Tensor, pool: bool) -> list[Tensor]:
        pictures = []
        for prompt in range(len(maps)):
            m = (maps[prompt] * marks[prompt]).sum(-1)
            h, w = m.shape
            if pool:
                near = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
                m = torch.stack(
                    [torch.stack([max(m[y + dy, x + dx] for dy, dx in near if 0 <= y + dy < h and 0 <= x + dx < w) for x in range(w)])
                     for y in range(h)]
                )  # fmt: skip
            m = m[[y * h // size[0] for y in range(size[0])]][:, [x * w // size[1] for x in range(size[1])]]
            pictures.append(m / m.max() > threshold)  # where no word is marked, 0 / 0 is not above the threshold
        return pictures

    inside, outside = strong(include, pool=True), strong(exclude, pool=False)
    return torch.stack([(inside[0] | inside[i]) & ~(outside[0] | outside[i]) for i in range(1, len(maps))]).float()


class Layer:
    """An attention layer of diffusers' UNet that materialises its maps; a Run edits those of the conditional half."""

    def __init__(self, run: Run, cross: bool):
        self.edit = run.cross if cross else run.self_

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in (q, k, v))
        maps = (torch.einsum("bphc,bthc->bhpt", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        uncond, cond = maps.chunk(2)
        maps = torch.cat([uncond, self.edit(cond)])
        return attn.to_out[0](torch.einsum("bhpt,bthc->bphc", maps, v).flatten(2))


@torch.no_grad()
def generate(
    pipeline: StableDiffusionPipeline, prompts: list[str], recipe: Recipe, start: Tensor, steps: int, guidance: float
) -> tuple[Tensor, list]:
    """The final latents (B, 4, h, w), and the mask of every step, from start (1, 4, h, w)."""
    run = Run(recipe)
    unet, scheduler, tokenizer = pipeline.unet, pipeline.scheduler, pipeline.tokenizer
    usual = unet.attn_processors
    unet.set_attn_processor({name: Layer(run, cross="attn2" in name) for name in usual})
    ids = tokenizer([""] * len(prompts) + prompts, padding="max_length", return_tensors="pt").input_ids
    text = pipeline.text_encoder(ids)[0]
    z, masks = start.repeat(len(prompts), 1, 1, 1), []
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        uncond, cond = unet(torch.cat([z, z]), t, text).sample.chunk(2)
        z = scheduler.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        z, mask = run.after_step(z)
        masks.append(mask)
    unet.set_attn_processor(usual)
    return z, masks
