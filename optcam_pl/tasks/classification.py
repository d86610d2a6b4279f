"""ClassificationTask: fine-tunes a network on a dataset, and measures how well it classifies."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchvision.transforms.v2 import MixUp

from optcam_pl.checks import check_count, check_number, check_positive
from optcam_pl.data import Batch
from optcam_pl.data.base import run_seed
from optcam_pl.data.labels import check_labels
from optcam_pl.figures import confusion_figure, undrawn
from optcam_pl.imagenet import imagenet_names
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.layers import heads
from optcam_pl.network.link import link_name
from optcam_pl.network.scores import scores_settings
from optcam_pl.network.weights import SETTINGS
from optcam_pl.private import find_unused_parameters
from optcam_pl.runs.manifest import check_fingerprint
from optcam_pl.tasks.base import RunTask, limit_name

Phase: TypeAlias = Literal["head", "all"]
OptimizerFactory: TypeAlias = Callable[[Iterable[Any]], Optimizer]
ScheduleFactory: TypeAlias = Callable[[Optimizer], LRScheduler]


_LABELS = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}


class ClassificationTask(RunTask):
    """Trains and measures the network of a classifier.

    ``fit`` trains in two phases, as in appendix E of the paper: first the head alone, for `head_epochs` epochs at
    `head_lr`, everything before it staying as it is, running means included; then everything, for `epochs` epochs at
    `lr`. The trainer's `max_epochs` has to be their sum (`max_epochs`; the command line sees to it). The classifier is
    thawed for as long as that takes. Its weights after any step depend on the run's seed and on the steps before alone,
    so that a fit that was stopped and goes on ends as one that was not.

    ``validate`` and ``test`` measure accuracy, macro F1 (mean over the classes that occur or are predicted) and AUROC
    (mean over the classes, each against the rest, that have images and are not all images) in percent, and the mean
    cross-entropy `loss`; images that cannot be read are left out. The confusion matrix is shown in TensorBoard.

    A checkpoint holds the classifier's settings too: ``Classifier(weights=CHECKPOINT)`` is the fine-tuned classifier.

    The data must come from an `ImageDataModule`.

    Args:
        classifier: the network to train or to measure. Its head is new where it has another `num_classes` than the
            pretrained weights.
        head_epochs: epochs of the first phase, 0 to leave it out.
        head_lr: its learning rate.
        epochs: epochs of the second phase, 0 to leave it out.
        lr: its learning rate.
        optimizer: makes an optimizer from parameters; the learning rate is set by the phases. The second phase begins
            with a fresh state.
        schedule: makes a schedule from the optimizer, for the second phase's learning rate; None: it is constant.
        schedule_interval: whether the schedule steps after each "epoch" or each "step".
        class_weights: one a class, for the training loss; "balanced": n / (C * n_c), from the n_c training images of
            each class; None: all 1.
        label_smoothing: in [0, 1), of the training loss.
        mixup: alpha > 0 of mixup's Beta distribution (Zhang et al., ICLR 2018); 0: off.
        patience: stop when the validation accuracy has not risen for so many epochs of the second phase; None: never.
            The command line sees to it.

    Attributes:
        max_epochs: epochs of both phases together.
        run_dir: the run's folder. Set it to choose one; else it is the logger's, and without a logger the trainer's
            ``default_root_dir``.
        cut_short: after a fit or a measurement that ended early, as a limit of the trainer was reached, a sentence that
            says so; "" after any other.
        confusion: (C,C) after a measurement: images by class (row) and predicted class (column).

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        classifier: Classifier,
        head_epochs: int = 5,
        head_lr: float = 1e-3,
        epochs: int = 50,
        lr: float = 1e-5,
        optimizer: OptimizerFactory = lambda params: torch.optim.SGD(params, momentum=0.9),
        schedule: ScheduleFactory | None = None,
        schedule_interval: Literal["epoch", "step"] = "epoch",
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        patience: int | None = None,
    ) -> None:
        super().__init__()
        _check_scores(classifier)
        if classifier.fast is not None:
            raise ValueError(
                f"Expected `speed` of the classifier to be plain, because only its own network can be trained, but got "
                f"{classifier.fast.speed}."
            )
        _check_epochs(head_epochs, epochs, patience)
        check_number("head_lr", head_lr, positive=True)
        check_number("lr", lr, positive=True)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"Expected `label_smoothing` to lie in [0, 1), but got {label_smoothing!r}.")
        check_number("mixup", mixup)
        if isinstance(class_weights, list):
            _check_weights(class_weights, classifier.num_classes)
        self.classifier = classifier
        self.head_epochs, self.head_lr, self.epochs, self.lr = head_epochs, head_lr, epochs, lr
        self.optimizer, self.schedule, self.schedule_interval = optimizer, schedule, schedule_interval
        self.class_weights, self.label_smoothing, self.patience = class_weights, label_smoothing, patience
        self.max_epochs = head_epochs + epochs
        self.mixup = mixup
        self._mix = MixUp(alpha=mixup, num_classes=classifier.num_classes) if mixup else None
        self.register_buffer("weight", None, persistent=False)
        self.confusion: Tensor | None = None
        self._phase: Phase | None = None
        self._settings: dict[str, Any] = {}
        self._fingerprint: dict[str, Any] = {}
        self._shown: dict[str, str] = {}
        self.metrics = _metrics(classifier.num_classes)
        # By default it leaves NaN out, and the loss of a network that has diverged looks well.
        self.loss, self.seen = MeanMetric(nan_strategy=math.nan), SumMetric()
        self._images = 0

    # Fit -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Match data and network; for `fit`, thaw the network.

        Raises:
            ValueError: the dataset has other classes than the network, or for `fit` another number of them.
        """
        classifier, names = self.classifier, self.data.class_names
        # ImageNet's names are those of a head that has not been fitted yet: unless the dataset has them, too, they go.
        fresh = stage == "fit" and classifier.class_names in (None, imagenet_names())
        known = len(names or ()) == classifier.num_classes or stage != "fit"
        matched = known and self.data.match_classes(classifier.class_names, classifier.name, used=not fresh)
        if names is not None and len(names) != classifier.num_classes and not matched:
            raise ValueError(
                f"Expected {self.data.name} and {classifier.name} to have the same classes, but they have {len(names)} "
                f"and {classifier.num_classes}. Set `num_classes` of the classifier to get a new head."
            )
        self.data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
        self._run_dir = self.find_folder(self.trainer)
        self._images, self.cut_short = 0, ""
        if stage == "fit":
            if names is not None and fresh and not (matched and self.data.class_map):
                classifier.class_names = names
            self.data.match_classes(classifier.class_names, classifier.name)
            self._setup_fit()

    def _setup_fit(self) -> None:
        self.data.training = True
        if self.class_weights == "balanced":
            self.weight = self._balanced()
        elif self.class_weights is not None:
            self.weight = torch.tensor(self.class_weights, device=self.device)
        self._settings = self.classifier.settings()  # before the thaw: it may have to look for the layer
        self._fingerprint = self._what_it_depends_on()
        # Thaw everything now: ddp looks only once which parameters have a gradient. `_thaw` freezes parts later.
        self.classifier.network.requires_grad_(True)
        if isinstance(self.trainer.strategy, DDPStrategy) and self.head_epochs:
            find_unused_parameters(self.trainer.strategy)

    def _what_it_depends_on(self) -> dict[str, Any]:
        """The fingerprint of the fit, without `epochs`: a fit may be continued for more epochs than first asked for."""
        # Loading a checkpoint overwrites the optimizer's options, so describe a throwaway pair.
        optimizer = self.optimizer([{"params": [torch.zeros(1, requires_grad=True)], "lr": self.lr}])
        schedule = None if self.schedule is None else self.schedule(optimizer)
        trainer = self.trainer
        kept = ("head_epochs", "head_lr", "lr", "class_weights", "label_smoothing", "mixup", "schedule_interval")
        named = ("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "world_size")
        found = {
            **{name: getattr(self, name) for name in kept},
            # Its default rate is torch's own: the phases set theirs.
            "optimizer": _described(optimizer, {**optimizer.defaults, "lr": None}),
            "schedule": None if schedule is None else _described(schedule, schedule.state_dict()),
            "classifier": self._settings,
            "data": self.data.training_fingerprint(),
            "trainer": {name: getattr(trainer, name) for name in named},
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))  # of an enumeration, checkpoints would refuse the class
        return plain

    def _balanced(self) -> Tensor:
        """(C,) n / (C * n_c) of the training images."""
        counts = Counter(self.data.network_class(entry.target) for entry in self.data.training_entries("train"))
        missing = [c for c in range(self.classifier.num_classes) if not counts[c]]
        if missing or counts[-1]:
            fault = (
                f"has none of class {missing[0]}" if missing else "does not tell all labels before its images are read"
            )
            raise ValueError(
                f"Expected training images of every class for balanced weights, but {self.data.name} {fault}."
            )
        each = torch.tensor([counts[c] for c in range(self.classifier.num_classes)], device=self.device)
        return each.sum() / (len(each) * each)

    def configure_optimizers(self) -> Any:
        """The optimizer over all parameters, and the schedule. Frozen parameters have no gradient and do not move."""
        optimizer = self.optimizer([{"params": list(self.classifier.network.parameters()), "lr": self.lr}])
        if self.schedule is None:
            return optimizer
        schedule = {"scheduler": self.schedule(optimizer), "interval": self.schedule_interval, "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule in the second phase only."""
        if self._phase == "all":
            super().lr_scheduler_step(scheduler, metric)

    def on_train_start(self) -> None:
        """Continue the phase of a fit that was stopped within it; the optimizer's state is restored already."""
        if self._phase is not None:
            self._thaw(self._phase)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Enter the phase of this epoch, and seed the random numbers from the step alone."""
        # Not in on_train_epoch_start: Lightning does not call it when a fit is resumed at the end of an epoch.
        phase: Phase = "head" if self.current_epoch < self.head_epochs else "all"
        if phase != self._phase:
            self._enter(phase)
        seed = (run_seed(), self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def _enter(self, phase: Phase) -> None:
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        optimizer.state.clear()
        start = schedule.get_last_lr()[0] if isinstance(schedule, LRScheduler) else self.lr
        rate = start if phase == "all" else self.head_lr
        for group in optimizer.param_groups:
            group["lr"] = rate
        self._phase = phase
        self._thaw(phase)

    def _thaw(self, phase: Phase) -> None:
        """Let the part of the network that this phase trains learn; the rest keeps its running means, too."""
        network = self.classifier.network
        network.requires_grad_(phase == "all").train(phase == "all")
        for head in heads(network):
            head.requires_grad_(True).train()

    def training_step(self, batch: Batch) -> Tensor:
        """The loss of a batch, without the images that cannot be read."""
        real, target = self._labels(batch)
        if not bool(real.any()):
            nothing: Tensor = self.classifier(batch["image"]).sum() * 0
            return nothing  # not None: every process has to take every step
        image, label = batch["image"][real], target[real]
        if self._mix is not None:
            image, label = self._mix(image, label)
        logits = self.classifier(image).float()
        loss = F.cross_entropy(logits, label, self.weight, label_smoothing=self.label_smoothing)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/loss", loss, prog_bar=True, batch_size=len(image))
        self.log("train/lr", float(rate), batch_size=len(image))
        return loss

    def on_train_end(self) -> None:
        """Note that the head is trained."""
        self.classifier.new_head = False

    @property
    def title(self) -> str:
        """What the run is called in folders."""
        return self.classifier.name.rpartition("/")[2]

    def teardown(self, stage: str) -> None:
        """Freeze the classifier again; warn if a limit of the trainer has cut the run short."""
        super().teardown(stage)
        if stage == "fit":
            self.classifier.network.requires_grad_(False).eval()
        self.cut_short = self._lacking_batches() if stage == "fit" else self._lacking_images(stage)
        if self.cut_short and self.trainer.is_global_zero:
            warnings.warn(self.cut_short, stacklevel=2)

    def _lacking_batches(self) -> str:
        """A sentence on the batches that were not done, or "". Early stopping is not counted as a limit."""
        trainer = self.trainer
        done = int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]
        wanted = self.max_epochs * len(self.data.train_dataloader())
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        timed_out = any((timer.time_remaining() or math.inf) < 0 for timer in timers)
        if done >= wanted or (trainer.should_stop and not timed_out):
            return ""
        return (
            f"{done} of {wanted} training batches are done: a limit of the Trainer (`max_epochs`, `max_steps`, "
            "`max_time`, `limit_train_batches`, `fast_dev_run` ...) ended the run before its end."
        )

    def _lacking_images(self, stage: str) -> str:
        """A sentence on the images that a measurement left out, or ""."""
        loader = self.data.val_dataloader() if stage == "validate" else self.data.test_dataloader()
        n = len(loader.dataset)  # type: ignore[arg-type]
        if self._images >= n:
            return ""
        return (
            f"{n - self._images} of {n} images are missing in the measurement: a limit of the Trainer "
            f"(`{limit_name(stage)}`, `fast_dev_run` ...) ended the run before its end."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the classifier's settings, the fit's fingerprint, and the phase."""
        checkpoint[SETTINGS] = self._settings
        checkpoint["fit"] = {"fingerprint": self._fingerprint, "phase": self._phase}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the phase up.

        Raises:
            FingerprintMismatch: the checkpoint is of a fit with other settings or other images, each named.
        """
        fit = checkpoint.get("fit", {})
        self._phase = fit.get("phase")
        if self._fingerprint:  # set by `setup` for a fit: to measure, any checkpoint will do
            check_fingerprint(fit.get("fingerprint", {}), self._fingerprint)

    # Measure -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch) -> None:
        """Measure one block."""
        self._measure(batch)

    def test_step(self, batch: Batch) -> None:
        """Measure one block."""
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def summary(self) -> str:
        """What the last measurement said, in a line."""
        return "   ".join(f"{name} {value}" for name, value in self._shown.items())

    def _measure(self, batch: Batch) -> None:
        real, target = self._labels(batch)
        logits = self.classifier(batch["image"]).float()
        loss = F.cross_entropy(logits, target.clamp(min=0), reduction="none")
        self.loss.update(loss.where(real, 0), weight=real)
        self.metrics.update(logits.softmax(1), target)
        self.seen.update((batch["index"] >= 0).sum())

    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) which images count, and (B,) their classes, -1 for the others.

        Raises:
            ValueError: an image has no label, or one that the network does not know.
        """
        read = torch.tensor([not error for error in batch["error"]], device=batch["index"].device)
        real = (batch["index"] >= 0) & read
        target = batch["target"]
        check_labels(target[real], self.classifier.num_classes, [batch["id"][i] for i in real.nonzero().flatten()])
        return real, target.where(real, -1)

    def _log_scores(self, stage: Literal["val", "test"]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics on classes without images, which are left out below
            scores = self.metrics.compute()
        confusion: Tensor = scores.pop("confusion")
        counts = confusion.sum(1)
        known = (counts > 0) & (counts < counts.sum())
        scores["auroc"] = scores["auroc"][known].mean() if bool(known.any()) else torch.tensor(math.nan)
        values = {f"{stage}/{key}": 100 * score for key, score in scores.items()}
        values |= {f"{stage}/loss": self.loss.compute(), f"{stage}/images": counts.sum().float()}
        # The same on every rank, as torchmetrics has added the states up; only what Lightning asks for is the mean.
        self.log_dict(values, sync_dist=True, batch_size=1)
        self._shown = {
            **{name: f"{100 * float(scores[key]):.2f} %" for key, name in _LABELS.items()},
            "loss": f"{float(values[f'{stage}/loss']):.4f}",
            "images": str(int(counts.sum())),
        }
        if int(counts.sum()) and math.isnan(float(values[f"{stage}/loss"])) and self.trainer.is_global_zero:
            warnings.warn(
                "The network's scores are not finite for some images, so that its accuracy says nothing. Either its "
                "training has diverged (try a smaller `lr` or `head_lr`), or its weights are damaged.",
                stacklevel=2,
            )
        self._images = int(self.seen.compute())
        for measured in (self.metrics, self.loss, self.seen):
            measured.reset()
        self.confusion = confusion.cpu()
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                figure = confusion_figure(self.confusion.tolist(), self.classifier.class_names)
                logger.experiment.add_figure(f"{stage}/confusion", figure, self.global_step)
                if numbered := undrawn(self.classifier.class_names or ()):
                    words = "\n".join(f"- class {number}: {name}" for number, name in numbered.items())
                    logger.experiment.add_text(f"{stage}/confusion", words, self.global_step)


def _described(thing: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The class and plain values of an object, without None and False: new releases of torch add such options."""
    plain = {key: value for key, value in values.items() if value and isinstance(value, (bool, int, float, str, tuple))}
    return {"class": type(thing).__name__} | {key: value for key, value in plain.items() if not key.startswith("_")}


def _metrics(num_classes: int) -> MetricCollection:
    """The metrics of a measurement. Padding has the label -1."""
    # Padding is given to the metrics, too: torchmetrics fails at the empty states of a rank without any image.
    options: Any = {"num_classes": num_classes, "ignore_index": -1}
    metrics: dict[str, Any] = {
        "accuracy": MulticlassAccuracy(average="micro", **options),
        "macro_f1": MulticlassF1Score(average="macro", **options),
        "auroc": MulticlassAUROC(average="none", **options),
        "confusion": MulticlassConfusionMatrix(**options),
    }
    return MetricCollection(metrics, compute_groups=False)  # compute groups merge metrics by their first values


def _check_scores(classifier: Classifier) -> None:
    if scores_settings(classifier.scores, classifier.link):
        raise ValueError(
            "Expected a classifier with class logits and the link softmax, which ClassificationTask trains by cross "
            f"entropy, but got the scores {classifier.scores.describe()} with the link {link_name(classifier.link)}. "
            "Train such a network in a program of your own, and explain it with these scores."
        )


def _check_epochs(head_epochs: int, epochs: int, patience: int | None) -> None:
    check_count("head_epochs", head_epochs)
    check_count("epochs", epochs)
    if patience is not None:
        check_positive("patience", patience)
    if head_epochs + epochs == 0:
        raise ValueError("Expected `head_epochs` and `epochs` to be at least one epoch together, but both are 0.")


def _check_weights(weights: list[float], classes: int) -> None:
    if len(weights) != classes or not all(0 <= value < math.inf for value in weights) or not any(weights):
        raise ValueError(
            f"Expected `class_weights` to be {classes} numbers of at least 0, not all 0, but got {weights}."
        )
