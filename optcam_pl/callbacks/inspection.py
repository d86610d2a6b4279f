"""TensorBoardPanels: a run to look at, in TensorBoard or any of Lightning's loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from optcam_pl.callbacks.base import BlockCallback
from optcam_pl.callbacks.boards import Board, boards_of
from optcam_pl.callbacks.evolution import Evolution
from optcam_pl.callbacks.running import Chosen, Draw, RunningMeans, lot
from optcam_pl.checks import check_count
from optcam_pl.evaluate.subject import Stage
from optcam_pl.figures import Picture, card, objective_curves, overlay, picture, small_figure, titled
from optcam_pl.metrics import CurveMetric, ImageMetric
from optcam_pl.reports.summary import Run, summarize
from optcam_pl.reports.tables import Summary, table
from optcam_pl.runs.manifest import flatten
from optcam_pl.runs.rows import Row, read_rows
from optcam_pl.runs.tensors import mean_curves
from optcam_pl.tasks import BlockResult, SaliencyTask

_CURVES = 8  # single objective curves beside their mean


class TensorBoardPanels(BlockCallback):
    """Shows a run in TensorBoard, and in W&B, MLflow or a CSVLogger's folder what these can show.

    With STAGE the command (test, validate, predict, fit), there are, whatever the size of the dataset:

    * numbers: ``STAGE/<metric>`` is the mean over the images so far, at about a hundred numbers of images, and in the
      end the run's own value; ``STAGE_intervals/<metric>_low`` and ``_high`` are its 95 % interval, from the normal
      distribution while the run goes on and in the end the table's. ``STAGE_objective/mean`` is the objective of the
      inner fit loop against its iteration; ``fit/entropy`` that of an image's weights in bits, and
      ``fit/largest_weight`` the largest of them, as means over the images.
    * pictures: ``STAGE_examples/best``, ``worst`` and ``random``, the images with the largest gain and the largest
      drop of the probability, and images that are the same in every run; the slider runs over them, and the best and
      the worst stand at its end. ``fit_evolution/<image>``, an image's map at several iterations.
      ``STAGE_plots/<metric>``, the mean curve of all images with its 95 % band.
    * histograms: ``STAGE_histograms/p``, ``o`` and ``o - p``.
    * texts: ``table``, with the settings, and ``largest weights`` after a fit.
    * hyperparameters to compare runs by, the explainer's own among them, and a page of custom scalars.

    Numbers and histograms of a run that is continued contain the images that were done before; panels and objectives
    show the others, and then the mean of these is called ``STAGE_objective/mean of N images``. Of several processes,
    the first one's images make the numbers until the end.

    Args:
        images: number of panels of each kind.
    """

    def __init__(self, images: int = 8) -> None:
        self.images = check_count("images", images)
        self._begin()

    def _begin(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._curves: list[list[float]] = []
        self._chosen = {kind: Chosen(self.images) for kind in ("best", "worst", "random")}
        self._means: RunningMeans | None = None
        self._evolution: Evolution | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start anew for a new run."""
        self._begin()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the explainer as it was before the run."""
        if self._evolution is not None:
            self._evolution.close()

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, SaliencyTask) or not boards_of(trainer):
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # it has written its file before the settings were known
                logger.hparams.update(_settings(pl_module.manifest(cast(Stage, _stage(trainer)))))
                save_hparams_to_yaml(Path(logger.log_dir, logger.NAME_HPARAMS_FILE), logger.hparams)
        if _measures(trainer):
            rows = read_rows(pl_module.run_dir) if pl_module.folder.plan.done else ()
            self._means = RunningMeans(pl_module.measured, len(pl_module.data.table), rows)
        if trainer.training:
            self._evolution = Evolution(pl_module, min(4, self.images))

    on_train_start = on_validation_start = on_test_start = on_predict_start = _start

    def on_block(self, trainer: L.Trainer, task: SaliencyTask, result: BlockResult) -> None:
        """Panels, curves and means of the block's images."""
        boards, stage = boards_of(trainer), _stage(trainer)
        position = {index: i for i, index in enumerate(result.batch["index"].tolist())}
        usable = [(row, position[row.index]) for row in result.rows if row.status != "error"]
        self._add_objective(result, [i for _, i in usable])
        for row, i in usable:
            self._offer(result, row, i)
        drawings = [draw for chosen in self._chosen.values() for draw in chosen.drawings()]
        if drawings:
            task.store(partial(_draw, drawings))
        if self._means is not None:
            for images, values in self._means.add([row for row, _ in usable]):
                if images < self._means.images:  # the last value is the task's
                    _show(boards, _tagged(stage, values), images)
        if self._evolution is not None:
            for tag, panel, iteration in self._evolution.pictures(result):
                for board in boards:
                    board.picture(f"fit_evolution/{tag}", panel, iteration)

    def _add_objective(self, result: BlockResult, images: Sequence[int]) -> None:
        if result.explanation.objective is None or not images:
            return
        curves = result.explanation.objective[:, list(images)].double().cpu()
        total = curves.sum(1)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(images)
        self._curves += curves.T.tolist()[: max(0, _CURVES - len(self._curves))]

    def _offer(self, result: BlockResult, row: Row, i: int) -> None:
        if row.p is None or row.o is None:
            return
        values = {"best": row.o - row.p, "worst": row.p - row.o, "random": -lot(row.id)}

        for kind, value in values.items():
            self._chosen[kind].offer(value, row.index, partial(panel, result, i))

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, SaliencyTask):
            return
        gathered = _gathered(trainer, (self._sum, self._count, {k: c.best() for k, c in self._chosen.items()}))
        if self._evolution is not None:
            self._evolution.close()
        boards = boards_of(trainer)
        if not boards:
            return
        stage, run = _stage(trainer), pl_module.run
        self._show_objective(boards, stage, run, gathered)
        names = {row.index: row.id for row in run.usable}
        for kind, chosen in self._chosen.items():
            shown = chosen.best([others[kind] for _, _, others in gathered[1:]])
            for step, one in enumerate(reversed(shown), 1):
                note = f"{kind} {len(shown) - step + 1} of {len(shown)}: {names.get(one.rank[1], '')}"
                for board in boards:
                    board.picture(f"{stage}_examples/{kind}", titled(one.panel, note), step)
        if self._evolution is not None:
            self._evolution.finish(boards)
        self._show_numbers(boards, stage, pl_module, run)

    on_train_end = on_validation_end = on_test_end = on_predict_end = _finish

    def _show_objective(self, boards: Sequence[Board], stage: str, run: Run, gathered: Sequence[Any]) -> None:
        sums = [total for total, _, _ in gathered if total is not None]
        count = sum(number for _, number, _ in gathered)
        if not sums:
            return
        mean = (torch.stack(sums).sum(0) / count).tolist()
        name = "mean" if count == len(run.usable) else f"mean of {count} images"
        for t, value in enumerate(mean):
            _show(boards, {f"{stage}_objective/{name}": value}, t)
        for board in boards:
            board.figure(f"{stage}_plots/objective", objective_curves(mean, self._curves))

    @staticmethod
    def _show_numbers(boards: Sequence[Board], stage: str, task: SaliencyTask, run: Run) -> None:
        images = run.manifest["images"]
        for key, (curve, half, _) in mean_curves(task.run_dir).items():
            metric = task.metrics[key]
            if isinstance(metric, CurveMetric):
                axes = small_figure().add_subplot()
                figure, _ = metric.plot_curve(axes, task.explainer.title, (curve, half))
                for board in boards:
                    board.figure(f"{stage}_plots/{key}", figure)
        for tag, values in _distributions(run):
            for board in boards:
                board.histogram(f"{stage}_histograms/{tag}", values, images)
        summary = summarize(run, "bca")
        for board in boards:
            board.text("table", table([summary], format="markdown"))
        if summary.metrics and not summary.statuses["missing"]:
            _show(boards, _tagged(stage, _intervals(summary)), images)
            for board in boards:
                board.settings(_settings(run.manifest), [f"{stage}/{key}" for key in summary.values()])
                board.layout(_charts(stage, task.measured))
        elif not summary.metrics:
            for board in boards:
                board.settings(_settings(run.manifest))


