"""Plots as SVG for inline HTML: the same bytes for the same numbers."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts import mni
from neurofoundry.contracts.volumes import SLOPE
from neurofoundry.evaluate.measure.explanations import Explanation
from neurofoundry.evaluate.measure.outlines import Example

INK, MUTED, RULE = "#1d2733", "#5b6673", "#d8dde3"
REFERENCE = "#6b7280"
COLOURS = ("#1f5f8b", "#c4611f", "#3b7d5d", "#84529b", "#a8861c", "#2f9aa0")
FAMILIAR, NEW = "#1f5f8b", "#c4611f"
TRUTH, FOUND = "#4fd0ff", "#ffb000"
"""Outlines on a scan."""

VIEWS = ("axial", "coronal", "sagittal")

WINDOW = 2.5
"""z-scores from black to middle grey, and from there to white."""

PANEL = (1.65, 1.6)
"""Inches of a plot that has others like it beside it."""

_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names may hold dollar signs
    "svg.fonttype": "none",
    "svg.hashsalt": "neurofoundry",
    "font.size": 8.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.5,
}


def colours(names: Sequence[str], reference: str) -> dict[str, str]:
    """Return a colour for every initialization; the reference is grey."""
    others = [name for name in names if name != reference]
    palette = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(others)}
    return {name: palette.get(name, REFERENCE) for name in names}


SITES = (("test", FAMILIAR), ("ood", NEW))
"""Splits and their colours."""


def roc(curves: pd.DataFrame, title: str) -> str:
    """Plot the ROC curves of an initialization with their bands, at familiar and at new sites."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for split, colour in SITES:
            rows = curves[curves["split"] == split]
            x, middle = np.r_[0, rows["fpr"]], np.r_[0, rows["tpr"]]
            axes.fill_between(
                rows["fpr"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0
            )
            axes.plot(x, middle, color=colour)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="1 − specificity", ylabel="Sensitivity")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])

    return _svg(draw, title, size=PANEL)


