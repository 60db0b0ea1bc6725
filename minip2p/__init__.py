"""minip2p: Prompt-to-Prompt editing on a Stable Diffusion written out by hand, to be read."""

from minip2p.attention import AttentionEdit, Site
from minip2p.edits import Add, Edit, Reweight, Swap
from minip2p.errors import CheckpointError, PromptError, RequestError
from minip2p.figures.explorer import explore
from minip2p.inversion import Inversion, invert
from minip2p.local_blend import LocalBlend
from minip2p.pipeline import StableDiffusion
from minip2p.recording import Recording
from minip2p.result import Result

__all__ = [
    "Add", "AttentionEdit", "CheckpointError", "Edit", "Inversion", "LocalBlend", "PromptError", "Recording", "RequestError",
    "Result", "Reweight", "Site", "StableDiffusion", "Swap", "explore", "invert",
]  # fmt: skip