def _draw(drawings: Sequence[Callable[[], None]]) -> None:
    for draw in drawings:
        draw()


def panel(result: BlockResult, i: int) -> Draw:
    """Image, overlay and masked image of the block's i-th image, with its classes and probabilities, to be drawn."""
    probes, explanation = result.probes, result.explanation
    shown, predicted, target = probes.classifier.shown, result.predicted_name(i), result.target_name(i)
    pictures = (result.batch["image"][i], explanation.saliency[i], probes.masked_image[i])
    image, saliency, masked = (one.detach().cpu() for one in pictures)
    head = f"map of {target}" + (f", predicted: {predicted}" if predicted not in ("", target) else "")
    p, o = float(probes.original[i]), float(probes.masked[i])
    captions = [f"{probes.classifier.quantity} = {p:.3f}", "", f"masked: {o:.3f}"]
    return partial(_card, shown(image), saliency, shown(masked), captions, head)


def _card(image: Tensor, saliency: Tensor, masked: Tensor, captions: Sequence[str], head: str) -> Picture:
    return card([picture(image), overlay(image, saliency), picture(masked)], captions, [head])


def _stage(trainer: L.Trainer) -> str:
    """The command: fit, validate, test or predict."""
    return str(trainer.state.fn.value) if trainer.state.fn is not None else ""


