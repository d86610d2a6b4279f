"""Callbacks that show a run: TensorBoard panels and curves, maps and overlays on disk, a progress bar in images."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from optcam_pl.checks import check_count
from optcam_pl.data import ImageDataModule
from optcam_pl.figures import Picture, heatmap, objective_curves, overlay, picture, row
from optcam_pl.metrics import CurveMetric
from optcam_pl.private import progress_bars
from optcam_pl.reports.summary import summarize
from optcam_pl.reports.tables import table
from optcam_pl.runs.files import write_file
from optcam_pl.runs.rows import Row
from optcam_pl.runs.run_folder import FileWriter
from optcam_pl.runs.signals import Stopped
from optcam_pl.runs.tensors import mean_curves
from optcam_pl.tasks import BlockResult, SaliencyTask

_SUFFIX = {"maps": ".npz", "overlays": ".png"}


def image_panel(result: BlockResult, i: int, task: SaliencyTask) -> Picture:
    """Image | map | overlay | masked image of the block's i-th image, with class names and probabilities."""
    probes, explanation = result.probes, result.explanation
    image, saliency = task.classifier.shown(result.batch["image"][i]), explanation.saliency[i]
    p, o = float(probes.original[i]), float(probes.masked[i])
    predicted, kind = result.predicted_name(i), "p" if task.classifier.has_probabilities else "score"
    titles = [
        f"predicted: {predicted}" if predicted else "image",
        f"map of: {result.target_name(i)}",
        f"{kind} = {p:.3f}",
        f"masked: {kind} = {o:.3f}",
    ]
    tiles = [
        picture(image),
        heatmap(saliency),
        overlay(image, saliency),
        picture(task.classifier.shown(probes.masked_image[i])),
    ]
    return row(tiles, titles)


