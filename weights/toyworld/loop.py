"""A training loop for any of the toy's networks: it logs, keeps averaged weights, and goes on where it was stopped."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minip2p.save import write_whole

SAVE_EVERY = 120  # seconds
COOLDOWN = 0.7  # the share of the steps over which the learning rate falls to nothing


class Run:
    """AdamW, a short warm-up, a linear cool-down, averaged weights, and a state file that is written whole."""

    def __init__(self, path: Path, model: nn.Module, lr: float, steps: int, average: float = 0.999):
        self.path, self.model, self.lr, self.steps, self.average = path, model, lr, steps, average
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.ema = {k: v.clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state.get("model", state["ema"]))
            self.ema = {k: v.to(self.ema[k].device) for k, v in state["ema"].items()}
            self.step, self.seconds = state["step"], state["seconds"]
            if "optimizer" in state:  # weights alone are a place to start from
                self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema}
        write_whole(self.path, lambda path: torch.save(state | {"step": self.step, "seconds": self.seconds}, path))

    @torch.no_grad()
    def validated(self, validate) -> str:
        """What `validate` says while the model has its averaged weights."""
        current = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        said = validate()
        self.model.load_state_dict(current)
        return said

    def train(self, loss_of, validate) -> None:
        """Until `steps`. loss_of(generator, rng) gives a loss; torch's generator and numpy's are seeded with the step."""
        saved = begun = time.time()
        total, losses = self.seconds, []
        while self.step < self.steps:
            left = 1 - self.step / self.steps
            rate = self.lr * min(1, (self.step + 1) / 200) * min(1, left / COOLDOWN)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(torch.Generator().manual_seed(self.step), np.random.default_rng(self.step))
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            share = min(self.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.ema.values()), list(self.model.state_dict().values()), 1 - share)
            losses.append(loss.detach())
            self.seconds = total + time.time() - begun
            if time.time() - saved > SAVE_EVERY or self.step == self.steps:
                mean, losses = torch.stack(losses).mean().item(), []
                print(
                    f"{self.path.stem} {self.step}/{self.steps} {self.seconds:.0f} s loss {mean:.4f} {self.validated(validate)}",
                    flush=True,
                )
                self.save()
                saved = time.time()
