"""ExplainCallback: what a network looks at while it is trained, in anybody's LightningModule."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from optcam_pl.callbacks.boards import boards_of
from optcam_pl.callbacks.inspection import panel
from optcam_pl.checks import check_choice, check_positive
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.evaluate.subject import default_metrics
from optcam_pl.explainers import Explainer, GradCAM
from optcam_pl.figures import titled
from optcam_pl.metrics import ImageMetric
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.layers import Layers
from optcam_pl.tasks import BlockResult, ClassificationTask

Unpack: TypeAlias = Callable[[Any], "tuple[Tensor, Tensor | None]"]
"""A batch of the validation loader -> images (B,3,H,W) and labels (B,), or None where it has none."""

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_SLACK = 1e-3  # of pixels, for rounding in half precision


class ExplainCallback(Callback):
    """Explains a few validation images every few epochs of a `fit`, for any LightningModule that classifies.

    It logs, at the trainer's step, ``explain/average_drop``, ``average_gain`` and ``average_increase`` over these
    images, ``explain/p``, their mean probability, and ``explain_examples/<number>``: the image, its map and the masked
    image, so that a slider shows how the map of an image changes. Every logger gets what it can show.

    Training is not touched: the network is explained in a frozen copy, and all states of random numbers are put back.
    A run with this callback ends with the same weights, bit for bit, as one without. A fault in the settings ends the
    run in Lightning's sanity check, or else at the first explanation; a later failure is a warning.

    The images are the first of the first validation loader, as the first process sees them; they stay in memory, and
    the copy takes the memory of one more network.

    Args:
        explainer: the method; None is `GradCAM`.
        every_n_epochs: explain after the validation of epochs 0, n, 2n, ...; where an epoch has none, after the next.
        images: number of images.
        mean: what the loader subtracts from the pixels, one number or one per channel; None if its images have pixels
            in [0,1].
        std: what it divides them by; likewise.
        network: dotted name of the part of the LightningModule that maps images to logits; "" is the module itself.
        layer: the layer or layers to explain, by name below `network`; None is found. See `Classifier`.
        class_names: one name per class, for the titles.
        target: the explained class: the image's "label" where the batch has one, or the "predicted" class.
        metrics: what is measured; None means Average Drop, Average Gain and Average Increase.
        unpack: takes a batch apart; None takes pairs of images and labels, and dicts with ``image`` and ``target`` or
            ``label``.

    Raises:
        ValueError: a setting out of range.
        TypeError: `explainer` is no explainer.

    Example:
        >>> from lightning import Trainer
        >>> explain = ExplainCallback(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), every_n_epochs=5)
        >>> trainer = Trainer(callbacks=[explain], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        explainer: Explainer | None = None,
        *,
        every_n_epochs: int = 1,
        images: int = 8,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        network: str = "",
        layer: Layers | None = None,
        class_names: Sequence[str] | None = None,
        target: Literal["label", "predicted"] = "label",
        metrics: Sequence[ImageMetric] | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        if not isinstance(explainer, Explainer | None):
            raise TypeError(f"Expected `explainer` to be an object of Explainer, but got {explainer!r}.")
        self.explainer = GradCAM() if explainer is None else explainer
        self.every_n_epochs = check_positive("every_n_epochs", every_n_epochs)
        self.images = check_positive("images", images)
        self.mean, self.std, self.network, self.layer = mean, std, network, layer
        self.class_names = None if class_names is None else list(class_names)
        self.target: Literal["label", "predicted"] = check_choice("target", target, Literal["label", "predicted"])
        self.metrics = default_metrics() if metrics is None else list(metrics)
        self.unpack = unpack_batch if unpack is None else unpack
        self._found: list[tuple[Tensor, int]] = []
        self._worked = False
        self._last = 0  # epoch with an explanation, or the one that would have had one

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a network that no process has as a whole, and a part that the module does not have.

        Raises:
            TypeError: the strategy cuts the network into pieces.
            ValueError: there is no part called `network`.
        """
        if isinstance(trainer.strategy, _SHARDED):
            raise TypeError(
                "Expected a strategy that keeps the whole network on each process (a single device, ddp) for "
                f"ExplainCallback, but got {type(trainer.strategy).__name__}."
            )
        names = [name for name, _ in pl_module.named_modules()]
        if self.network not in names:
            parts = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(
                f"Expected `network` to name a part of {type(pl_module).__name__} ({parts}), but got {self.network!r}."
            )
        self._found, self._worked = [], False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A fit that goes on has explained the epochs before."""
        before = trainer.current_epoch - 1
        self._last = before - before % self.every_n_epochs

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew with fewer images than asked for: the sanity check, or a short loader, has shown only some."""
        if len(self._found) < self.images:
            self._found = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images."""
        missing = self.images - len(self._found)
        fits = trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero
        if not fits or dataloader_idx or missing <= 0:
            return
        with torch.inference_mode(False), torch.no_grad():
            image, label = self.unpack(batch)
            image = image[:missing].detach().float().cpu().clone()
            labels = [-1] * len(image) if label is None else label[:missing].tolist()
        self._found += zip(image, labels, strict=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain the images, if this is an epoch for it."""
        if trainer.state.fn != TrainerFn.FITTING or not self._is_due(trainer) or not self._found:
            return
        if not trainer.sanity_checking:
            self._last = trainer.current_epoch
        with torch.inference_mode(False), _same_random_numbers(pl_module.device), warnings.catch_warnings():
            # A network that has hardly been trained may say the same of everything.
            warnings.filterwarnings("ignore", message=".*outputs the same scores for noise.*")
            try:
                result = self._explain(pl_module)
            except Exception as error:
                if not self._worked:
                    raise
                message = (
                    f"ExplainCallback could not explain epoch {trainer.current_epoch}; the training goes on: {error}"
                )
                warnings.warn(message, stacklevel=2)
                return
        self._worked = True
        if not trainer.sanity_checking:
            self._show(trainer, result)

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether this is an epoch for an explanation, or the first validation after one."""
        n, epoch = self.every_n_epochs, trainer.current_epoch
        return trainer.sanity_checking or epoch % n == 0 or epoch - self._last >= n

    def _explain(self, pl_module: L.LightningModule) -> BlockResult:
        own = isinstance(pl_module, ClassificationTask) and not self.network
        image = torch.stack([image for image, _ in self._found])
        label = torch.tensor([label for _, label in self._found])
        image = (image if own else self._pixels(image)).to(pl_module.device)
        classifier = self._classifier(pl_module, (image.shape[2], image.shape[3]))
        known = self.target == "label" and bool((label >= 0).all())
        explainer = self.explainer.to(pl_module.device)
        batch: Any = {"image": image, "target": label.to(image.device)}
        return evaluate_block(classifier, explainer, batch, "label" if known else "predicted", self.metrics)

    def _classifier(self, pl_module: L.LightningModule, size: tuple[int, int]) -> Classifier:
        """A frozen copy of the network."""
        if isinstance(pl_module, ClassificationTask) and not self.network:
            classifier: Classifier = _copied(pl_module.classifier, pl_module)
            classifier.network.requires_grad_(False).eval()
            return classifier
        network = _copied(pl_module.get_submodule(self.network), pl_module)
        mean, std = 0.0 if self.mean is None else self.mean, 1.0 if self.std is None else self.std
        return Classifier(
            network, target_layer=self.layer, mean=mean, std=std, input_size=size, class_names=self.class_names
        )

    def _pixels(self, image: Tensor) -> Tensor:
        """The loader's images as pixels in [0,1].

        Raises:
            ValueError: they are none, and `mean` and `std` do not say what was done to them.
        """
        for given, undo in ((self.std, torch.mul), (self.mean, torch.add)):
            if given is not None:
                image = undo(image, torch.as_tensor(given, dtype=image.dtype).view(-1, 1, 1))
        low, high = float(image.min()), float(image.max())
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            what = "after `mean` and `std` were undone " if self.mean is not None or self.std is not None else ""
            raise ValueError(
                f"Expected the validation loader's images {what}to have pixels in [0,1], but they lie in [{low:.3g}, "
                f"{high:.3g}]. Give ExplainCallback the `mean` and `std` with which the loader normalizes them."
            )
        return image.clamp(0, 1)

    def _show(self, trainer: L.Trainer, result: BlockResult) -> None:
        step = trainer.global_step
        values = {f"explain/{metric.key}": metric.reduce(result.scores[metric.key].tolist()) for metric in self.metrics}
        values["explain/p"] = float(result.probes.original.mean())
        for board in boards_of(trainer):
            board.scalars(values, step)
            for i in range(len(result.rows)):
                board.picture(
                    f"explain_examples/{i}", titled(panel(result, i)(), f"epoch {trainer.current_epoch}"), step
                )


def unpack_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a batch: a tensor, a pair or a longer sequence that begins with them, or a dict.

    Raises:
        TypeError: it is something else.

    Example:
        >>> image, label = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
        >>> all(unpack_batch(batch)[1] is label for batch in ((image, label), {"image": image, "label": label}))
        True
    """
    image, label = batch, None
    if isinstance(batch, Mapping):
        image = batch.get("image", batch.get("pixel_values"))
        label = next((batch[key] for key in ("target", "label", "labels") if key in batch), None)
    elif isinstance(batch, Sequence) and batch:
        image, label = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(image, Tensor) or image.ndim != 4:
        raise TypeError(
            "Expected a validation batch as images (B,3,H,W), as a pair of images and labels, or as a dict with `image`"
            f" and `target`, but got {type(batch).__name__}. Give ExplainCallback `unpack`, a function that takes your "
            "batches apart."
        )
    usable = isinstance(label, Tensor) and label.ndim == 1 and not label.is_floating_point()
    return image, label if usable else None


def _copied(module: Any, pl_module: L.LightningModule) -> Any:
    """A copy of a module, without its trainer.

    Raises:
        ValueError: it cannot be copied.
    """
    trainer = pl_module.trainer
    try:
        twin: nn.Module = copy.deepcopy(module, {id(trainer): trainer})
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"Expected {type(module).__name__} to be a module that can be copied, but {error}. Name the part that maps "
            "images to logits by ExplainCallback's `network`."
        ) from error
    if isinstance(twin, L.LightningModule):
        twin.trainer = None
    return twin


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Put back all states of random numbers: Python's, NumPy's, torch's on the CPU and on this device."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    accelerator = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    try:
        with torch.random.fork_rng(accelerator, device_type=kind):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
