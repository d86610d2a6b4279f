"""Pictures of maps: colors, overlays, panels. Arrays in, arrays out; nothing here uses a network.

`COLORS` are the colors of all maps: matplotlib's viridis, whose lightness grows evenly, so that readers who are color
blind, and a gray print, show the same order as the colors. "jet", which many papers use, is an option wherever maps are
drawn; its lightness rises and falls, and its bright bands look like edges that the map does not have.
"""

from __future__ import annotations

import difflib
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor

from optcam_pl.figures.fonts import drawable, in_one_font, legible

Picture: TypeAlias = NDArray[np.uint8]  # (H,W,3)
COLORS = "viridis"
_FONT = 13
_NAMED = 20  # classes whose names stand beside a confusion matrix
_WIDEST = 34  # characters of a line above or below a picture
_LINE = _FONT + 4
_CARD_FONT = 28
_CARD_LINE = _CARD_FONT + 8


def picture(image: Tensor) -> Picture:
    """An image (C,H,W) in [0,1] as 8-bit RGB (H,W,3): one channel or two are gray, of more the first three are shown.

    >>> import torch
    >>> picture(torch.full((3, 1, 1), 0.5)).tolist()
    [[[128, 128, 128]]]
    """
    # NumPy computes here, not torch, which would start threads of its own for each thread that draws pictures.
    pixels = image.detach().float().cpu().numpy()
    pixels = pixels[:3] if len(pixels) >= 3 else np.broadcast_to(pixels.mean(0), (3, *pixels.shape[1:]))
    return np.ascontiguousarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def heatmap(saliency: Tensor, colors: str = COLORS) -> Picture:
    """A map (1,H,W) or (H,W) in [0,1] in the colors of a matplotlib colormap, (H,W,3)."""
    values = saliency.detach().float().cpu().numpy().reshape(saliency.shape[-2:])
    return _colored(values, colors)


def overlay(image: Tensor, saliency: Tensor, opacity: float = 0.5, colors: str = COLORS) -> Picture:
    """The colored map over the image (3,H,W); `opacity` in [0,1] is the map's share."""
    return _mixed(picture(image), heatmap(saliency, colors), opacity)


