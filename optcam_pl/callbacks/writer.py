"""MapWriter: every image's map and overlay as files of the run."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from PIL import Image

from optcam_pl.callbacks.base import BlockCallback
from optcam_pl.figures import Picture, heatmap, outlined, overlay, picture, row
from optcam_pl.runs.files import write_file
from optcam_pl.runs.rows import Row
from optcam_pl.runs.run_folder import FileWriter
from optcam_pl.runs.signals import Stopped
from optcam_pl.tasks import BlockResult, SaliencyTask

_SUFFIX = {"maps": ".npz", "overlays": ".png"}


def image_panel(result: BlockResult, i: int, task: SaliencyTask) -> Picture:
    """Image | map | overlay | masked image of the block's i-th image, with class names and probabilities."""
    probes, explanation = result.probes, result.explanation
    shown = task.classifier.shown
    image, saliency = shown(result.batch["image"][i]), explanation.saliency[i]
    p, o = float(probes.original[i]), float(probes.masked[i])
    predicted, kind = result.predicted_name(i), task.classifier.quantity
    titles = [
        f"predicted: {predicted}" if predicted else "image",
        f"map of: {result.target_name(i)}",
        f"{kind} = {p:.3f}",
        f"masked: {kind} = {o:.3f}",
    ]
    tiles = [picture(image), heatmap(saliency), overlay(image, saliency), picture(shown(probes.masked_image[i]))]
    if result.references is not None:
        boxes, masks = result.references.boxes, result.references.masks
        reference = (None if boxes is None else boxes[i], None if masks is None else masks[i])
        tiles = [outlined(tile, *reference) for tile in tiles]
    return row(tiles, titles)


class MapWriter(BlockCallback, FileWriter):
    """Writes every image's map and overlay into the run's folder, as the block is done.

    ``maps/<number>-<image>.npz`` holds ``saliency`` (H,W) float32 in [0,1], ``id``, ``target``, ``predicted``, ``p``
    and ``o``; ``overlays/<number>-<image>.png`` the image | map | overlay | masked image panel;
    ``overlays/index.json``, written when the run ends, says which file is which image's.

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
        """Write the block's files, each under a temporary name that is then renamed."""
        position = {index: i for i, index in enumerate(result.batch["index"].tolist())}
        encode = {"maps": self._map, "overlays": self._overlay}
        for entry in result.rows:
            if entry.status == "error":
                continue
            name = file_name(entry.index, entry.id)
            for kind in self.kinds:
                data = encode[kind](task, result, position[entry.index], entry)
                write_file(task.run_dir / kind / f"{name}{_SUFFIX[kind]}", data)

    @staticmethod
    def _map(task: SaliencyTask, result: BlockResult, i: int, entry: Row) -> bytes:
        saliency, data = result.explanation.saliency[i, 0].float().cpu().numpy(), io.BytesIO()
        facts = {key: getattr(entry, key) for key in ("id", "target", "predicted", "p", "o")}
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in facts.items()}
        np.savez_compressed(data, saliency=saliency, **arrays)
        return data.getvalue()

    @staticmethod
    def _overlay(task: SaliencyTask, result: BlockResult, i: int, entry: Row) -> bytes:
        data = io.BytesIO()
        Image.fromarray(image_panel(result, i, task)).save(data, "png")
        return data.getvalue()

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
