"""The scorecard's figure."""

from matplotlib.figure import Figure

from minip2p.panels import DPI, FONT, INK
from weights.scorecard.bench import GUIDANCE
from weights.scorecard.edits import WEIGHTS
from weights.scorecard.report import timesteps


def figure(summary: dict) -> Figure:
    """Four panels: target reached and layout kept over the cross window, amounts over the weight, hits over the noise."""
    page = Figure(figsize=(8.2, 6.2), dpi=DPI, layout="constrained")
    reached, kept, weighted, noisy = page.subplots(2, 2).flat
    windows = summary["tradeoff"]
    swaps = f"a noun of two swapped, {windows['n']} pictures"
    for axis, what, title in ((reached, "reached", "Target reached"), (kept, "overlap", "Layout kept: overlap of boxes")):
        for own, values in windows["curves"].get(what, {}).items():
            axis.plot(windows["cross"], values, marker="o", markersize=3, label=f"self-attention window {float(own):g}")
        finish(axis, f"{title}\n({swaps})", "cross-attention window (share of the steps)")
    for word, value in summary["reweight"].items():
        means = [float("nan") if mean is None else mean for mean in value["means"]]
        changes = [100 * (mean / (means[WEIGHTS.index(1.0)] or float("nan")) - 1) for mean in means]
        weighted.plot(WEIGHTS, changes, marker="o", markersize=3, linestyle="-" if value["rises"] else "--", label=word)
    weighted.set_yscale("symlog", linthresh=10, linscale=2)
    weighted.set_yticks(ticks := (-60, -30, -10, -5, 0, 5, 10), [f"{tick:+d} %" for tick in ticks])
    weighted.minorticks_off()
    finish(weighted, "How much of a word there is, against weight 1\n(dashed where it does not rise; beyond 10 % the axis is logarithmic)", "weight")
    for side, value in summary["pointing"].items():
        noisy.plot(timesteps(summary["pointing"]), value["levels"], marker="o", markersize=3, label=f"{side} x {side}")
    noisy.axhline(summary["pointing"]["16"]["chance"][0], color="gray", linestyle=":", linewidth=1, label="chance")
    noisy.invert_xaxis()
    finish(noisy, "A noun's strongest cell lies in its thing", "timestep t: from noise to picture")
    for axis in (reached, kept, noisy):
        axis.set_ylim(0, 1.03)
    page.supxlabel(f"pictures of {summary['steps']} steps, guidance {GUIDANCE:g}; maps on drawn pictures", fontsize=FONT, color=INK)
    return page


def finish(axis, title: str, label: str) -> None:
    axis.set_title(title, fontsize=FONT, color=INK)
    axis.set_xlabel(label, fontsize=FONT)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", ncols=2 if len(axis.get_legend_handles_labels()[0]) > 5 else 1)
