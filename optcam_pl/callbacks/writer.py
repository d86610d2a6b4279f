"""MapWriter: every image's map and overlay as files of the run."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from PIL import Image
from torch import Tensor

from optcam_pl.callbacks.base import BlockCallback
from optcam_pl.figures import Picture, heatmap, outlined, overlay, picture, row
from optcam_pl.runs.files import write_file
from optcam_pl.runs.rows import Row
from optcam_pl.runs.run_folder import FileWriter
from optcam_pl.runs.signals import Stopped
from optcam_pl.tasks import BlockResult, SaliencyTask

_SUFFIX = {"maps": ".npz", "overlays": ".png"}


@dataclass(frozen=True)
class _Panel:
    """What the panel of an image shows, on the CPU.

    Attributes:
        titles: of the four pictures.
        image: (C,H,W) the channels that are shown.
        saliency: (1,H,W).
        masked: (C,H,W) the masked image.
        reference: boxes (n,4) and mask (H,W) to outline; None where each image has none of its own.
    """

    titles: Sequence[str]
    image: Tensor
    saliency: Tensor
    masked: Tensor
    reference: tuple[Tensor | None, Tensor | None] | None

    @classmethod
    def of(cls, result: BlockResult, i: int, task: SaliencyTask) -> _Panel:
        probes, shown, kind = result.probes, task.classifier.shown, task.classifier.quantity
        p, o = float(probes.original[i]), float(probes.masked[i])
        predicted = result.predicted_name(i)
        titles = [
            f"predicted: {predicted}" if predicted else "image",
            f"map of: {result.target_name(i)}",
            f"{kind} = {p:.3f}",
            f"masked: {kind} = {o:.3f}",
        ]
        pictures = (result.batch["image"][i], result.explanation.saliency[i], probes.masked_image[i])
        image, saliency, masked = (one.detach().cpu() for one in pictures)
        reference = None
        if result.references is not None:
            found = (result.references.boxes, result.references.masks)
            boxes, mask = (None if each is None else each[i].cpu() for each in found)
            reference = (boxes, mask)
        return cls(titles, shown(image), saliency, shown(masked), reference)

    def draw(self) -> Picture:
        """Image | map | overlay | masked image."""
        image, saliency = self.image, self.saliency
        tiles = [picture(image), heatmap(saliency), overlay(image, saliency), picture(self.masked)]
        if self.reference is not None:
            tiles = [outlined(tile, *self.reference) for tile in tiles]
        return row(tiles, self.titles)


def image_panel(result: BlockResult, i: int, task: SaliencyTask) -> Picture:
    """Image | map | overlay | masked image of the block's i-th image, with class names and probabilities."""
    return _Panel.of(result, i, task).draw()


class MapWriter(BlockCallback, FileWriter):
    """Writes every image's map and overlay into the run's folder, while the next block is computed.

    ``maps/<number>-<image>.npz`` holds ``saliency`` (H,W) float32 in [0,1], ``id``, ``target``, ``predicted``, ``p``
    and ``o`` (NaN where the image has none); ``overlays/<number>-<image>.png`` the image | map | overlay | masked image
    panel; ``overlays/index.json``, written when the run ends, says which file is which image's.

    Args:
        maps: write the npz files.
        overlays: write the png files.
    """

    def __init__(self, maps: bool = True, overlays: bool = True) -> None:
        self.kinds = [kind for kind, use in (("maps", maps), ("overlays", overlays)) if use]

    def lacking(self, run_dir: Path, rows: Iterable[Row]) -> set[int]:
        """The indices of the rows' images whose map or overlay is not there."""
        have = [{path.stem for path in (run_dir / kind).glob(f"*{_SUFFIX[kind]}")} for kind in self.kinds]
        wanted = ((row.index, file_name(row.index, row.id)) for row in rows if row.status != "error")
        return {index for index, name in wanted if any(name not in names for names in have)}

    def on_block(self, trainer: L.Trainer, task: SaliencyTask, result: BlockResult) -> None:
        """Have the block's files written, each under a temporary name that is then renamed."""
        position = {index: i for i, index in enumerate(result.batch["index"].tolist())}
        makers = {"maps": self._map, "overlays": self._overlay}
        for entry in result.rows:
            if entry.status == "error":
                continue
            name = file_name(entry.index, entry.id)
            for kind in self.kinds:
                make = makers[kind](task, result, position[entry.index], entry)
                task.store(partial(_write_made, task.run_dir / kind / f"{name}{_SUFFIX[kind]}", make))

    @staticmethod
    def _map(task: SaliencyTask, result: BlockResult, i: int, entry: Row) -> Callable[[], bytes]:
        saliency = result.explanation.saliency[i, 0].detach().float().cpu().numpy()
        facts = {key: getattr(entry, key) for key in ("id", "target", "predicted", "p", "o")}
        # None would be an object, which NumPy only reads again with allow_pickle.
        arrays: dict[str, Any] = {key: np.asarray(np.nan if v is None else v) for key, v in facts.items()}
        return partial(_npz, saliency=saliency, **arrays)

    @staticmethod
    def _overlay(task: SaliencyTask, result: BlockResult, i: int, entry: Row) -> Callable[[], bytes]:
        return partial(_png, _Panel.of(result, i, task))

    def _write_index(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "overlays" not in self.kinds or not trainer.is_global_zero or not isinstance(pl_module, SaliencyTask):
            return
        folder = pl_module.run_dir / "overlays"
        names = {path.name for path in folder.glob("*.png")}
        files = {row.id: f"{file_name(row.index, row.id)}.png" for row in pl_module.run.rows}
        index = {image_id: name for image_id, name in files.items() if name in names}
        if index:
            write_file(folder / "index.json", json.dumps(index, indent=1))

    on_train_end = on_validation_end = on_test_end = on_predict_end = _write_index

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the index of a run that was told to stop, too."""
        if isinstance(exception, Stopped):
            self._write_index(trainer, pl_module)


def _write_made(path: Path, make: Callable[[], bytes]) -> None:
    write_file(path, make())


def _npz(**arrays: Any) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def _png(panel: _Panel) -> bytes:
    data = io.BytesIO()
    Image.fromarray(panel.draw()).save(data, "png", compress_level=1)  # half of the time, 2 % larger
    return data.getvalue()


def file_name(index: int, image_id: str) -> str:
    r"""A file name without extension that any file system takes: the image's number and what is legible of its id.

    >>> file_name(7, "n01440764/tench é\n<b>.JPEG")
    '000007-n01440764_tench_b'
    """
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}\Z", "", image_id)
    legible = re.sub(r"[^A-Za-z0-9.-]+", "_", stem).strip("._")[-80:]
    return f"{index:06d}-{legible}" if legible else f"{index:06d}"


def overlay_folder(run_dir: Path) -> Path | None:
    """The folder of a run's overlays, if it wrote any."""
    folder = run_dir / "overlays"
    return folder if folder.is_dir() else None