def _measures(trainer: L.Trainer) -> bool:
    return bool(trainer.testing or trainer.validating)


def _gathered(trainer: L.Trainer, own: Any) -> list[Any]:
    """This process's part, and on the first process those of the others after it. Every process has to call this."""
    if trainer.world_size == 1:
        return [own]
    parts: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(own, parts)
    return [own] if parts is None else parts


def _show(boards: Sequence[Board], values: Mapping[str, float], step: int) -> None:
    for board in boards:
        board.scalars(values, step)


def _tagged(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    """Values by tag: intervals in a group of their own."""
    ends = ("_low", "_high")
    return {f"{stage}{'_intervals' if key.endswith(ends) else ''}/{key}": value for key, value in values.items()}


def _intervals(summary: Summary) -> dict[str, float]:
    """The ends of the table's intervals."""
    found = {}
    for key, estimate in summary.metrics.items():
        for end, bound in (("low", estimate.low), ("high", estimate.high)):
            if estimate.value is not None:  # a chart wants both ends wherever there is a value
                found[f"{key}_{end}"] = estimate.value if bound is None else bound
    return found


def _distributions(run: Run) -> Iterator[tuple[str, list[float]]]:
    pairs = [(row.p, row.o) for row in run.usable if row.p is not None and row.o is not None]
    if pairs:
        yield "p", [p for p, _ in pairs]
        yield "o", [o for _, o in pairs]
        yield "o - p", [o - p for p, o in pairs]


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What runs are told apart by: method, data and network, the method's own settings, and the others as text."""
    own = dict(flatten(manifest.get("explainer_settings") or {}))
    options = {f"explainer.{key}": _plain(value) for key, value in own.items() if key != "class"}
    shared = {key: _plain(value) for key, value in flatten(manifest.get("settings") or {})}
    return {**{key: manifest[key] for key in ("explainer", "data", "classifier")}, **options, **shared}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _charts(stage: str, metrics: Sequence[ImageMetric]) -> dict[str, dict[str, list[Any]]]:
    """One page on which runs compare: each metric with its interval, and the objective."""
    charts: dict[str, list[Any]] = {}
    for metric in metrics:
        about = metric.describe()
        better = {True: "higher is better", False: "lower is better", None: "neither is better"}
        unit = f" ({about.unit})" if about.unit else ""
        tags = [f"{stage}/{metric.key}", *(f"{stage}_intervals/{metric.key}_{end}" for end in ("low", "high"))]
        charts[f"{about.label}{unit}, {better[about.higher_is_better]}, over images"] = ["Margin", tags]
    charts["objective over iterations"] = ["Multiline", [f"{stage}_objective/mean"]]
    return {f"methods compared ({stage})": charts}
