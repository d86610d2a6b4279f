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
from optcam_pl.network.link import link_name


class FinerCAM(Explainer):
    """Any method of one class's score, for the score ``sum_k p_k (y_c - alpha y_k) / sum_k p_k`` instead of y_c.

    k runs over the classes that are nearest to c in score, and p is the softmax of the scores. The gradient runs
    through p, too, as in pytorch-grad-cam's `FinerWeightedTarget`, whose definition this is (it adds 1e-9 to the
    divisor). The classes are chosen anew for every image that the method passes. p and o of the metrics stay those of
    the class itself.

    A method that compares classes itself is refused. So is one of a probability, such as RISE, where the network's link
    is the softmax or a function: this score belongs to a class, and those of all classes together make no
    probabilities. With the link "sigmoid", the method reads this score's sigmoid.

    Args:
        explainer: the method; None: Grad-CAM, the source's.
        alpha: how much of the other classes' score is taken away; 0 is the method itself.
        compare: how many classes are compared with.
        selectivity: see `Explainer`.
        augment: whether the map is the mean over six views of the image, which is six times the work; see `Explainer`.

    Raises:
        ValueError: the method compares classes, or has a `selectivity` or `augment` of its own, which are this class's;
            (when checked or called) it reads a probability that the network's link makes of several scores, or the
            network has one score only.
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
        if changes := explainer.changes():
            raise ValueError(
                f"Expected `selectivity` and `augment` of FinerCAM itself, which are for its map, but got "
                f"{', '.join(f'{name}={value}' for name, value in changes.items())} of its {explainer.title}."
            )
        super().__init__(None, explainer.baseline, selectivity=selectivity, augment=augment)
        self.explainer = explainer
        self.needs_original = explainer.needs_original  # type: ignore[misc]  # of this one's method
        self.alpha, self.compare = check_number("alpha", alpha), check_positive("compare", compare)
        self.layer = explainer.layer
        self._check_method(None)

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

    def _check_method(self, classifier: Classifier | None) -> None:
        """Raise a ValueError for a method that reads other classes' scores, or would do so by the network's link."""
        method, advice = self.explainer.title, "Use GradCAM, OptiCAM, ScoreCAM, or another that reads the score alone."
        if not self.explainer.compares_classes:
            return
        if not self.explainer.reads_probability:
            raise ValueError(
                f"Expected a method that reads one class's score for FinerCAM, but {method} with these settings reads "
                f"other classes' scores. {advice}"
            )
        if classifier is not None and classifier.link not in ("sigmoid", "identity"):
            raise ValueError(
                f"Expected a method that reads one class's score for FinerCAM, but {method} with these settings reads "
                f"its probability, which the network's `link` {link_name(classifier.link)} makes of other classes' "
                f"scores, too (sigmoid does not). {advice}"
            )

    def check(self, classifier: Classifier) -> None:
        """The method's own check."""
        self._check_method(classifier)
        self.explainer.check(classifier)

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """The method, with the scores above."""
        self._check_method(classifier)
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