def reliability(points: pd.DataFrame, colour: str, title: str) -> str:
    """Plot the observed share against the stated probability of an initialization, in bins of equal
    mass."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.plot(points["stated"], points["observed"], "o-", color=colour, markersize=3.5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="Stated", ylabel="Observed")
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])

    return _svg(draw, title, size=PANEL)


def decision_curve(points: pd.DataFrame, colour: str, title: str) -> str:
    """Plot the net benefit of acting on the risks of an initialization, with its band, against the
    threshold; behind it that of treating everybody (dashed) and nobody (0)."""

    def draw(axes: Axes) -> None:
        top = float(points["prevalence"].iloc[0])
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.plot(
            *(points["threshold"], points["treat_all"]),
            color=MUTED,
            linewidth=0.8,
            linestyle=(0, (3, 3)),
        )
        axes.fill_between(
            *(points["threshold"], points["low"], points["high"]),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(points["threshold"], points["value"], color=colour)
        axes.set(xlim=(0, 1), ylim=(-0.35 * top, 1.05 * top))
        axes.set(xlabel="Threshold", ylabel="Net benefit")
        axes.set_xticks([0, 0.5, 1])
        axes.yaxis.set_major_locator(MaxNLocator(3))

    return _svg(draw, title, size=PANEL)


def predicted_against_true(
    points: pd.DataFrame,
    limits: tuple[float, float],
    unit: str,
    title: str,
    *,
    found: str = "Predicted",
) -> str:
    """Plot the outputs of an initialization, mean over seeds, against the truth, within
    ``limits``."""

    def draw(axes: Axes) -> None:
        margin = 0.04 * (limits[1] - limits[0] or 1)
        ends = (limits[0] - margin, limits[1] + margin)
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        for split, colour in SITES:
            rows = points[points["split"] == split]
            axes.scatter(
                rows["true"],
                rows["predicted"],
                s=6,
                color=colour,
                alpha=0.7,
                linewidths=0,
                # Thousands of vector dots would make the page heavy.
                rasterized=len(points) > 1000,
            )
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set(xlabel=f"True{unit}", ylabel=f"{found}{unit}")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(3))

    return _svg(draw, title, size=PANEL)


def label_efficiency(
    rows: pd.DataFrame, name: str, reference: str, colour: str, label: str, title: str
) -> str:
    """Plot the metric of an initialization against the share of labels learned from, with
    intervals; behind it the curve of the reference, and where that ends.

    ``rows`` are those of all initializations, so that panels beside each other share an axis.
    """
    drawn = rows.dropna(subset=["low"]).sort_values("fraction")

    def draw(axes: Axes) -> None:
        behind, own = (drawn[drawn["init"] == each] for each in (reference, name))
        if len(behind):
            ends = float(behind["value"].iloc[-1])
            axes.axhline(ends, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        if name != reference:
            axes.plot(behind["fraction"], behind["value"], color=REFERENCE, linewidth=1)
        reach = [own["value"] - own["low"], own["high"] - own["value"]]
        axes.errorbar(
            own["fraction"],
            own["value"],
            np.maximum(reach, 0),
            fmt="o-",
            color=colour,
            markersize=3.5,
            elinewidth=0.8,
        )
        shares = sorted(set(rows["fraction"]))
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axes.set_xticks([], minor=True)
        axes.set_xlim(shares[0] / 1.15, shares[-1] * 1.15)
        low, high = drawn["low"].min(), drawn["high"].max()
        margin = 0.04 * (high - low or 1)
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.set(xlabel="Labels", ylabel=label)

    return _svg(draw, title, size=PANEL)


def pretraining(history: pd.DataFrame) -> str:
    """Plot the loss of the pretraining by epoch."""

    def draw(axes: Axes) -> None:
        losses = [name for name in history.columns if "loss" in name]
        for name, colour in zip(losses, COLOURS, strict=False):
            axes.plot(history["epoch"], history[name], color=colour, label=name.replace("_", " "))
        axes.set(xlabel="Epoch", ylabel="Loss")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(losses) > 1:
            axes.legend(loc="best")

    return _svg(draw, "Pretraining loss by epoch", size=(4.4, 2.4))


AXIAL_MM = (-40, -20, 0, 20, 40, 60)
"""Heights of the axial planes, MNI, beside the planes through the peak."""
PIXEL_MM = 2.0
WARM, COLD = (0.98, 0.42, 0.10), (0.16, 0.52, 0.98)


def explanation(explained: Explanation, limit: float, unit: str, title: str) -> str:
    """Plot a map on the template: three planes through its peak, then axial ones from below;
    colours fade in up to ``limit``."""
    cuts = [(axis, float(explained.peak_mm[axis])) for axis in range(3)]
    cuts += [(2, float(height)) for height in AXIAL_MM]
    panels = [plane(explained, limit, *cut) for cut in cuts]
    side = panels[2].shape[0]
    panels = [np.pad(p, ((side - p.shape[0], 0), (0, 0), (0, 0))) for p in panels]
    mosaic = np.concatenate([np.concatenate(panels[k : k + 3], axis=1) for k in (0, 3, 6)])

    def draw(axes: Axes) -> None:
        axes.imshow(mosaic, interpolation="nearest")
        axes.axis("off")
        for number, (axis, position) in enumerate(cuts):
            row, column = divmod(number, 3)
            text = f"{'xyz'[axis]} = {position:.0f}".replace("-", "−")
            axes.text(side * column + 3, side * row + 3, text, color="#fff", size=7, va="top")
        colours = LinearSegmentedColormap.from_list("map", [COLD, (0.2, 0.2, 0.2), WARM])
        scale = ScalarMappable(Normalize(-limit, limit), colours)
        bar = axes.figure.colorbar(scale, ax=axes, location="bottom", aspect=30, pad=0.02)
        bar.set_label(unit)
        bar.locator = MaxNLocator(5)
        bar.outline.set_visible(False)
        bar.update_ticks()

    return _svg(draw, title, size=(3.6, 4.1))


def plane(explained: Explanation, limit: float, axis: int, position: float) -> NDArray[np.float64]:
    """Return a plane of the standard box at ``position`` mm along ``axis``, (rows from the top,
    columns, RGB)."""
    points = mni.plane(axis, position, PIXEL_MM)
    grey, moved = (
        ndimage.map_coordinates(
            values, np.moveaxis(apply_affine(np.linalg.inv(affine), points), -1, 0), order=1
        )
        for values, affine in (mni.load("t1"), (explained.mean, explained.grid.affine))
    )
    strength = np.clip(np.abs(moved) / limit, 0, 1)[..., None] if limit else 0.0
    colour = np.where(moved[..., None] > 0, WARM, COLD)
    return np.asarray((1 - strength) * 0.9 * grey[..., None] + strength * colour)


def outlines(example: Example, title: str) -> str:
    """Plot a scan with its true (``TRUTH``) and its found outline (``FOUND``): axial, coronal and
    sagittal through the largest true lesion, as radiologists have them: right is on the left."""
    place = _middle_of_largest(example.truth)
    shown = [
        np.concatenate(_planes(volume, place), axis=1)
        for volume in (_grey(example.volume), example.truth * 1.0, example.found * 1.0)
    ]
    grey, *masks = shown
    ends = np.cumsum([plane.shape[1] for plane in _planes(example.truth, place)])

    def draw(axes: Axes) -> None:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        for mask, colour, line in zip(masks, (TRUTH, FOUND), ("-", "--"), strict=True):
            if mask.any():  # dashes leave the truth to be seen where both agree
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=line)
        for number, (start, name) in enumerate(zip([0, *ends], VIEWS, strict=False)):
            height = grey.shape[0] - 1
            axes.text(start + 1, 1, name, color="#fff", size=7, va="top")
            side = "A" if number == 2 else "R"
            axes.text(start + 1, height - 1, side, color="#fff", size=8, weight="bold")
        axes.axis("off")

    return _svg(draw, title, size=(7.2, 7.2 * grey.shape[0] / grey.shape[1] + 0.1))


def _middle_of_largest(truth: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the voxel (z, y, x) of the largest lesion that lies nearest to its centre."""
    lesions, _ = ndimage.label(truth, np.ones((3, 3, 3)))
    voxels = np.argwhere(lesions == np.bincount(lesions[truth]).argmax())
    z, y, x = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()].tolist()
    return z, y, x


