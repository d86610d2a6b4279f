"""Finer-CAM: what speaks for a class, and not for those that look like it (Zhang et al., CVPR 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from optcam_pl.checks import check_number, check_positive
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.cam import GradCAM
from optcam_pl.explainers.opticam import nearest_classes
from optcam_pl.network.classifier import Classifier


class FinerCAM(Explainer):
    """Any method of one class's score, for the score ``sum_k p_k (y_c - alpha y_k) / sum_k p_k`` instead of y_c.

    k runs over the classes that are nearest to c in score, and p is the softmax of the scores. The gradient runs
    through p, too, as in pytorch-grad-cam's `FinerWeightedTarget`, whose definition this is (it adds 1e-9 to the
    divisor). The classes are chosen anew for every image that the method passes. p and o of the metrics stay those of
    the class itself.

    A method that compares classes itself is refused: this score belongs to a class, and those of all classes together
    make no probabilities.

    Args:
        explainer: the method; None: Grad-CAM, the source's.
        alpha: how much of the other classes' score is taken away; 0 is the method itself.
        compare: how many classes are compared with.
        selectivity: see `Explainer`.
        augment: whether the map is the mean over six views of the image, which is six times the work; see `Explainer`.

    Raises:
        ValueError: the method compares classes; (when called) the network has one score only.
    """

    def __init__(
        self,
        explainer: Explainer | None = None,
        alpha: float = 1.0,
        compare: int = 3,
        *,
        selectivity: float = 1.0,
        augment: bool = False,
    ) -> None:
        explainer = GradCAM() if explainer is None else explainer
        super().__init__(None, explainer.baseline, selectivity=selectivity, augment=augment)
        self.explainer = explainer
        self.alpha, self.compare = check_number("alpha", alpha), check_positive("compare", compare)
        self.layer = explainer.layer
        self._check_method()

    def __setattr__(self, name: str, value: Any) -> None:
        """A run's baseline is the method's, too."""
        super().__setattr__(name, value)
        inner = self._modules.get("explainer") if "_modules" in self.__dict__ else None
        if name == "baseline" and isinstance(inner, Explainer):
            inner.baseline = value

    @property
    def title(self) -> str:
        """The method's own name after Finer."""
        return f"Finer{self.explainer.title}"

    def settings(self) -> dict[str, object]:
        """The method and its settings, and the two of this class."""
        inner = {"class": type(self.explainer).__name__, **self.explainer.settings()}
        return {"explainer": inner, "alpha": self.alpha, "compare": self.compare} | self.changes()

    @property
    def compares_classes(self) -> bool:
        """See `Explainer`."""
        return True

    def _check_method(self) -> None:
        if self.explainer.compares_classes:
            raise ValueError(
                f"Expected a method that reads one class's score for FinerCAM, but {self.explainer.title} with these "
                "settings reads its probability or other classes' scores. Use GradCAM, OptiCAM, ScoreCAM, or another "
                "that reads the score alone."
            )

    def check(self, classifier: Classifier) -> None:
        """The method's own check."""
        self._check_method()
        self.explainer.check(classifier)

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """The method, with the scores above."""
        self._check_method()
        explained = torch.tensor(sorted(set(target.tolist())), device=target.device)
        if classifier.scores.per_image or classifier.num_classes < 2:
            raise ValueError(
                f"Expected scores of several classes for {self.title}, which compares them, but "
                f"{classifier.scores.describe()} has none."
            )

        def finer(scores: Tensor) -> Tensor:
            columns = [self._finer(scores, int(c)) for c in explained]
            return torch.zeros_like(scores).index_copy(1, explained, torch.stack(columns, 1))

        with classifier.transform.to(finer):
            return self.explainer.explain(classifier, image, target)

    def _finer(self, scores: Tensor, c: int) -> Tensor:
        """(B,) from (B,C)."""
        target = torch.full((len(scores),), c, device=scores.device)
        near = nearest_classes(scores.detach(), target, self.compare)
        p = nn.functional.softmax(scores, 1).gather(1, near)
        return (p * (scores[:, c : c + 1] - self.alpha * scores.gather(1, near))).sum(1) / p.sum(1)
