"""SaliencyTask: explains a dataset's images and measures the explanations."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias, cast, get_args

import lightning as L
import torch
import torchvision
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MetricCollection

from optcam_pl.checks import check_choice, check_positive
from optcam_pl.data import Batch
from optcam_pl.evaluate.probes import Probes, check_needs
from optcam_pl.evaluate.readable import in_order, readable
from optcam_pl.explainers import Explainer, Explanation, OptiCAM
from optcam_pl.maps import Baseline, check_baseline
from optcam_pl.metrics import METRICS, AverageDrop, AverageGain, AverageIncrease, CurveMetric, ImageMetric
from optcam_pl.metrics.functional import region_map
from optcam_pl.metrics.functional.localization import Region
from optcam_pl.network.classifier import Classifier
from optcam_pl.private import keep_out_of_ddp
from optcam_pl.reports.summary import (
    NO_BOX,
    SUMMARY,
    DegenerateWarning,
    Run,
    load_run,
    mostly_degenerate,
    summarize,
    summary_to_store,
)
from optcam_pl.reports.tables import as_dict
from optcam_pl.runs.files import write_file
from optcam_pl.runs.manifest import check_metric_keys
from optcam_pl.runs.processes import Processes
from optcam_pl.runs.rows import Row
from optcam_pl.runs.run_folder import FileWriter, Resume, RunFolder, Shard
from optcam_pl.runs.tensors import StoredWeights, lacking_weights, save_curves, save_weights
from optcam_pl.tasks.base import RunTask

Target: TypeAlias = Literal["label", "predicted", "second", "least"]
Stage: TypeAlias = Literal["fit", "validate", "test", "predict"]


@dataclass(frozen=True)
class BlockResult:
    """What a task found out about one block; callbacks show it.

    A block has as many images as `batch_size` says, the dataset's last one perhaps less. Padding (``index`` -1) and
    images that could not be read never reach the network: everything but `rows` is of the B images that could be read,
    in the block's order. B may be 0.

    Attributes:
        batch: the B images.
        logits: (B,C) the network's answer to them.
        explanation: the maps.
        probes: what was measured.
        rows: one for each image of the dataset in the block, in the block's order, also for those that could not be
            read: a row's image is found in `batch` by its ``index``.
    """

    batch: Batch
    logits: Tensor
    explanation: Explanation
    probes: Probes
    rows: tuple[Row, ...]


class _CloseOnError(Callback):
    """Gives a run's folder back when the run fails; after a success `SaliencyTask.teardown` does."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, SaliencyTask):
            pl_module.close(failed=isinstance(exception, Exception))


