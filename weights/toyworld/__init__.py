"""The drawn, captioned world on which the toy Stable Diffusion learns, and its training."""
