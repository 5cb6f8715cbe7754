"""A picture of what the encoder is shown of some scans."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from neurofoundry.runtime.files import atomic


def draw_views(path: Path, volumes: torch.Tensor, inputs: torch.Tensor, *, scans: int = 6) -> None:
    """Write a PNG with a column a scan: axial and coronal slices of its volume and its views.

    ``volumes`` are z-scores (batch, contrasts, z, y, x), of which T1w is shown; ``inputs`` are what
    `Objective.inputs` returns.
    """
    views = {f"view {number + 1}": view[:, :1] for number, view in enumerate(inputs)}
    if inputs.shape[2] > volumes.shape[1]:
        views["visible"] = inputs[0, :, :1] * inputs[0, :, -1:]
    rows = {"scan": volumes, **views}
    scans = min(scans, len(volumes))
    figure = Figure(figsize=(2 * scans, 4 * len(rows)), layout="constrained")
    axes = figure.subplots(2 * len(rows), scans, squeeze=False)
    for row, (name, batch) in enumerate(rows.items()):
        each = batch[:scans, 0].cpu().numpy()
        middle_z, middle_y = each.shape[1] // 2, each.shape[2] // 2
        for column, volume in enumerate(each):
            for plane, picture in enumerate((volume[middle_z], volume[:, middle_y])):
                axis = axes[2 * row + plane, column]
                axis.imshow(picture, cmap="gray", vmin=-3, vmax=3, origin="lower")
                axis.set_axis_off()
        axes[2 * row, 0].set_title(name, loc="left")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