class _BlockCallback(Callback):
    """Calls `on_block` with the result of every block, in every stage."""

    def on_block(self, trainer: L.Trainer, task: SaliencyTask, result: BlockResult) -> None:
        """Called after every block, on every rank."""

    def _after(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if isinstance(pl_module, SaliencyTask) and pl_module.result is not None:
            self.on_block(trainer, pl_module, pl_module.result)

    on_train_batch_end = on_validation_batch_end = _after
    on_test_batch_end = on_predict_batch_end = _after


class TensorBoardPanels(_BlockCallback):
    """Shows a run in TensorBoard: panels, objective curves, the table, hyperparameters to compare runs by.

    Scalars: ``objective/mean`` and ``objective/<image>`` against the iteration of the inner fit loop; the metrics are
    logged by the task. Images: ``panel/<image>``; ``curves/<metric>``, the mean curve of all images with its 95 % band.
    Text: ``table`` and ``settings``. A run that is continued adds to these. It does not know the objective of images
    that were done before, so the mean over the others is called ``objective/mean of N images``.

    Args:
        images: number of panels and single curves; the first images of each process are shown.
    """

    def __init__(self, images: int = 8) -> None:
        self.images = check_count("images", images)
        self._shown = 0
        self._sum: Tensor | None = None
        self._count = 0
        self._curves: list[list[float]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start counting anew for a new run."""
        self._shown, self._sum, self._count, self._curves = 0, None, 0, []

    def on_block(self, trainer: L.Trainer, task: SaliencyTask, result: BlockResult) -> None:
        """Panels and curves of the first images, the sum of all curves."""
        shown = {row.index for row in result.rows if row.status != "error"}
        writer = _writer(trainer)
        for i, index in enumerate(result.batch["index"].tolist()):
            if index not in shown:
                continue
            if result.explanation.objective is not None:
                curve = result.explanation.objective[:, i].double().cpu()
                self._sum = curve if self._sum is None else self._sum + curve
                self._count += 1
            if writer is not None and self._shown < self.images - task.folder.plan.done:
                self._shown += 1
                image_id = _tag(result.batch["id"][i])
                panel = image_panel(result, i, task)
                writer.add_image(f"panel/{image_id}", panel, dataformats="HWC")
                if result.explanation.objective is not None:
                    self._curves.append(curve.tolist())
                    for t, value in enumerate(self._curves[-1]):
                        writer.add_scalar(f"objective/{image_id}", value, t)

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, SaliencyTask):
            return
        mean, count = self._mean_curve(trainer)
        writer = _writer(trainer)
        if writer is None:
            return
        for key, (curve, half, _) in mean_curves(pl_module.run_dir).items():
            metric = pl_module.metrics[key]
            if isinstance(metric, CurveMetric):
                label = pl_module.explainer.title
                writer.add_figure(f"curves/{key}", metric.plot_curve(label=label, curve=(curve, half))[0])
        run = pl_module.run
        summary = summarize(run)
        if mean is not None:
            whole = count == len(run.usable)
            for t, value in enumerate(mean):
                writer.add_scalar("objective/mean" if whole else f"objective/mean of {count} images", value, t)
            writer.add_figure("objective", objective_curves(mean, self._curves))
        writer.add_text("table", table([summary], format="markdown"))
        settings = {key: str(value) for key, value in run.manifest["settings"].items()}
        writer.add_text("settings", "\n".join(f"- {key}: `{value}`" for key, value in settings.items()))
        settings |= {"explainer": summary.explainer, "data": summary.data}
        if summary.metrics and not summary.statuses["missing"]:
            logger = next(lg for lg in trainer.loggers if isinstance(lg, TensorBoardLogger))
            logger.log_hyperparams(settings, {f"hp/{key}": value for key, value in summary.values().items()})

    def _mean_curve(self, trainer: L.Trainer) -> tuple[list[float] | None, int]:
        """The mean over the images of all ranks, and their number. Every rank has to call this."""
        if trainer.world_size > 1:
            # Curves are padded to one length, so the sums of ranks add up; a rank without images sends None.
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, (self._sum, self._count))
        else:
            gathered = [(self._sum, self._count)]
        sums = [total for total, _ in gathered if total is not None]
        count = sum(number for _, number in gathered)
        return (torch.stack(sums).sum(0) / count).tolist() if count else None, count

    on_train_end = on_validation_end = on_test_end = on_predict_end = _finish


class MapWriter(_BlockCallback, FileWriter):
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


class ImageProgress(TQDMProgressBar):
    """Lightning's progress bar with the time that is left, the images per second and the running metrics."""

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._start = 0.0

    def on_sanity_check_start(self, *_: Any) -> None:
        """No bar: there is nothing to check."""

    def _begin(self, *_: Any) -> None:
        self._start = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock."""
        super().setup(trainer, pl_module, stage)
        self._begin()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        items: dict[str, Any] = (
            {} if isinstance(pl_module, SaliencyTask) else dict(super().get_metrics(trainer, pl_module))
        )
        if isinstance(pl_module, SaliencyTask):
            data = trainer.datamodule  # type: ignore[attr-defined]
            blocks = max((bar.n for bar in progress_bars(self)), default=0)
            if isinstance(data, ImageDataModule) and blocks:
                most = len(data.table) - pl_module.folder.plan.done  # the last block may be smaller
                images = min(blocks * data.batch_size * trainer.world_size, most)
                items["images/s"] = f"{images / (time.monotonic() - self._start):.2f}"
            for metric in pl_module.running():
                items[metric.describe().label] = f"{float(metric.of_means(metric.total / metric.count)):.1f}"
        return items


def file_name(index: int, image_id: str) -> str:
    r"""A file name without extension that any file system takes: the image's number and what is legible of its id.

    >>> file_name(7, "n01440764/tench é\n<b>.JPEG")
    '000007-n01440764_tench_b'
    """
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}\Z", "", image_id)
    legible = re.sub(r"[^A-Za-z0-9.-]+", "_", stem).strip("._")[-80:]
    return f"{index:06d}-{legible}" if legible else f"{index:06d}"


def _tag(image_id: str) -> str:
    """An image's id as a TensorBoard tag."""
    return re.sub(r"[^\w./ -]+", "_", image_id)


def _writer(trainer: L.Trainer) -> SummaryWriter | None:
    """The run's TensorBoard writer on rank 0, else None."""
    if not trainer.is_global_zero:
        return None
    return next((lg.experiment for lg in trainer.loggers if isinstance(lg, TensorBoardLogger)), None)


def overlay_folder(run_dir: Path) -> Path | None:
    """The folder of a run's overlays, if it wrote any."""
    folder = run_dir / "overlays"
    return folder if folder.is_dir() else None
