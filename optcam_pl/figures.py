"""Pictures of maps: colors, overlays, panels. Arrays in, arrays out; nothing here uses a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture: TypeAlias = NDArray[np.uint8]  # (H,W,3)
_FONT = 13
_LINE = _FONT + 4


def picture(image: Tensor) -> Picture:
    """An image (C,H,W) in [0,1] as 8-bit RGB (H,W,3): one channel or two are gray, of more the first three are shown.

    >>> import torch
    >>> picture(torch.full((3, 1, 1), 0.5)).tolist()
    [[[128, 128, 128]]]
    """
    image = image[:3] if len(image) >= 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    array = image.detach().float().cpu().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(array)


def heatmap(saliency: Tensor, colors: str = "jet") -> Picture:
    """A map (1,H,W) or (H,W) in [0,1] in the colors of a matplotlib colormap, (H,W,3)."""
    values = saliency.detach().float().cpu().numpy().reshape(saliency.shape[-2:])
    colored: Picture = (colormaps[colors](values)[..., :3] * 255).round().astype(np.uint8)
    return colored


def overlay(image: Tensor, saliency: Tensor, opacity: float = 0.5) -> Picture:
    """The colored map over the image (3,H,W); `opacity` in [0,1] is the map's share."""
    mixed = (1 - opacity) * picture(image).astype(np.float64) + opacity * heatmap(saliency)
    return np.asarray(mixed.round(), dtype=np.uint8)


def row(pictures: Sequence[Picture], titles: Sequence[str] = (), gap: int = 4) -> Picture:
    """Pictures of equal height side by side on white, each under its title.

    Args:
        pictures: (H,W,3) each.
        titles: one for each picture, or none at all; a title may have several lines.
        gap: white pixels between neighbors.
    """
    height = pictures[0].shape[0]
    head = _LINE * max((title.count("\n") + 1 for title in titles), default=0)
    width = sum(p.shape[1] for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, height + head), "white")
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT), 0
    for i, tile in enumerate(pictures):
        sheet.paste(Image.fromarray(tile), (left, head))
        for line, text in enumerate(titles[i].split("\n") if titles else ()):
            draw.text((left + 2, 1 + line * _LINE), _fitting(text, tile.shape[1] - 2, font), "black", font)
        left += tile.shape[1] + gap
    return np.asarray(sheet)


def column(pictures: Sequence[Picture], gap: int = 4) -> Picture:
    """Pictures below each other on white, aligned at the left."""
    width = max(p.shape[1] for p in pictures)
    sheet = np.full((sum(p.shape[0] for p in pictures) + gap * (len(pictures) - 1), width, 3), 255, dtype=np.uint8)
    top = 0
    for p in pictures:
        sheet[top : top + p.shape[0], : p.shape[1]] = p
        top += p.shape[0] + gap
    return sheet


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def confusion_figure(matrix: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> Figure:
    """A confusion matrix: how many images of each class (row) were predicted as which (column), colored by row shares.

    Args:
        matrix: (C,C) counts, which are written into the cells for up to 20 classes.
        names: names of the classes.
    """
    counts = np.asarray(matrix, dtype=float)
    few = len(counts) <= 20
    figure = Figure(figsize=(3 + 0.5 * len(counts),) * 2 if few else (8, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), vmin=0, vmax=1, cmap="Blues")
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if few:
        labels = names or [str(number) for number in range(len(counts))]
        axes.set_xticks(range(len(counts)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(counts)), labels)
        for (row, column), count in np.ndenumerate(counts):
            dark = count > 0.5 * counts[row].sum()
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color="white" if dark else "black")
    return figure


def objective_curves(mean: Sequence[float], curves: Sequence[Sequence[float]] = ()) -> Figure:
    """A figure of the objective against the iteration: the mean in black, single images in gray."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        axes.plot(curve, color="0.75", linewidth=0.8)
    axes.plot(mean, color="black", label="mean over images")
    axes.set_xlabel("iteration")
    axes.set_ylabel("objective")
    axes.legend()
    return figure
