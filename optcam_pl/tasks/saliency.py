"""SaliencyTask: explains a dataset's images and measures the explanations."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection

from optcam_pl.checks import check_choice
from optcam_pl.data import Batch, EachBox, ImageDataModule
from optcam_pl.evaluate.block import BlockResult, Explain, Target, check_target, evaluate_block
from optcam_pl.evaluate.probes import check_needs
from optcam_pl.evaluate.subject import (
    Stage,
    Subject,
    all_metrics,
    check_annotations,
    check_probabilities,
    chooses_chunk_size,
    default_metrics,
    match,
)
from optcam_pl.explainers import Explainer, Explanation, OptiCAM
from optcam_pl.explainers.chunk_size import ChunkSize, automatic, check_chunk_size, decided
from optcam_pl.maps import Baseline, check_baseline
from optcam_pl.metrics import ImageMetric
from optcam_pl.metrics.functional.localization import Region
from optcam_pl.network.classifier import Classifier
from optcam_pl.private import keep_out_of_ddp
from optcam_pl.reports.summary import (
    SUMMARY,
    DegenerateWarning,
    Run,
    load_run,
    mostly_degenerate,
    summarize,
    summary_to_store,
)
from optcam_pl.reports.tables import as_dict
from optcam_pl.runs.behind import Job
from optcam_pl.runs.files import write_file
from optcam_pl.runs.manifest import check_metric_keys
from optcam_pl.runs.processes import Processes
from optcam_pl.runs.rows import Row
from optcam_pl.runs.run_folder import FileWriter, Resume, RunFolder, Shard
from optcam_pl.runs.tensors import StoredWeights, lacking_weights, save_curves, save_weights
from optcam_pl.runs.thumbnails import chosen, save_small, small
from optcam_pl.tasks.base import RunTask, limit_name, without_scaler


class _CloseOnError(Callback):
    """Releases a run's folder when the run fails; after a success, `SaliencyTask.teardown` does this."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, SaliencyTask):
            pl_module.close(failed=isinstance(exception, Exception))