def _planes(volume: NDArray[Any], place: tuple[int, int, int]) -> list[NDArray[Any]]:
    """Return three planes of (z, y, x), rows from the top, of one height."""
    z, y, x = place
    planes = [volume[z, ::-1, ::-1], volume[::-1, y, ::-1], volume[::-1, ::-1, x]]
    height = max(plane.shape[0] for plane in planes)
    return [np.pad(p, ((height - p.shape[0], 0), (0, 1))) for p in planes]


def _grey(volume: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return z-scores as 0 (black) to 1, black outside of the brain."""
    grey = np.clip((volume * SLOPE + WINDOW) / (2 * WINDOW), 0, 1)
    return np.asarray(np.where(volume == 0, 0, grey))


def volumes(points: pd.DataFrame, title: str) -> str:
    """Plot outlined against true volumes, ml."""
    limits = (0.0, float(points[["true_ml", "found_ml"]].max().max()))
    shown = points.rename(columns={"true_ml": "true", "found_ml": "predicted"})
    return predicted_against_true(shown, limits, ", ml", title, found="Outlined")


def bland_altman(points: pd.DataFrame, agreement: Mapping[str, Any] | None, title: str) -> str:
    """Plot the difference of outlined and true volumes against their mean, ml, with the bias and
    the limits of ``agreement``."""

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for split, colour in SITES:
            rows = points[points["split"] == split]
            mean = (rows["found_ml"] + rows["true_ml"]) / 2
            axes.scatter(
                mean,
                rows["found_ml"] - rows["true_ml"],
                s=6,
                color=colour,
                alpha=0.7,
                linewidths=0,
                rasterized=len(points) > 1000,
            )
        for name in ("bias", "limit_low", "limit_high"):
            if agreement and agreement[name] is not None:
                axes.axhline(agreement[name], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set(xlabel="Mean of both, ml", ylabel="Outlined − true, ml")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(4))

    return _svg(draw, title, size=PANEL)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that span low to high."""
    values = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(round(tick, 10)) for tick in values]


def _svg(draw: Callable[[Axes], None], title: str, size: tuple[float, float] = (3.3, 3.2)) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            dpi=144,
            metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]),
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The page sets the width and the typeface; plots on one page must not share identifiers.
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg)
    svg = re.sub(r' id="[a-zA-Z][\w.]*_\d+"', "", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    label = f' role="img" aria-label="{html.escape(title)}"'
    return svg.replace("<svg ", f"<svg{label} ", 1)
