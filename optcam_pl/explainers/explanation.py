"""The result of an explainer: tensors, and the pictures that are made of them."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from optcam_pl.photos import Photo

if TYPE_CHECKING:  # matplotlib is loaded when a picture is asked for
    from optcam_pl.figures import Plot, Tile

_COLORS = "viridis"  # optcam_pl.figures.COLORS, see there
_SHOWN = 8  # photographs that a notebook shows by itself
_SIDE = 320  # pixels of a picture in a notebook


@dataclass(frozen=True)
class Explanation:
    """The result of an explainer for a batch of B images.

    A notebook shows it as pictures. Maps that `optcam_pl.explain` made know their photographs: `overlay`, `plot` and
    `boxes` work at the photographs' own resolution then.

    Attributes:
        saliency: (B,1,H,W) in [0,1], finite, on the image's device.
        target: (B,) int64, the class that is explained.
        degenerate: (B,) bool, true if the map was constant (up to rounding) or not finite before it was upsampled and
            normalized; such a map is now zero.
        weights: (B,K) the weights of the map's feature maps, if the method has one weight per channel.
        objective: (T+1,B) the value that an optimizing explainer maximized: before the first step, ..., after the last.
        reasons: why each map is degenerate, in words, and "" for the others; empty if no map is degenerate or no reason
            is known.
        photos: the B photographs, if they are known.
        names: the names of the B classes, if they are known.
        method: the method's name, if it is known.
        p: (B,) the class's probability for the image, or its score where it has none, if it was measured.
        o: (B,) the same for the masked image.
        quantity: what `p` and `o` are, as captions call it.
        steps: the maps at some iterations of an optimizing explainer, (iteration, (B,1,H,W)), if they were kept; see
            `optcam_pl.explain`.
    """

    saliency: Tensor
    target: Tensor
    degenerate: Tensor
    weights: Tensor | None = None
    objective: Tensor | None = None
    reasons: tuple[str, ...] = ()
    photos: tuple[Photo, ...] = ()
    names: tuple[str, ...] = ()
    method: str = ""
    p: Tensor | None = None
    o: Tensor | None = None
    quantity: str = "p"
    steps: tuple[tuple[int, Tensor], ...] = ()

    def overlay(self, index: int = 0, *, colors: str = _COLORS, opacity: float = 0.5) -> Image.Image:
        """The colored map over the photograph, at the photograph's own resolution.

        What the network did not see (`optcam_pl.explain` with ``resize="crop"``) is gray and dark.

        Args:
            index: which photograph.
            colors: name of a matplotlib colormap; "jet" is that of many papers.
            opacity: the map's share, in [0,1].

        Raises:
            ValueError: the photographs are not known, there is no such photograph, or no such colormap.
        """
        from optcam_pl.figures import photo_overlay

        photo = self._photo(index)
        drawn = photo_overlay(np.asarray(photo.image), photo.paste(self.saliency[index]), opacity, colors)
        return Image.fromarray(drawn)

    def boxes(self, threshold: float | None = None) -> list[Tensor]:
        """The boxes around what is important, in the pixels of the photographs (of the maps, if those are not known).

        Args:
            threshold: None for one box a map, around the largest connected region above the map's mean (as in the
                metric LocalizationError); a number for the boxes of all regions above it, the largest region first.

        Returns:
            B float tensors (n,4), xyxy, on the CPU; n is 0 for a map without information.
        """
        from optcam_pl.metrics.functional import map_boxes  # loads torchmetrics, which maps alone do not need

        found = map_boxes(self.saliency, threshold)
        if not self.photos:
            return found
        size = (self.saliency.shape[2], self.saliency.shape[3])
        return [photo.boxes(boxes, size) for photo, boxes in zip(self.photos, found, strict=True)]

    def plot(self, *, colors: str = _COLORS, opacity: float = 0.5, boxes: bool = False) -> Plot:
        """A figure to show or save: each photograph, and its map over it; the map alone if the photograph is not known.

        Args:
            colors: name of a matplotlib colormap.
            opacity: the map's share, in [0,1].
            boxes: draw the boxes of `boxes`.
        """
        from optcam_pl.figures import contact_sheet

        found = self.boxes() if boxes else [None] * len(self.saliency)
        rows = [self._row(index, box, colors, opacity) for index, box in enumerate(found)]
        return contact_sheet(rows, colors)

    def evolution(self, index: int = 0, *, colors: str = _COLORS, opacity: float = 0.5, columns: int = 5) -> Plot:
        """A figure of the map at the iterations that were kept, with the objective under each map.

        Args:
            index: which photograph.
            colors: name of a matplotlib colormap.
            opacity: the map's share, in [0,1].
            columns: maps in a row.

        Raises:
            ValueError: no iterations were kept.
        """
        from optcam_pl.figures import Tile, contact_sheet

        tiles = [self._at(step, index, colors, opacity) for step in self._steps()]
        tiles += [Tile(None)] * (-len(tiles) % min(columns, len(tiles)))
        rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
        return contact_sheet(rows, colors, side=2.2)

    def frames(self, index: int = 0, *, colors: str = _COLORS, opacity: float = 0.5) -> list[Image.Image]:
        """The pictures of `evolution` one by one, for an animation at the photograph's resolution.

        >>> frames = explanation.frames()  # doctest: +SKIP
        >>> frames[0].save("map.gif", save_all=True, append_images=frames[1:], duration=400, loop=0)  # doctest: +SKIP
        """
        return [Image.fromarray(np.asarray(self._at(step, index, colors, opacity).picture)) for step in self._steps()]

    def _steps(self) -> tuple[tuple[int, Tensor], ...]:
        if not self.steps:
            raise ValueError(
                "Expected an explanation that has kept iterations: make it by optcam_pl.explain(classifier, photo, "
                "evolution=True) with OptiCAM."
            )
        return self.steps

    def _at(self, step: tuple[int, Tensor], index: int, colors: str, opacity: float) -> Tile:
        """The map at an iteration."""
        iteration, saliency = step
        known = replace(self, saliency=saliency, p=None, o=None, degenerate=self.degenerate & False)
        tile = known.tile(index, title=f"iteration {iteration}", colors=colors, opacity=opacity)
        if self.objective is None:
            return tile
        return replace(tile, caption=f"objective {float(self.objective[iteration, index]):.4g}")

    def caption(self, index: int = 0) -> str:
        """What is known of a map, in words: the probabilities, why it says nothing, what the network did not see."""
        words = []
        if self.p is not None and self.o is not None:
            p, o = (round(float(value[index]), 3) + 0.0 for value in (self.p, self.o))  # no "-0.000"
            words.append(f"{self.quantity} {p:.3f}, masked {o:.3f}")
        if bool(self.degenerate[index]):
            words.append((self.reasons[index] if self.reasons else "") or "the map carries no information")
        if self.photos and (outside := self.photos[index].outside) > 0.005:
            words.append(f"{outside:.0%} not seen by the network")
        return "\n".join(words)

    def tile(self, index: int = 0, *, title: str | None = None, colors: str = _COLORS, opacity: float = 0.5) -> Tile:
        """One map as a part of a contact sheet (`optcam_pl.figures.contact_sheet`), under the class's name."""
        from optcam_pl.figures import Tile, heatmap

        title = self._class_name(index) if title is None else title
        if not self.photos:
            return Tile(heatmap(self.saliency[index], colors), title, self.caption(index))
        drawn = self.overlay(index, colors=colors, opacity=opacity)
        return Tile(np.asarray(drawn), title, self.caption(index))

    def _row(self, index: int, boxes: Tensor | None, colors: str, opacity: float) -> list[Tile]:
        from optcam_pl.figures import Tile

        name = self._class_name(index)
        title = f"{self.method}: {name}" if self.method else name
        tile = self.tile(index, title=title, colors=colors, opacity=opacity)
        tile = tile if boxes is None else replace(tile, boxes=boxes.tolist())
        if not self.photos:
            return [tile]
        photo = self.photos[index]
        frame = [photo.region] if photo.outside > 0.005 else []
        return [Tile(np.asarray(photo.image), photo.name, boxes=frame), tile]

    def _class_name(self, index: int) -> str:
        return self.names[index] if self.names else f"class {int(self.target[index])}"

    def _photo(self, index: int) -> Photo:
        if not -len(self.saliency) <= index < len(self.saliency):
            raise ValueError(f"Expected `index` to be in 0..{len(self.saliency) - 1}, but got {index}.")
        if not self.photos:
            raise ValueError(
                "Expected an explanation that knows its photograph: make it by optcam_pl.explain(classifier, photo). "
                "The map alone is in `saliency`, and `plot()` shows it."
            )
        return self.photos[index]

    def _repr_png_(self) -> bytes:
        return self.plot()._repr_png_()

    def _repr_html_(self) -> str:
        shown = min(len(self.saliency), _SHOWN)
        more = f"<p>{len(self.saliency) - shown} more: plot() shows all.</p>" if shown < len(self.saliency) else ""
        figures = "".join(map(self._figure, range(shown)))
        return f'<div style="display:flex;flex-wrap:wrap;gap:1em">{figures}</div>{more}'

    def _figure(self, index: int) -> str:
        name, words = html.escape(self._class_name(index)), html.escape(self.caption(index)).replace("\n", "<br>")
        method = html.escape(f"{self.method}: " if self.method else "")
        pixels = self.tile(index).picture
        assert pixels is not None  # every map has a picture
        picture = Image.fromarray(pixels)
        picture.thumbnail((_SIDE, _SIDE))
        data = io.BytesIO()
        picture.save(data, "png")
        source = base64.b64encode(data.getvalue()).decode()
        return (
            f'<figure style="margin:0"><img alt="map of {name}" src="data:image/png;base64,{source}">'
            f"<figcaption>{method}<b>{name}</b><br>{words}</figcaption></figure>"
        )