class SaliencyTask(RunTask):
    """One explainer on one dataset.

    ``test`` (and ``validate``) explains every image, measures the maps, writes one row per image and logs the metrics,
    which are a pure function of the rows. ``predict`` explains and measures only p and o. ``fit`` runs the inner fit
    loop of an optimizing explainer (`OptiCAM`) through Lightning's own optimizer, with one global step per iteration.
    It stores each image's weights and objective curve; a ``test`` can use them with `weights_from`.

    The data must come from an `ImageDataModule`. Its blocks ensure that each image is seen exactly once, for any number
    of processes and restarts. If the run's folder already holds part of the results, the run does the rest (see
    `RunFolder`).

    Args:
        classifier: the network that is explained.
        explainer: the saliency method.
        target: the class that is explained and measured: the image's ``label`` (as in the paper's metrics), the
            ``predicted`` class, the ``second`` most probable or the ``least`` probable class, or a class index.
        baseline: what replaces the image where a map is 0, for the metrics and for explainers that mask; None keeps the
            explainer's own ("black" if it has none).
        selectivity: exponent of every map; None keeps the explainer's own (1).
        augment: whether every map is the mean over views of its image; None keeps the explainer's own (False). See
            `Explainer` for `selectivity` and `augment`.
        metrics: the metrics that ``test`` measures: any `ImageMetric`, including your own. None means Average Drop,
            Average Gain and Average Increase; "all" means every metric of the package for which the dataset has the
            annotations, and images that are large enough.
        region: the part of the map that is measured, for the bounding-box study: the "map"; its part "inside_box" or
            "outside_box"; or, instead of the map, the "box" itself or its "complement". All except "map" need a dataset
            with boxes, and an image without a box has no scores.
        chunk_size: the number of images in one pass of the network, for metrics that need many passes per image; or
            "auto": on a GPU what a short probe finds best, on a CPU 64 (see `optcam_pl.explainers.chunk_size`). What
            "auto" means is decided at the first start, for explainers with a `chunk_size` "auto", too; it is a part of
            the run's identity, and a run that goes on keeps it.
        weights_from: run folder of a ``fit`` with the same settings; its weights are used instead of optimizing again.

    Attributes:
        run_dir: the run's folder. Set it to choose one. Otherwise it is the logger's folder or, without a logger, the
            trainer's ``default_root_dir``. Your choice holds for every stage and trainer until you set None.
        resume: what to do with a run that is already in the folder; see `RunFolder`.
        shard: which part of the blocks to do; see `RunFolder`. None means all.
        cut_short: a sentence that says so if a limit of the trainer ended the run before all of its images were done;
            otherwise "".
        result: what the last block gave; None before the first.
        images_in_pass: what a `chunk_size` "auto" means in this run, from `setup` on; None if no setting is "auto".

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        classifier: Classifier,
        explainer: Explainer,
        target: Target | int = "label",
        baseline: Baseline | None = None,
        metrics: list[ImageMetric] | Literal["all"] | None = None,
        region: Region = "map",
        chunk_size: ChunkSize = 64,
        weights_from: str | None = None,
        selectivity: float | None = None,
        augment: bool | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the inner fit loop steps by itself
        check_target(target, classifier.num_classes)
        if baseline is not None:
            explainer.baseline = check_baseline(baseline)
        if selectivity is not None:
            explainer.selectivity = selectivity
        if augment is not None:
            explainer.augment = augment
        if weights_from is not None:
            if not isinstance(explainer, OptiCAM):
                raise ValueError(
                    f"Expected an explainer that optimizes weights (OptiCAM) for `weights_from`, but got "
                    f"{type(explainer).__name__}."
                )
            explainer.check_one_view()
        self.classifier, self.explainer, self.target = classifier, explainer, target
        check_choice("region", region, Region)
        self.region, self.chunk_size = region, check_chunk_size(chunk_size)
        self._every_metric = metrics == "all"  # the dataset determines which metrics these are
        if isinstance(metrics, str):
            check_choice("metrics", metrics, Literal["all"])
        else:
            self._set_metrics(default_metrics(classifier) if metrics is None else metrics)
        self.stored_weights = None if weights_from is None else StoredWeights(weights_from)
        self.weights = nn.ParameterList()
        self.result: BlockResult | None = None
        self._run: Run | None = None
        self.resume: Resume = "auto"
        self.shard: Shard | None = None
        self._folder: RunFolder | None = None
        self.images_in_pass: int | None = None

    @property
    def baseline(self) -> Baseline:
        """What replaces the image where a map is 0: the same for the explainer and the metrics."""
        return self.explainer.baseline

    @property
    def folder(self) -> RunFolder:
        """The state of the run, what is done and what remains; known from `setup` on."""
        assert self._folder is not None
        return self._folder

    @property
    def run(self) -> Run:
        """The content of the run's folder after the run has ended; it is read once and only on rank 0."""
        if self._run is None:
            self._run = load_run(self.run_dir, self.measured)
        return self._run

    # What Lightning calls ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Match data and network, and find the run's folder (its name comes from rank 0) and the remaining work.

        Raises:
            ValueError: the network's head is new; the network lacks the explainer's layer; or the data do not fit.
        """
        self._run = None
        if isinstance(self.data, EachBox):  # whose boxes the network may have to find
            self.classifier.to(self.trainer.strategy.root_device)
        match(self.classifier, self.explainer, self.data, self.target)
        if self._every_metric:
            self._set_metrics(all_metrics(self.data, self.classifier))
        check_annotations(self.data, self.measured, self.region)
        self._run_dir = self.find_folder(self.trainer)
        if stage == "fit":
            self._setup_fit()
        self._prepare(cast(Stage, stage))

    @property
    def title(self) -> str:
        """What the run is called in folders."""
        return self.explainer.title

    def teardown(self, stage: str) -> None:
        """Release the run's folder; warn if a limit of the trainer left images undone."""
        super().teardown(stage)
        left = self.folder.left(self.run.rows) if self.trainer.is_global_zero else []
        self.close()
        if left:
            self.cut_short = (
                f"{len(left)} of {len(self.data.table)} images are missing in {self.run_dir}: a limit of the Trainer "
                f"(`{limit_name(stage)}`, `max_time`, `max_steps`, `fast_dev_run` ...) ended the run before its end. "
                "A start in this folder without it does the rest."
            )
            warnings.warn(self.cut_short, stacklevel=2)

    def close(self, failed: bool = False) -> None:
        """Release the run's folder in any case; if this process failed, tell the other processes."""
        if self._folder is not None:
            self._folder.fail() if failed else self._folder.close()

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks that every run of this task needs."""
        return [_CloseOnError()]

    def _set_metrics(self, metrics: Sequence[ImageMetric]) -> None:
        self._keys = [metric.key for metric in metrics]
        check_metric_keys(self._keys)
        check_needs(metrics)
        check_probabilities(self.classifier, metrics)
        # Without compute groups: torchmetrics would merge metrics whose first states happen to be equal.
        self.metrics = MetricCollection({metric.key: metric for metric in metrics}, compute_groups=False)

    def _setup_fit(self) -> None:
        if not isinstance(self.explainer, OptiCAM):
            raise TypeError(
                f"Expected an explainer with something to fit (OptiCAM), but got {type(self.explainer).__name__}: "
                f"use `test` or `predict`."
            )
        self.explainer.check_one_view()
        # `fit` and validation use the same images: no second pass over them.
        self.trainer.limit_val_batches = 0
        channels = self.explainer.channels(self.classifier, self.data.preprocessing.size)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(channels)) for _ in range(self.data.batch_size))
        # Nothing here must be averaged or broadcast across ranks: each rank has its own images.
        ignored = [name for name, _ in [*self.named_parameters(), *self.named_buffers()] if name != "weights.0"]
        keep_out_of_ddp(self, ignored)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The explainer's optimizer, with one parameter per image of the block."""
        assert isinstance(self.explainer, OptiCAM)  # see _setup_fit
        return self.explainer.make_optimizer(self.weights)

    def train(self, mode: bool = True) -> SaliencyTask:
        """Do nothing: there is no training mode here, and the explained network stays as it is."""
        self.training = mode
        return self

    def _start(self) -> None:
        """Open the rows; by now the loader exists, and no process waits for another anymore."""
        self.metrics.reset()
        if self.folder.plan.todo:
            self.folder.open()
        self.folder.limit_errors(self.data.max_errors)  # the start before may have ended for this
        self.folder.heed()

    on_train_start = on_validation_start = on_test_start = on_predict_start = _start

    def training_step(self, batch: Batch) -> None:
        """Fit the weights of one block and store them."""
        self._block(batch, self._fit, measure=False)
        if self.result is not None and self.result.batch["id"]:
            found = self.result.explanation
            tensors = {"weights": found.weights, "objective": found.objective, "target": found.target}
            known = {key: one.detach().cpu() for key, one in tensors.items() if one is not None}  # `fit` gives all
            self.store(partial(save_weights, self.run_dir, self._number(batch), self.result.batch["id"], known))

    def validation_step(self, batch: Batch) -> None:
        """Explain and measure one block."""
        self._block(batch, self._explain_or_recall, measure=True)

    def test_step(self, batch: Batch) -> None:
        """Explain and measure one block."""
        self._block(batch, self._explain_or_recall, measure=True)

    def predict_step(self, batch: Batch) -> dict[str, Any]:
        """Explain one block.

        Returns:
            ``id`` (list), ``saliency`` (n,1,H,W), ``target`` (n,) and ``predicted`` (n,), for the n images of the block
            that could be read.
        """
        self._block(batch, self._explain_or_recall, measure=False)
        if self.result is None:
            none = batch["target"][:0]
            return {"id": [], "saliency": batch["image"][:0, :1], "target": none, "predicted": none}
        explanation = self.result.explanation
        return {
            "id": self.result.batch["id"],
            "saliency": explanation.saliency,
            "target": explanation.target,
            "predicted": self.result.probes.predicted,
        }

    def _write(self, *_: Any, **__: Any) -> None:
        """Have the block's rows written after what the callbacks store, so that all of that exists before the rows."""
        if self.result is not None:
            self.folder.write(self.result.rows, self.data.max_errors)
        self.folder.heed()

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _write

    def on_train_epoch_end(self) -> None:
        """Close the rows."""
        self._finish()

    def on_validation_epoch_end(self) -> None:
        """Close the rows and log what they say."""
        self._end("validate")

    def on_test_epoch_end(self) -> None:
        """Close the rows and log what they say."""
        self._end("test")

    def on_predict_epoch_end(self) -> None:
        """Close the rows."""
        self._finish()

    # One block -----------------------------------------------------------------------------------------------------

    def _block(self, block: Batch, explain: Explain, *, measure: bool) -> None:
        """Evaluate a block, store its curves and add up its scores."""
        self.result = None
        if not bool((block["index"] >= 0).any()):  # this process has no block left
            return
        metrics = self.measured if measure else []
        what = (self.classifier, self.explainer, block, self.target, metrics)
        with decided(self.images_in_pass):
            options: dict[str, Any] = {"region": self.region, "chunk_size": self.chunk_size}
            result = evaluate_block(*what, **options, explain=explain, on_error=self.data.on_error)
        for metric in metrics:
            if metric.key in result.scores:
                metric.accumulate(result.scores[metric.key])
        if result.curves:
            kept = result.measurable.tolist()
            ids = [image_id for image_id, has in zip(result.batch["id"], kept, strict=True) if has]
            curves = {key: curve.cpu()[result.measurable] for key, curve in result.curves.items()}
            self.store(partial(save_curves, self.run_dir, self._number(result.batch), ids, curves))
        self._save_thumbnails(result)
        self.result = result

    def _save_thumbnails(self, result: BlockResult) -> None:
        """Store small pictures of the images that the report page shows."""
        indices, images = result.batch["index"].tolist(), len(self.data.table)
        kept = [i for i, index in enumerate(indices) if chosen(index, images)]
        pictures = (result.batch["image"][kept], result.explanation.saliency[kept])
        if kept:
            where = (self.run_dir, self._number(result.batch), [indices[i] for i in kept])
            self.store(partial(save_small, *where, *small(*pictures)))

    def store(self, job: Job) -> None:
        """Have something of the block in hand written before its rows, while the next block is computed.

        Args:
            job: writes it; see `RunFolder.store`. Without a run, it is called at once.
        """
        if self._folder is None:
            job()
        else:
            self._folder.store(job)

    def _explain_or_recall(self, batch: Batch, target: Tensor) -> Explanation:
        image = batch["image"]
        if self.stored_weights is None:
            explanation: Explanation = self.explainer(self.classifier, image, target)
            return explanation
        assert isinstance(self.explainer, OptiCAM)  # see __init__
        weights = self.stored_weights.block(self._number(batch), batch["id"], target).to(image.device)
        return self.explainer.from_weights(self.classifier, image, target, weights)

    def _fit(self, batch: Batch, target: Tensor) -> Explanation:
        assert isinstance(self.explainer, OptiCAM)  # see _setup_fit
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        optimizer.optimizer.state.clear()  # the moments of the previous block do not apply here
        weights = list(self.weights)[: len(target)]  # the others have no gradient, so no step changes them
        with without_scaler(self.trainer.precision_plugin):  # the explainer scales its gradients itself
            return self.explainer.fit(self.classifier, batch["image"], target, weights, optimizer)

    def _number(self, batch: Batch) -> int:
        """The block's number in the dataset, from any of its images."""
        return int(batch["index"][0]) // self.data.batch_size

    # The run -------------------------------------------------------------------------------------------------------

    def _prepare(self, stage: Stage) -> None:
        """Lock the run's folder, check that it belongs to this run, and find the blocks that are still to do."""
        trainer, data = self.trainer, self.data
        self.images_in_pass = None
        manifest = self.manifest(stage)
        if self.stored_weights is not None:
            self.stored_weights.check(manifest["fingerprint"])
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        writers = [callback for callback in callbacks if isinstance(callback, FileWriter)]

        def lacking(rows: Sequence[Row]) -> set[int]:
            without = {index for writer in writers for index in writer.lacking(self.run_dir, rows)}
            return without | (lacking_weights(self.run_dir, rows, data.batch_size) if stage == "fit" else set())

        self._folder = RunFolder(self.run_dir, self.resume, self.shard, Processes(self.global_rank, trainer.world_size))
        chooses = chooses_chunk_size(self.explainer, self.chunk_size, stage)
        describe = partial(self._describe, stage) if chooses else lambda _: manifest
        plan = self._folder.prepare(describe, len(data.table), data.batch_size, lacking, trainer.strategy.broadcast)
        self.images_in_pass = plan.manifest["fingerprint"].get("chunk_size")
        data.todo, self.cut_short = plan.todo, ""
        if stage == "predict" and plan.done and trainer.is_global_zero and trainer.predict_loop.return_predictions:
            warnings.warn(
                f"{plan.done} of {len(data.table)} images are done in {self.run_dir} already, and `predict` returns "
                "only what is left to do. Set the task's `run_dir` to a new folder to get all of them.",
                stacklevel=2,
            )

    def _describe(self, stage: Stage, begun: Mapping[str, Any] | None) -> dict[str, Any]:
        """The manifest with what "auto" means: what the run that has begun has decided, or decided now."""
        stored = None if begun is None else begun["fingerprint"].get("chunk_size")
        self.images_in_pass = self._decide() if stored is None else int(stored)
        rank_zero_info(f"chunk_size auto: {self.images_in_pass} images in a pass, also when this run goes on.")
        return self.manifest(stage)

    def _decide(self) -> int:
        trainer = self.trainer
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self.classifier.to(device)
        with trainer.precision_plugin.forward_context():
            return automatic(self.classifier, self.data.preprocessing.size, device)

    def _finish(self) -> Run | None:
        """Wait until every process has written its rows; on rank 0, return the run; warn if most maps say nothing."""
        self.folder.finish()
        if not self.trainer.is_global_zero:
            return None
        run = self.run
        if note := mostly_degenerate(run):
            warnings.warn(f"{self.explainer.title}: {note}", DegenerateWarning, stacklevel=2)
        return run

    def _end(self, stage: Stage) -> None:
        """Log and store the metrics, which are a function of all rows."""
        run = self._finish()
        values: dict[str, float] = {}
        if run is not None:
            summary = summarize(run)
            if not summary.statuses["missing"]:  # missing images belong to another shard
                values = summary.values()
                text = json.dumps(as_dict(summary_to_store(run, summary)), indent=2, allow_nan=False) + "\n"
                write_file(self.run_dir / SUMMARY, text)
        values = self.trainer.strategy.broadcast(values)
        shown = {f"{stage}/{key}": value for key, value in values.items()}
        if shown:
            # Lightning takes "step" as the step of the others; without it, it would add the epoch as a number.
            shown["step"] = float(len(self.data.table))
        # Every rank already has the same values, so there is nothing to reduce.
        self.log_dict(shown, rank_zero_only=True)

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """Describe the run: its names, the settings printed with its numbers, and its fingerprint."""
        parts = (self.classifier, self.explainer, self.data, self.measured, self.target, self.region)
        # Not `self.device`, which is the CPU until the Trainer moves the network; the run's folder is looked at before.
        where, number = self.trainer.strategy.root_device.type, self.images_in_pass
        subject = Subject(*parts, precision=str(self.trainer.precision), device=where, chunk_size=number)
        return subject.manifest(stage, str(self.run_dir))

    def running(self) -> list[ImageMetric]:
        """The metrics that have seen an image on this rank, with this rank's sums, for a progress bar."""
        return [metric for metric in self.measured if int(metric.count)]

    def metrics_on(self, data: ImageDataModule) -> list[ImageMetric]:
        """The metrics that a test on these data measures."""
        return all_metrics(data, self.classifier) if self._every_metric else self.measured

    @property
    def measured(self) -> list[ImageMetric]:
        """The metrics in the order in which they were given; the collection has its own order."""
        found = dict(self.metrics.items(keep_base=True))
        return [metric for key in self._keys if isinstance(metric := found[key], ImageMetric)]
