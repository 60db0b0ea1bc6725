"""minip2p: Prompt-to-Prompt editing on a Stable Diffusion written out by hand, to be read."""

from minip2p.blend import LocalBlend
from minip2p.edits import Add, Edit, Reweight, Swap
from minip2p.errors import CheckpointError, PromptError
from minip2p.inversion import Inversion, invert
from minip2p.pipeline import Result, StableDiffusion
from minip2p.recording import Recording

__all__ = [
    "Add", "CheckpointError", "Edit", "Inversion", "LocalBlend", "PromptError", "Recording", "Result", "Reweight",
    "StableDiffusion", "Swap", "invert",
]  # fmt: skip