class SaliencyTask(RunTask):
    """One explainer on one dataset.

    ``test`` (and ``validate``) explains every image, measures the maps, writes one row an image and logs the metrics,
    which are a pure function of the rows. ``predict`` explains without measuring more than p and o. ``fit`` runs the
    inner fit loop of an optimizing explainer (`OptiCAM`) through Lightning's own optimizer, one global step an
    iteration, and stores each image's weights and objective curve; a ``test`` takes them by `weights_from`.

    The data must come from an `ImageDataModule`: its blocks make sure that each image is seen exactly once, for any
    number of processes and of starts: a run whose folder holds a part of its results does the rest (see `RunFolder`).

    Args:
        classifier: the network that is explained.
        explainer: the saliency method.
        target: the class that is explained and measured: the image's ``label`` (the paper's metrics), the
            ``predicted`` class, the ``second`` or the ``least`` probable one, or a class index.
        baseline: what stands where a map is 0, for the metrics and for explainers that mask; None leaves the
            explainer's own ("black" where it has none).
        selectivity: exponent of every map; None leaves the explainer's own (1).
        augment: whether every map is the mean over views of its image; None leaves the explainer's own (False). See
            `Explainer` for both.
        metrics: what is measured by ``test``: any `ImageMetric`, also of your own. None is Average Drop, Average Gain
            and Average Increase, "all" is every metric of the package that the dataset has the annotations for.
        region: what of the map is measured, for the bounding-box study: the "map", its part "inside_box" or
            "outside_box", or, in the map's place, the "box" itself or its "complement"; all but the first need a
            dataset with boxes, and an image without one has no scores.
        chunk_size: images in one pass of the network, for metrics that need many passes an image.
        weights_from: run folder of a ``fit`` with the same settings; its weights are used instead of optimizing anew.

    Attributes:
        run_dir: the run's folder. Set it to choose one; else it is the logger's, and without a logger the trainer's
            ``default_root_dir``. What was chosen holds for every stage and trainer, until None is set.
        resume: what to do about a run that is in the folder: see `RunFolder`.
        shard: which part of the blocks to do: see `RunFolder`; None for all.
        cut_short: after a run that ended before all of its images were done, as a limit of the trainer was reached, a
            sentence that says so; "" after any other.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        classifier: Classifier,
        explainer: Explainer,
        target: Target | int = "label",
        baseline: Baseline | None = None,
        metrics: list[ImageMetric] | Literal["all"] | None = None,
        region: Region = "map",
        chunk_size: int = 64,
        weights_from: str | None = None,
        selectivity: float | None = None,
        augment: bool | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the inner fit loop steps by itself
        if not (target in get_args(Target) or (isinstance(target, int) and 0 <= target < classifier.num_classes)):
            raise ValueError(
                f"Expected `target` to be one of {', '.join(get_args(Target))} or a class in "
                f"0..{classifier.num_classes - 1}, but got {target!r}."
            )
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
        self.region, self.chunk_size = region, check_positive("chunk_size", chunk_size)
        self._every_metric = metrics == "all"  # which these are depends on the dataset
        if isinstance(metrics, str):
            check_choice("metrics", metrics, Literal["all"])
        else:
            self._set_metrics([AverageDrop(), AverageGain(), AverageIncrease()] if metrics is None else metrics)
        self.stored_weights = None if weights_from is None else StoredWeights(weights_from)
        self.weights = nn.ParameterList()
        self.result: BlockResult | None = None
        self._run: Run | None = None
        self.resume: Resume = "auto"
        self.shard: Shard | None = None
        self._folder: RunFolder | None = None

    @property
    def baseline(self) -> Baseline:
        """What stands where a map is 0: one for the explainer and the metrics."""
        return self.explainer.baseline

    @property
    def folder(self) -> RunFolder:
        """What of the run is done and what is to do; known from `setup` on."""
        assert self._folder is not None
        return self._folder

    @property
    def run(self) -> Run:
        """What the run's folder holds, when it has ended; read once, for all who show it. Asked for on rank 0 alone."""
        if self._run is None:
            self._run = load_run(self.run_dir, [metric for _, metric in self._metric_items()])
        return self._run

    # What Lightning calls ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Match data and network, find the run's folder (its name comes from rank 0) and what there is to do.

        Raises:
            ValueError: the network's head is new; it lacks the explainer's layer; or the data do not fit.
        """
        self._run = None
        network = self.classifier
        if network.new_head:
            raise ValueError(
                f"Expected a trained network, but {network.name} has a new, random head for {network.num_classes} "
                "classes. Fine-tune it (`optcam fit` with a ClassificationTask) and give its checkpoint as `weights`; "
                "or leave `num_classes` open."
            )
        if self.explainer.layer is not None:
            self.explainer.layers(network)  # an unknown name is told now, not when the first image is explained
        self.data.match_network(network.input_size, network.interpolation, network.crop_fraction)
        self.data.match_classes(network.class_names, network.name, used=self.target == "label")
        network.check_function(self.data.preprocessing.size)
        self._check_annotations()
        self._run_dir = self.find_folder(self.trainer)
        if stage == "fit":
            self._setup_fit()
        self._prepare(cast(Stage, stage))

    def teardown(self, stage: str) -> None:
        """Give the run's folder back; warn if a limit of the trainer has kept images from being done."""
        left = self.folder.left() if self.trainer.is_global_zero else []
        self.close()
        if left:
            self.cut_short = (
                f"{len(left)} of {len(self.data.table)} images are missing in {self.run_dir}: a limit of the Trainer "
                f"(`limit_{stage}_batches`, `max_time`, `max_steps`, `fast_dev_run` ...) ended the run before its end. "
                "A start in this folder without it does the rest."
            )
            warnings.warn(self.cut_short, stacklevel=2)

    def close(self, failed: bool = False) -> None:
        """Give the run's folder back, whatever has happened; the other processes are told where this one failed."""
        if self._folder is not None:
            self._folder.fail() if failed else self._folder.close()

    def configure_callbacks(self) -> list[Callback]:
        """What every run of this task needs."""
        return [_CloseOnError()]

    def _set_metrics(self, metrics: Sequence[ImageMetric]) -> None:
        self._keys = [metric.key for metric in metrics]
        check_metric_keys(self._keys)
        check_needs(metrics)
        # Without compute groups: torchmetrics would merge metrics whose first states happen to be equal.
        self.metrics = MetricCollection({metric.key: metric for metric in metrics}, compute_groups=False)

    def _check_annotations(self) -> None:
        """The dataset has what the metrics and the region ask for."""
        has = {{"boxes": "boxes", "masks": "mask"}[name] for name in self.data.annotations}
        if self._every_metric:
            kinds = (kind for kind in METRICS.values() if not ({"boxes", "mask"} & set(kind.evidence())) - has)
            self._set_metrics([kind() for kind in kinds])
        needs = [(key, name, need) for key, metric in self._metric_items() for name, need in metric.needs().items()]
        wanted = {name: "metric " + key for key, name, need in needs if not isinstance(need, tuple)}
        wanted |= {"boxes": f"`region` {self.region}"} if self.region != "map" else {}
        for name in ("boxes", "mask"):
            if name in wanted and name not in has:
                raise ValueError(
                    f"Expected a dataset with {name}, which {wanted[name]} needs, but {self.data.name} has none."
                )

    def _setup_fit(self) -> None:
        if not isinstance(self.explainer, OptiCAM):
            raise TypeError(
                f"Expected an explainer with something to fit (OptiCAM), but got {type(self.explainer).__name__}: "
                f"use `test` or `predict`."
            )
        self.explainer.check_one_view()
        # The images of `fit` and of validation are the same ones: no second pass over them.
        self.trainer.limit_val_batches = 0
        channels = self.explainer.channels(self.classifier, self.data.preprocessing.size)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(channels)) for _ in range(self.data.batch_size))
        # Nothing here is to be averaged or broadcast over ranks: each has images of its own.
        ignored = [name for name, _ in [*self.named_parameters(), *self.named_buffers()] if name != "weights.0"]
        keep_out_of_ddp(self, ignored)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The explainer's optimizer, over one parameter an image of the block."""
        assert isinstance(self.explainer, OptiCAM)  # see _setup_fit
        return self.explainer.make_optimizer(self.weights)

    def train(self, mode: bool = True) -> SaliencyTask:
        """Nothing here has a training mode: the network that is explained stays as it is."""
        self.training = mode
        return self

    def _start(self) -> None:
        """Open the rows; the loader is made and no process waits for another any more."""
        self.metrics.reset()
        if self.folder.plan.todo:
            self.folder.open()
        self.folder.heed()

    on_train_start = on_validation_start = on_test_start = on_predict_start = _start

    def training_step(self, batch: Batch) -> None:
        """Fit the weights of one block and store them."""
        self._block(batch, self._fit, measure=False)
        if self.result is not None and self.result.batch["id"]:
            found = self.result.explanation
            tensors = {"weights": found.weights, "objective": found.objective, "target": found.target}
            known = {key: tensor for key, tensor in tensors.items() if tensor is not None}  # `OptiCAM.fit` gives all
            save_weights(self.run_dir, self._number(batch), self.result.batch["id"], known)

    def validation_step(self, batch: Batch) -> None:
        """Explain and measure one block."""
        self._block(batch, self._explain_or_recall, measure=True)

    def test_step(self, batch: Batch) -> None:
        """Explain and measure one block."""
        self._block(batch, self._explain_or_recall, measure=True)

    def predict_step(self, batch: Batch) -> dict[str, Any]:
        """Explain one block.

        Returns:
            ``id`` (list), ``saliency`` (n,1,H,W), ``target`` (n,) and ``predicted`` (n,), of the block's n images that
            could be read.
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
            "predicted": self.result.logits.argmax(1),
        }

    def _write(self, *_: Any, **__: Any) -> None:
        """Write the block's rows, after all callbacks: whatever they stored is there when the rows say so."""
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

    def _block(self, block: Batch, explain: Callable[[Batch, Tensor], Explanation], *, measure: bool) -> None:
        """Predict, explain, measure. `explain` takes the images that could be read, and their classes."""
        self.result = None
        if not bool((block["index"] >= 0).any()):  # this process has no block left
            return
        batch = readable(block)
        if not batch["id"]:
            self.result = self._nothing(block, batch)
            return
        with torch.no_grad():
            logits = self.classifier(batch["image"])
            target = self.targets(batch, logits)
            self._synchronize()
            start = time.perf_counter()
            explanation = explain(batch, target)
            self._synchronize()
            seconds = (time.perf_counter() - start) / len(batch["id"])
            if self.region != "map":
                saliency = region_map(explanation.saliency, batch["boxes"], self.region)
                explanation = replace(explanation, saliency=saliency)
            probes = Probes(self.classifier, self.explainer, batch, logits, explanation, chunk_size=self.chunk_size)
            scores = self._measure(probes, batch) if measure else {}
            found = self._rows(batch, logits, probes, scores, seconds)
        self.result = BlockResult(batch, logits, explanation, probes, in_order(block, found))

    def _nothing(self, block: Batch, batch: Batch) -> BlockResult:
        """The result of a block of which no image could be read: B = 0."""
        image, target = batch["image"], batch["target"]
        logits = image.new_zeros(0, self.classifier.num_classes)
        explanation = Explanation(image[:, :1], target, target.bool())
        probes = Probes(self.classifier, self.explainer, batch, logits, explanation, chunk_size=self.chunk_size)
        return BlockResult(batch, logits, explanation, probes, in_order(block, ()))

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
        optimizer.optimizer.state.clear()  # the moments of the block before have nothing to say here
        weights = list(self.weights)[: len(target)]  # the others have no gradient, so that no step moves them
        return self.explainer.fit(self.classifier, batch["image"], target, weights, optimizer)

    def targets(self, batch: Batch, logits: Tensor) -> Tensor:
        """(B,) the classes to explain of images that could be read, see `readable`.

        Raises:
            ValueError: `target` is "label", and an image has none that the network knows.
        """
        if self.target == "predicted":
            return logits.argmax(1)
        if self.target == "second":
            return logits.topk(2, dim=1).indices[:, 1]
        if self.target == "least":
            return logits.argmin(1)
        label = batch["target"]
        if isinstance(self.target, int):
            return torch.full_like(label, self.target)
        wrong = (label < 0) | (label >= logits.shape[1])
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise ValueError(
                f"Expected a label in 0..{logits.shape[1] - 1} for image {batch['id'][first]!r}, but it has "
                f"{int(label[first])}"
                + (": the dataset has no labels; set `target` to predicted." if label[first] < 0 else ".")
            )
        return label

    def _measure(self, probes: Probes, batch: Batch) -> dict[str, list[Any]]:
        """The images' scores by metric; the curves that they are made of are stored."""
        undefined = [self._lacks_box(batch, i) for i in range(len(batch["id"]))]
        left_out = torch.tensor(undefined).nonzero().flatten()
        scores: dict[str, list[Any]] = {}
        curves: dict[str, Tensor] = {}
        for key, metric in self._metric_items():
            evidence = probes.evidence(metric.needs(), key)
            score = metric.check_scores(metric.score(**evidence), len(batch["id"]))
            score = score.index_fill(0, left_out.to(score.device), torch.nan)
            metric.accumulate(score)
            scores[key] = score.tolist()
            if isinstance(metric, CurveMetric):
                curves[key] = metric.curves(**evidence).float()
        if curves:
            ids = [image_id for image_id, without in zip(batch["id"], undefined, strict=True) if not without]
            kept = torch.tensor(undefined).logical_not()
            save_curves(self.run_dir, self._number(batch), ids, {key: c.cpu()[kept] for key, c in curves.items()})
        return scores

    def _rows(
        self, batch: Batch, logits: Tensor, probes: Probes, scores: dict[str, list[Any]], seconds: float
    ) -> list[Row]:
        """One row for each image that could be read; `seconds` were spent on each."""
        predicted, target = logits.argmax(1).tolist(), probes.explanation.target.tolist()
        p, o = probes.original.tolist(), probes.masked.tolist()
        degenerate, reasons = probes.explanation.degenerate.tolist(), probes.explanation.reasons
        rows = []
        for i, index in enumerate(batch["index"].tolist()):
            reason = ""
            if degenerate[i]:
                reason = (reasons[i] if reasons else "") or "the map is constant or not finite"
            if self._lacks_box(batch, i):
                reason = NO_BOX
            rows.append(
                Row(
                    index=index, id=batch["id"][i], status="degenerate" if reason else "ok", reason=reason,
                    target=target[i], predicted=predicted[i], p=p[i], o=o[i],
                    scores={key: value[i] for key, value in scores.items()}, seconds=seconds,
                )
            )  # fmt: skip
        return rows

    def _lacks_box(self, batch: Batch, i: int) -> bool:
        return self.region != "map" and not len(batch["boxes"][i])

    def _number(self, batch: Batch) -> int:
        """The block's number in the dataset, from any of its images."""
        return int(batch["index"][0]) // self.data.batch_size

    def _synchronize(self) -> None:
        """Wait for the GPU, so that a time is one of the work and not of its launch."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # The run -------------------------------------------------------------------------------------------------------

    def _prepare(self, stage: Stage) -> None:
        """Lock the run's folder, check that it is this run's, and see which blocks are still to do."""
        trainer, data = self.trainer, self.data
        manifest = self.manifest(stage)
        if self.stored_weights is not None:
            self.stored_weights.check(manifest["fingerprint"])
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        writers = [callback for callback in callbacks if isinstance(callback, FileWriter)]

        def lacking(rows: Sequence[Row]) -> set[int]:
            without = {index for writer in writers for index in writer.lacking(self.run_dir, rows)}
            return without | (lacking_weights(self.run_dir, rows, data.batch_size) if stage == "fit" else set())

        self._folder = RunFolder(self.run_dir, self.resume, self.shard, Processes(self.global_rank, trainer.world_size))
        plan = self._folder.prepare(manifest, data.batch_size, lacking, trainer.strategy.broadcast)
        data.todo, self.cut_short = plan.todo, ""
        if stage == "predict" and plan.done and trainer.is_global_zero and trainer.predict_loop.return_predictions:
            warnings.warn(
                f"{plan.done} of {len(data.table)} images are done in {self.run_dir} already, and `predict` returns "
                "only what is left to do. Set the task's `run_dir` to a new folder to get all of them.",
                stacklevel=2,
            )

    def _finish(self) -> Run | None:
        """Wait until every process has written its rows; on rank 0 the run, which warns where most maps say nothing."""
        self.folder.finish()
        if not self.trainer.is_global_zero:
            return None
        run = self.run
        if note := mostly_degenerate(run):
            warnings.warn(f"{self.explainer.title}: {note}", DegenerateWarning, stacklevel=2)
        return run

    def _end(self, stage: Stage) -> None:
        """Log and store the metrics, a function of all rows."""
        run = self._finish()
        values: dict[str, float] = {}
        if run is not None:
            summary = summarize(run)
            if not summary.statuses["missing"]:  # another shard's images
                values = summary.values()
                text = json.dumps(as_dict(summary_to_store(run, summary)), indent=2, allow_nan=False) + "\n"
                write_file(self.run_dir / SUMMARY, text)
        values = self.trainer.strategy.broadcast(values)
        # Every rank has the same values already: nothing to reduce.
        self.log_dict({f"{stage}/{key}": value for key, value in values.items()}, rank_zero_only=True)

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """What the run is: its names, the settings printed with its numbers, and its fingerprint."""
        data, network = self.data, self.classifier.describe()
        preprocessing = data.preprocessing
        settings = {
            **network,
            "layer": self.explainer.layer or network["layer"],
            "input": f"{preprocessing.size[0]}x{preprocessing.size[1]} {preprocessing.resize}, "
            f"{preprocessing.interpolation}",
            "baseline": self.baseline,
            "target": self.target,
            "precision": str(self.trainer.precision),
        }
        if self.region != "map":
            settings["region"] = self.region
        for _, metric in self._metric_items():
            settings.update(metric.settings())
        explainer = {"class": type(self.explainer).__name__, **self.explainer.settings()}
        fingerprint = {
            "classifier": {**network, "hash": self.classifier.weight_hash()},
            "explainer": explainer,
            "target": self.target,
            "baseline": self.baseline,
            "region": self.region,
            "metrics": {key: metric.settings() for key, metric in self._metric_items()},
            "data": data.fingerprint(),
            "block_size": data.batch_size,
            "precision": str(self.trainer.precision),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
        }
        measured = self._metric_items() if stage in ("validate", "test") else []
        return {
            "stage": stage,
            "run": str(self.run_dir),
            "data": data.name,
            "classifier": network["classifier"],
            "explainer": self.explainer.title,
            "explainer_settings": explainer,
            "images": len(data.table),
            "metrics": [key for key, _ in measured],
            "metric_info": {key: asdict(metric.describe()) for key, metric in measured},
            "settings": settings,
            "fingerprint": fingerprint,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def running(self) -> list[ImageMetric]:
        """The metrics that have seen an image on this rank, with this rank's sums: for a progress bar."""
        return [metric for _, metric in self._metric_items() if int(metric.count)]

    def _metric_items(self) -> list[tuple[str, ImageMetric]]:
        """In the order in which they were given; the collection has its own."""
        found = dict(self.metrics.items(keep_base=True))
        return [(key, metric) for key in self._keys if isinstance(metric := found[key], ImageMetric)]