def photo_overlay(photo: Picture, values: NDArray[np.float32], opacity: float = 0.5, colors: str = COLORS) -> Picture:
    """The colored map over a photograph; what the network did not see is gray and dark.

    Args:
        photo: (H,W,3).
        values: (H,W) in [0,1]; NaN where the network did not see the photograph.
        opacity: the map's share, in [0,1].
        colors: name of a matplotlib colormap.

    Raises:
        ValueError: there is no such colormap, or the opacity is not in [0,1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"Expected `opacity` to be in [0, 1], but got {opacity!r}.")
    unseen = np.isnan(values)
    gray = np.asarray(Image.fromarray(photo).convert("L"))[..., None] * np.full(3, 0.4)
    drawn = _mixed(photo, _colored(np.nan_to_num(values), colors), opacity)
    return np.where(unseen[..., None], gray.astype(np.uint8), drawn)


def outlined(drawn: Picture, boxes: Tensor | None = None, mask: Tensor | None = None) -> Picture:
    """A picture with frames around boxes and with the border of a region, white beside black.

    Args:
        drawn: (H,W,3).
        boxes: (n,4) xyxy in its pixels; None draws none.
        mask: (H,W) bool, the region; None draws none.

    Example:
        >>> import torch
        >>> outlined(np.zeros((5, 5, 3), np.uint8), torch.tensor([[1.0, 1.0, 4.0, 4.0]]))[2, :, 0].tolist()
        [0, 255, 0, 255, 0]
    """
    sheet = Image.fromarray(drawn)
    draw = ImageDraw.Draw(sheet)
    for left, top, right, bottom in () if boxes is None else boxes.round().int().tolist():
        x1, y1, x2, y2 = left, top, max(right - 1, left), max(bottom - 1, top)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black")
        draw.rectangle((x1, y1, x2, y2), outline="white")
    found = np.array(sheet)
    if mask is not None:
        inside = mask.cpu().numpy().astype(bool)
        inner, outer = binary_erosion(inside), binary_dilation(inside)
        found[outer & ~inside], found[inside & ~inner] = 0, 255
    return found


def _colored(values: NDArray[np.float32], colors: str) -> Picture:
    return np.asarray((_colormap(colors)(values)[..., :3] * 255).round(), dtype=np.uint8)


def _colormap(colors: str) -> Colormap:
    if colors not in colormaps:
        near = difflib.get_close_matches(str(colors), list(colormaps), 3, 0.3) or [COLORS, "jet"]
        raise ValueError(
            f"Expected `colors` to be the name of a matplotlib colormap, but got {colors!r}. The nearest are: "
            f"{', '.join(map(repr, near))}."
        )
    return colormaps[colors]


def _mixed(picture: Picture, colored: Picture, opacity: float) -> Picture:
    mixed = (1 - opacity) * picture.astype(np.float64) + opacity * colored
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
    draw, left = ImageDraw.Draw(sheet), 0
    for i, tile in enumerate(pictures):
        sheet.paste(Image.fromarray(tile), (left, head))
        for line, text in enumerate(titles[i].split("\n") if titles else ()):
            _write(draw, (left + 2, 1 + line * _LINE), text, tile.shape[1] - 2, _FONT)
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


def card(pictures: Sequence[Picture], captions: Sequence[str], head: Sequence[str] = (), side: int = 280) -> Picture:
    """Pictures side by side, each under its caption, below lines of text: legible where it is shown small.

    Args:
        pictures: (H,W,3) each; they are resized to the same width.
        captions: one for each picture.
        head: lines above all.
        side: the width of a picture in pixels. TensorBoard shows three of them at about half of this size.
    """
    line, gap = _CARD_LINE, 6
    tiles = [Image.fromarray(p).resize((side, max(1, round(side * p.shape[0] / p.shape[1])))) for p in pictures]
    top = line * (len(head) + 1)
    size = (side * len(tiles) + gap * (len(tiles) - 1), top + max(tile.height for tile in tiles))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(head):
        _write(draw, (2, number * line), text, sheet.width - 2, _CARD_FONT)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        _write(draw, (i * (side + gap) + 2, top - line), caption, side - 2, _CARD_FONT)
        sheet.paste(tile, (i * (side + gap), top))
    return np.asarray(sheet)


def titled(picture: Picture, title: str) -> Picture:
    """A card with one more line above it."""
    sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + _CARD_LINE), "white")
    sheet.paste(Image.fromarray(picture), (0, _CARD_LINE))
    _write(ImageDraw.Draw(sheet), (2, 0), title, sheet.width - 2, _CARD_FONT)
    return np.asarray(sheet)


def small_figure(width: float = 3.6, height: float = 2.7) -> Figure:
    """An empty figure whose text is legible where it is shown as small as a thumbnail; sizes in inches of 200 dots."""
    return Figure(figsize=(width, height), dpi=200, layout="constrained")


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int) -> None:
    """Write a line of text, shortened if it is wider than `width` pixels, with its upper left corner at `place`."""
    plain = ImageFont.load_default(size)
    text, file = in_one_font("".join(c if c.isprintable() else "?" for c in text))
    if file is None or not isinstance(plain, ImageFont.FreeTypeFont):
        draw.text(place, _fitting(text, width, plain), "black", plain)
        return
    font, (x, y) = ImageFont.truetype(file, size), place  # on the same line as the other: some have much room above
    draw.text((x, y + plain.getmetrics()[0]), _fitting(text, width, font), "black", font, anchor="ls")


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def literal(text: str) -> str:
    r"""A text that matplotlib draws as it stands; of what is between two dollar signs it would make a formula.

    >>> print(literal("50 $_$"))
    50 \$_\$
    """
    return text.replace("$", r"\$")


class Plot(Figure):
    """A figure that a notebook shows, whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=110)
        return data.getvalue()


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        picture: (H,W,3); None leaves the place empty.
        title: the words above it.
        caption: the words below it.
        boxes: (n,4) xyxy in its pixels, drawn as frames.
    """

    picture: Picture | None
    title: str = ""
    caption: str = ""
    boxes: Sequence[Sequence[float]] = ()


def contact_sheet(rows: Sequence[Sequence[Tile]], colors: str | None = None, side: float = 2.6) -> Plot:
    """Pictures in rows and columns, with words above and below each.

    Args:
        rows: the pictures, the same number in every row.
        colors: the colormap of the maps, to be shown beside them; None for none.
        side: width of a picture in inches.
    """
    tall = max(t.picture.shape[0] / t.picture.shape[1] for row in rows for t in row if t.picture is not None)
    words = sum(0.34 + 0.14 * max(_lines(tile) for tile in row) for row in rows)
    size = (side * len(rows[0]) + (0.9 if colors else 0), side * min(tall, 2) * len(rows) + words)
    figure = Plot(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        for tile, place in zip(row, places, strict=True):
            _draw_tile(tile, place)
    if colors:
        scale = ScalarMappable(Normalize(0, 1), _colormap(colors))
        bar = figure.colorbar(scale, ax=axes, ticks=[0, 1], aspect=30, fraction=0.03, pad=0.01)
        bar.ax.set_yticklabels(["not\nimportant", "important"], fontsize=8)
    legible(figure)
    return figure


def _draw_tile(tile: Tile, place: Axes) -> None:
    place.set(xticks=[], yticks=[])
    for edge in place.spines.values():
        edge.set_visible(False)
    if tile.picture is not None:
        place.imshow(tile.picture, interpolation="antialiased")
    for left, top, right, bottom in tile.boxes:
        for color, width in (("black", 3.0), ("white", 1.2)):  # to be seen on any photograph
            frame: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": width}
            place.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **frame))
    place.set_title(_wrapped(tile.title), fontsize=9, parse_math=False)
    place.set_xlabel(_wrapped(tile.caption), fontsize=8, parse_math=False)


def _lines(tile: Tile) -> int:
    """Lines of text above and below a picture, at least one each."""
    return sum(max(1, len(_wrapped(text).splitlines())) for text in (tile.title, tile.caption))


def _wrapped(text: str) -> str:
    """Lines that are no wider than a picture."""
    return "\n".join(textwrap.fill(line, _WIDEST) for line in text.splitlines())


def confusion_figure(matrix: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> Figure:
    """A confusion matrix: how many images of each class (row) were predicted as which (column), colored by row shares.

    Args:
        matrix: (C,C) counts, which are written into the cells for up to 20 classes.
        names: names of the classes; one that no font of this machine can draw has its number instead (see `undrawn`).
    """
    counts = np.asarray(matrix, dtype=float)
    few = len(counts) <= _NAMED
    figure = Figure(figsize=(3 + 0.5 * len(counts),) * 2 if few else (8, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), vmin=0, vmax=1, cmap="Blues")
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    if few:
        given = list(names or map(str, range(len(counts))))
        numbered = undrawn(given)
        labels = [f"class {i}" if i in numbered else literal(name) for i, name in enumerate(given)]
        axes.set_xticks(range(len(counts)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(counts)), labels)
        for (row, column), count in np.ndenumerate(counts):
            dark = count > 0.5 * counts[row].sum()
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color="white" if dark else "black")
    return legible(figure)


def undrawn(names: Sequence[str]) -> dict[int, str]:
    """The names of a `confusion_figure` that no font of this machine can draw, by number; none of many classes."""
    return {i: name for i, name in enumerate(names) if drawable(name) != name} if len(names) <= _NAMED else {}


def objective_curves(mean: Sequence[float], curves: Sequence[Sequence[float]] = ()) -> Figure:
    """A figure of the objective against the iteration: the mean in black, single images in gray."""
    figure = small_figure()
    axes = figure.add_subplot()
    for curve in curves:
        axes.plot(curve, color="0.75", linewidth=0.8)
    axes.plot(mean, color="black", label="mean over images")
    axes.set_xlabel("iteration")
    axes.set_ylabel("objective")
    axes.legend()
    return figure
