"""Figures of pictures, attention maps and edits: functions from results to a matplotlib `Figure`.

A figure shows itself as the last expression of a notebook cell, and `figure.savefig(path)` writes it. pyplot is not used.
"""

from minip2p.figures.edits import alignment, changed_words, explain, mask_growth
from minip2p.figures.maps import describe, maps_by_size, maps_by_step, overlays, word_maps
from minip2p.figures.panels import Figure, curves, evenly, grid

__all__ = [
    "Figure", "alignment", "changed_words", "curves", "describe", "evenly", "explain", "grid", "maps_by_size",
    "maps_by_step", "mask_growth", "overlays", "word_maps",
]  # fmt: skip
