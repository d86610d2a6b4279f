"""One way to show things in any of Lightning's loggers: numbers, pictures, histograms, texts, settings.

Numbers and settings go through the methods that all loggers have. Pictures go to TensorBoard, Weights & Biases and
MLflow by their own interfaces; beside a CSVLogger's numbers they are files. Other loggers get numbers and settings.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from optcam_pl.figures import Picture
from optcam_pl.figures.fonts import legible

_QUALITY = 90  # of JPEG: a panel has a tenth of the bytes that it has as PNG
_LONGEST = 200  # characters of a folder or of a file: most systems take 255, with its number and ending


class Board:
    """A logger; this class for those that show only numbers and settings.

    Args:
        logger: the logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers at a step."""
        self.logger.log_metrics(dict(values), step)

    def settings(self, values: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
        """Show a run's settings; `metrics` are the tags of the numbers to compare runs by."""
        self.logger.log_hyperparams(dict(values))

    def picture(self, tag: str, picture: Picture, step: int = 0) -> None:
        """Show a picture (H,W,3) at a step."""

    def figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        """Show a figure as a picture."""
        canvas = FigureCanvasAgg(legible(figure))
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        self.picture(tag, np.ascontiguousarray(pixels[..., :3]), step)

    def histogram(self, tag: str, values: Sequence[float], step: int = 0) -> None:
        """Show how values are distributed."""

    def text(self, tag: str, text: str) -> None:
        """Show text in Markdown."""

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Arrange charts on one page, as `SummaryWriter.add_custom_scalars` takes them."""


class TensorBoardBoard(Board):
    """TensorBoard's files.

    Args:
        logger: the logger, or a writer of a folder.
    """

    def __init__(self, logger: TensorBoardLogger | SummaryWriter) -> None:
        if isinstance(logger, TensorBoardLogger):
            super().__init__(logger)
        self.writer: SummaryWriter = logger.experiment if isinstance(logger, TensorBoardLogger) else logger

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Board`."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def settings(self, values: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
        """See `Board`."""
        # Lightning's `log_hyperparams` would log the metrics a second time. The experiment is left out, because with it
        # TensorBoard shows only the settings that one of the runs has.
        _, begun, ended = hparams(dict(values), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
        self._add(begun)
        self._add(ended)

    def picture(self, tag: str, picture: Picture, step: int = 0) -> None:
        """See `Board`."""
        height, width = picture.shape[:2]
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "jpeg", quality=_QUALITY)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data.getvalue())
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def histogram(self, tag: str, values: Sequence[float], step: int = 0) -> None:
        """See `Board`."""
        self.writer.add_histogram(tag, np.asarray(values), step)

    def text(self, tag: str, text: str) -> None:
        """See `Board`."""
        self.writer.add_text(tag, text)

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """See `Board`."""
        self.writer.add_custom_scalars(charts)

    def _add(self, summary: Any, step: int | None = None) -> None:
        writer: Any = self.writer.file_writer  # None only after the writer was closed
        writer.add_summary(summary, step)


class WandbBoard(Board):
    """A run of Weights & Biases."""

    logger: WandbLogger

    def picture(self, tag: str, picture: Picture, step: int = 0) -> None:
        """See `Board`."""
        self.logger.log_image(tag, [picture], step)

    def histogram(self, tag: str, values: Sequence[float], step: int = 0) -> None:
        """See `Board`."""
        import wandb

        metrics: dict[str, Any] = {tag: wandb.Histogram(list(values))}  # more than the numbers that Lightning states
        self.logger.log_metrics(metrics, step)

    def text(self, tag: str, text: str) -> None:
        """See `Board`."""
        self.logger.log_text(tag, columns=["text"], data=[[text]])


class MLflowBoard(Board):
    """A run of MLflow."""

    logger: MLFlowLogger

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Board`."""
        super().scalars({_tag(tag): value for tag, value in values.items()}, step)

    def settings(self, values: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
        """See `Board`."""
        # MLflow refuses another value for a name, as when one trainer tests two explainers.
        known = self.logger.experiment.get_run(self.logger.run_id).data.params
        super().settings({key: value for key, value in values.items() if key not in known})

    def picture(self, tag: str, picture: Picture, step: int = 0) -> None:
        """See `Board`."""
        client, run = self.logger.experiment, self.logger.run_id
        client.log_image(run, picture, key=_tag(tag), step=step, synchronous=True)

    def text(self, tag: str, text: str) -> None:
        """See `Board`."""
        self.logger.experiment.log_text(self.logger.run_id, text, f"{_tag(tag)}.md")


class CSVBoard(Board):
    """The folder of a CSVLogger: pictures are files in ``pictures/`` beside its numbers."""

    logger: CSVLogger

    def picture(self, tag: str, picture: Picture, step: int = 0) -> None:
        """See `Board`."""
        path = Path(self.logger.log_dir) / "pictures" / f"{_tag(tag)}-{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def boards_of(trainer: L.Trainer) -> list[Board]:
    """The trainer's loggers, on the first process; none on the others."""
    if not trainer.is_global_zero:
        return []
    return [_board(logger) for logger in trainer.loggers]


def _board(logger: Logger) -> Board:
    kinds: dict[type[Logger], type[Any]] = {
        TensorBoardLogger: TensorBoardBoard,
        WandbLogger: WandbBoard,
        MLFlowLogger: MLflowBoard,
        CSVLogger: CSVBoard,
    }
    board: Board = next((board for kind, board in kinds.items() if isinstance(logger, kind)), Board)(logger)
    return board


def _tag(text: str) -> str:
    """A tag that is also a path, which leads out of no folder, and a name that MLflow and a file system take.

    >>> _tag("test_panels/best of all: é"), _tag("fit_evolution/../a..b.png"), len(_tag(250 * "a"))
    ('test_panels/best of all- -', 'fit_evolution/-/a..b.png', 200)
    """
    parts = re.sub(r"[^a-zA-Z0-9_/. -]", "-", text).split("/")
    return "/".join("-" if part == ".." else part[-_LONGEST:] for part in parts)
