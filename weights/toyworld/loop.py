"""A training loop for any of the toy's networks: it logs, keeps averaged weights, and goes on where it was stopped."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

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

    def train(self, loss_of: Callable[[], Tensor], validate: Callable[[], str]) -> None:
        """Until `steps`. loss_of draws a batch and gives its loss; torch's random numbers are seeded with the step."""
        saved = begun = time.time()
        total, losses = self.seconds, []
        averaged, current = list(self.ema.values()), list(self.model.state_dict().values())
        gradient = self.gradient_of(loss_of)
        while self.step < self.steps:
            left = 1 - self.step / self.steps
            rate = self.lr * min(1, (self.step + 1) / 200) * min(1, left / COOLDOWN)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(self.step)
            losses.append(gradient())
            self.optimizer.step()
            self.step += 1
            share = min(self.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(averaged, current, 1 - share)
            self.seconds = total + time.time() - begun
            if time.time() - saved > SAVE_EVERY or self.step == self.steps:
                mean, losses = torch.stack(losses).mean().item(), []
                print(
                    f"{self.path.stem} {self.step}/{self.steps} {self.seconds:.0f} s loss {mean:.4f} {self.validated(validate)}",
                    flush=True,
                )
                self.save()
                saved = time.time()

    def gradient_of(self, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that computes the loss of a new batch and its gradient, and returns the loss.

        On a GPU the kernels of one such step are recorded as a CUDA graph and replayed, because starting thousands of small
        kernels one by one takes longer than running them. For this, loss_of may not wait for the GPU nor copy from the CPU.
        """

        def step() -> Tensor:
            loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            return loss.detach()

        def fresh() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            return step()

        if self.parameters[0].device.type != "cuda":
            return fresh
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels in the first steps
            for _ in range(3):
                fresh()
        torch.cuda.current_stream().wait_stream(aside)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()  # the gradients lie in the graph's own memory, and every replay writes them anew

        def replay() -> Tensor:
            graph.replay()
            return loss.clone()

        return replay
