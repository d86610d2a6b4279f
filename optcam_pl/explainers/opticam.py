"""Opti-CAM: the map's weights are optimized for each image (Zhang et al., CVIU 248, 2024, 104101)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from optcam_pl import kernels
from optcam_pl.checks import check_choice, check_number, check_positive
from optcam_pl.explainers.ascent import Ascent, Stepper, StopRule, Watch
from optcam_pl.explainers.base import Explainer, Explanation, seen, why
from optcam_pl.explainers.presets import PRESETS, Preset, Schedule, Start, balanced
from optcam_pl.explainers.replay import climb, fuse
from optcam_pl.maps import (
    Baseline,
    Normalizer,
    check_baseline,
    combine,
    constant,
    degenerate,
    normalize,
    of_class,
    upsample,
    wide,
)
from optcam_pl.network.capture import own_grad_mode
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.errors import backward_errors
from optcam_pl.network.layers import Layers
from optcam_pl.network.precision import pass_dtype

Objective: TypeAlias = Literal["mask", "diff", "io_mask", "io_diff", "contrast"]
OptimizerCallable: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
Made: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """What the inner fit loop is about; constant while it runs.

    Attributes:
        image: (B,3,H,W) in [0,1].
        target: (B,) the classes.
        features: the layers' feature maps A, [(B,K,h,w)].
        logit: (B,) g_c of the unmasked image.
        reference: what masking fades into, broadcasts to (B,3,H,W); None is black.
        silent: (B,) whether all feature maps are constant.
        rivals: (B,n) the classes that `contrast` compares with: those nearest in score for the unmasked image.
    """

    image: Tensor
    target: Tensor
    features: list[Tensor]
    logit: Tensor
    reference: Tensor | None
    silent: Tensor
    rivals: Tensor | None = None


def objective_value(objective: Objective, logit: Tensor, inside: Tensor, outside: Tensor | None) -> Tensor:
    """F_c of the paper's equations 10, 19, F.1 and F.2, with g_c the logit of the class.

    Args:
        objective: ``mask`` g(x.s); ``diff`` -|g(x) - g(x.s)|; ``io_mask`` g(x.s) - g(x.(1-s));
            ``io_diff`` -|g(x) - g(x.s)| + |g(x) - g(x.(1-s))|.
        logit: (B,) g_c of the image.
        inside: (B,) g_c of the image masked by s.
        outside: (B,) g_c of the image masked by 1 - s; the ``io`` objectives need it.

    Returns:
        (B,) values to be maximized.

    >>> logit, inside, outside = torch.tensor([5.0]), torch.tensor([4.0]), torch.tensor([2.0])
    >>> [objective_value(name, logit, inside, outside).item() for name in ("mask", "diff", "io_mask", "io_diff")]
    [4.0, -1.0, 2.0, 2.0]
    """
    if objective == "mask":
        return inside
    if objective == "diff":
        return -(logit - inside).abs()
    if outside is None:
        raise ValueError(f"Expected `outside` for the objective {objective!r}, but got None.")
    if objective == "io_mask":
        return inside - outside
    return (logit - outside).abs() - (logit - inside).abs()


class OptiCAM(Explainer):
    """``s(x; u) = n(up(sum_k softmax(u)_k A_k))`` with ``u* = argmax_u F_c(x; u)``.

    The inner fit loop, at most T = `max_iter` steps per image:

    1. A: feature maps of the layer, from one forward pass. Several layers share one softmax over all their channels;
       each layer is upsampled separately.
    2. u = 0, the uniform combination. The authors' program also starts there, with another constant. (`start` can
       choose another one.)
    3. F_c of every image. An image stops when F_c changes by less than `tol` from one step to the next, and stays as it
       is from then on. In bfloat16 or float16, where small steps change no logit, it stops when F_c stands still for 25
       steps; see `StopRule`.
    4. The optimizer takes one step up the gradient of F_c with respect to u alone. Neither the network's parameters nor
       the image ever get a gradient.
    5. After the last step: F_c once more, and the map of the final u.

    Every image has its own row of u, and the objectives are added up, never averaged, so an image's steps do not depend
    on its batch. Weights, map and mask stay in float32 under autocast; only the network's passes do not.

    Differences from the authors' program: its stopping rule looks at the sum over the batch and only at every tenth of
    the run; it clamps the features by a ReLU (here `relu`, which changes nothing after a layer that ends in a ReLU).

    The uniform start carries no information where a layer's channels sum to 0 at every position. This is so for a layer
    normalization without weights (an untrained transformer's `norm1`): the first map is rounding noise, stretched to
    [0,1], and so is the direction of the first step. The definition is kept; `relu` or another layer avoids the
    problem.

    Args:
        layer: see `Explainer`.
        objective: F_c, see `objective_value`; or ``contrast``, ``g_c(x.s) - gamma mean_k g_k(x.s)`` over the classes k
            that are nearest to c in score for the unmasked image: what speaks for c and not for what looks like it.
            The idea is Finer-CAM's (Zhang et al., CVPR 2025), whose reference weighs the classes by their
            probabilities; see `FinerCAM`.
        normalizer: n, see `optcam_pl.maps.normalize`.
        max_iter: T, the largest number of steps; None means the preset's, 100 for the paper's.
        lr: learning rate of the default optimizer; None means the preset's, 0.1 for the paper's.
        tol: an image stops when its objective changes by less than this; 0 never stops early. In less than float32 it
            is at least half of the distance of neighboring logits.
        optimizer: a torch optimizer class with its settings bound, ``params -> Optimizer``; None means Adam with `lr`
            and `betas`. Optimizers that need a closure (LBFGS) are refused.
        relu: clamp the features at 0 first, as the authors' program does.
        gamma: of ``contrast``: how much of the other classes' score is taken away; 0 is ``mask``.
        rivals: of ``contrast``: how many classes are compared with.
        baseline: see `Explainer`.
        preset: what holds for `max_iter`, `lr`, `betas`, `schedule` and `start` where they are None: "paper" is the
            paper's climb, "fast" one of 20 steps that reaches more; see `optcam_pl.explainers.presets.PRESETS` and
            docs/performance.md.
        betas: the default optimizer's two decay rates; None means the preset's.
        schedule: the part of each step that is taken, also of an own optimizer's: "constant" or falling to 0
            ("linear"); None means the preset's.
        start: where u begins: 0 ("uniform"), or where every channel brings the same amount into the map ("balanced",
            see `optcam_pl.explainers.presets.balanced`); None means the preset's.

    Attributes:
        watch: a function that sees every iteration: its number, the objective (B,) and the weights (B,K); see
            `optcam_pl.explainers.ascent.Watch`. It is no setting: results do not depend on it.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        layer: Layers | None = None,
        objective: Objective = "mask",
        normalizer: Normalizer = "range",
        max_iter: int | None = None,
        lr: float | None = None,
        tol: float = 1e-10,
        optimizer: OptimizerCallable | None = None,
        relu: bool = False,
        baseline: Baseline = "black",
        *,
        preset: Preset = "paper",
        betas: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        start: Start | None = None,
        gamma: float = 0.6,
        rivals: int = 3,
        **shared: Any,
    ) -> None:
        super().__init__(layer, check_baseline(baseline), **shared)
        self.objective: Objective = check_choice("objective", objective, Objective)
        self.normalizer: Normalizer = check_choice("normalizer", normalizer, Normalizer)
        self.preset: Preset = check_choice("preset", preset, Preset)
        usual = PRESETS[self.preset]
        self.max_iter = check_positive("max_iter", usual.max_iter if max_iter is None else max_iter)
        self.lr = check_number("lr", usual.lr if lr is None else lr, positive=True)
        self.betas = usual.betas if betas is None else _check_betas(betas, optimizer)
        self.schedule: Schedule = check_choice("schedule", usual.schedule if schedule is None else schedule, Schedule)
        self.start: Start = check_choice("start", usual.start if start is None else start, Start)
        self.tol, self.relu = check_number("tol", tol), relu
        self.optimizer = optimizer
        self.gamma, self.rivals = check_number("gamma", gamma), check_positive("rivals", rivals)
        self.watch: Watch | None = None

    @property
    def compares_classes(self) -> bool:
        """See `Explainer`: ``contrast`` does."""
        return self.objective == "contrast"

    def settings(self) -> dict[str, object]:
        """See `Explainer.settings`; the optimizer is described by its class and options.

        The preset is not named, but what is in force because of it. `betas`, `schedule` and `start` are named where
        they are not the paper's.
        """
        named = super().settings()
        if self.objective != "contrast":  # without any meaning otherwise
            named = {key: value for key, value in named.items() if key not in ("gamma", "rivals")}
        paper = PRESETS["paper"].items()
        unsaid = {"preset"} | {name for name in ("betas", "schedule", "start") if getattr(self, name) == paper[name]}
        named = {name: value for name, value in named.items() if name not in unsaid}
        if self.optimizer is None:
            named["optimizer"] = "Adam"
        else:
            made = self.make_optimizer([nn.Parameter(torch.zeros(1))])
            options = {k: v for k, v in made.defaults.items() if isinstance(v, (int, float, tuple, list))}
            named["optimizer"] = f"{type(made).__name__}({', '.join(f'{k}={v}' for k, v in options.items())})"
            for name in ("lr", "betas"):
                named.pop(name, None)
        return named

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Steps 1 to 5; see the class."""
        if (replayed := climb(self, classifier, image, target)) is not None:
            return replayed
        problem = self.problem(classifier, image, target)
        u = self.parameters_of(problem)
        optimizer = self.make_optimizer(u)
        if classifier.fast is not None and classifier.fast.replays(image):
            fuse(optimizer)
        return self._optimize(classifier, problem, u, optimizer)

    def problem(self, classifier: Classifier, image: Tensor, target: Tensor) -> Problem:
        """Step 1, and what else does not change during the inner fit loop."""
        features, scores = self._first_pass(classifier, image)
        logit, reference = wide(of_class(scores, target)), self.reference(classifier, image)
        rivals = self._rivals(classifier, scores, target) if self.objective == "contrast" else None
        return Problem(image, target, features, logit, reference, _silent_features(features), rivals)

    def _rivals(self, classifier: Classifier, scores: Tensor, target: Tensor) -> Tensor:
        if classifier.scores.per_image or scores.shape[1] < 2:
            raise ValueError(
                "Expected scores of several classes for the `objective` contrast, which compares them, but "
                f"{classifier.scores.describe()} has none."
            )
        return nearest_classes(scores, target, self.rivals)

    def parameters_of(self, problem: Problem) -> list[nn.Parameter]:
        """Step 2: u, as one parameter (B,K) for the default optimizer, and otherwise as B of (K,).

        Adam moves every number by itself, so all images fit into one parameter. A user's optimizer may look at a whole
        parameter (LARS, Muon), and must not mix images.
        """
        begin = self.begin(problem)
        return [nn.Parameter(rows.clone()) for rows in ([begin] if self.optimizer is None else begin)]

    def begin(self, problem: Problem) -> Tensor:
        """Where u begins, (B,K)."""
        if self.start == "balanced":
            return torch.cat([balanced(A) for A in problem.features], 1)
        return problem.image.new_zeros(len(problem.image), sum(A.shape[1] for A in problem.features))

    def fit(
        self,
        classifier: Classifier,
        image: Tensor,
        target: Tensor,
        u: Sequence[nn.Parameter],
        optimizer: Stepper,
    ) -> Explanation:
        """Do the same as a call, on parameters and an optimizer that the caller owns, such as a LightningModule.

        Args:
            classifier: the network.
            image: (B,3,H,W) in [0,1].
            target: (B,) classes.
            u: B parameters (K,) on the image's device, set to the start here.
            optimizer: optimizes `u`; its state must be fresh.

        Raises:
            ValueError: `augment` is on.
        """
        self.check_one_view()
        with own_grad_mode():
            image, target = self.prepare(classifier, image, target)
            problem = self.problem(classifier, image, target)
            for parameter, row in zip(u, self.begin(problem), strict=True):
                parameter.detach().copy_(row)
            return self.select(self._optimize(classifier, problem, u, optimizer))

    def check(self, classifier: Classifier) -> None:
        """See `Explainer.check`; it skips the optimization."""
        self.check_layers(classifier)

    def check_one_view(self) -> None:
        """Refuse `augment`: stored weights belong to one view of an image.

        Raises:
            ValueError: `augment` is on.
        """
        if self.augment:
            raise ValueError(
                "Expected `augment` to be off where weights are fitted to be stored, or are read again, because they "
                "belong to one view of an image: use `test` or `predict` without `weights_from`."
            )

    def from_weights(self, classifier: Classifier, image: Tensor, target: Tensor, weights: Tensor) -> Explanation:
        """The map of weights that were found earlier (`Explanation.weights`), without optimizing again.

        Args:
            classifier: the network that the weights were found for.
            image: (B,3,H,W) in [0,1].
            target: (B,) the classes that the weights were found for.
            weights: (B,K), non-negative; each row sums to 1.

        Raises:
            ValueError: K is not the number of the layer's channels, or `augment` is on.
        """
        self.check_one_view()
        with own_grad_mode(), torch.no_grad():
            image, target = self.prepare(classifier, image, target)
            problem = self.problem(classifier, image, target)
            channels = sum(A.shape[1] for A in problem.features)
            if weights.shape != (image.shape[0], channels):
                raise ValueError(
                    f"Expected `weights` to have shape {(image.shape[0], channels)}, one for each channel of the "
                    f"layer, but got {tuple(weights.shape)}."
                )
            found = self.explanation(weights.to(problem.features[0]), problem)
            return self.select(replace(found, weights=weights))

    def channels(self, classifier: Classifier, size: tuple[int, int]) -> int:
        """K, found by one forward pass over a black image of `size` (H,W)."""
        device = classifier.mean.device
        image = torch.zeros(1, classifier.channels, *size, dtype=torch.float32, device=device)
        with torch.no_grad():
            features, _ = self.features(classifier, image, torch.zeros(1, dtype=torch.int64, device=device))
        return sum(A.shape[1] for A in features)

    def features(self, classifier: Classifier, image: Tensor, target: Tensor) -> tuple[list[Tensor], Tensor]:
        """Step 1: A as [(B,K,h,w)], and g_c(f(x)) (B,)."""
        features, scores = self._first_pass(classifier, image)
        return features, wide(of_class(scores, target))

    def _first_pass(self, classifier: Classifier, image: Tensor) -> tuple[list[Tensor], Tensor]:
        features, scores = self.look(classifier, image)
        features = [A.contiguous() for A in features]  # read in every iteration; some networks lay channels last
        return [A.relu() for A in features] if self.relu else features, scores

    def make_optimizer(self, u: Iterable[nn.Parameter]) -> Optimizer:
        """The configured optimizer over the images' parameters.

        Raises:
            TypeError: `optimizer` did not return a torch optimizer, or returned one that needs a closure.
        """
        if self.optimizer is None:
            return Adam(u, lr=self.lr, betas=self.betas)
        made = self.optimizer(u)
        if not isinstance(made, Optimizer) or isinstance(made, torch.optim.LBFGS):
            raise TypeError(
                f"Expected `optimizer` to give a torch optimizer that steps without a closure, but got {type(made)}."
            )
        return made

    def _optimize(
        self, classifier: Classifier, problem: Problem, u: Sequence[nn.Parameter], optimizer: Stepper
    ) -> Explanation:
        """Steps 3 to 5."""
        ascent = self.ascent(classifier, problem, u, optimizer)
        trace = ascent.run(self.max_iter, self.watch)
        with torch.no_grad():
            return replace(self.explanation(ascent.weights(), problem), objective=trace)

    def ascent(self, classifier: Classifier, problem: Problem, u: Sequence[nn.Parameter], optimizer: Stepper) -> Ascent:
        """The inner fit loop of `problem`, with all of its settings."""
        dtype = pass_dtype(classifier.network_dtype, problem.image.device)
        return Ascent(
            partial(self.value, classifier, problem),
            u,
            optimizer,
            StopRule.of(self.tol, dtype),
            problem.logit.abs(),
            dtype,
            partial(backward_errors, classifier),
            self.schedule,
            classifier.fuses(problem.image),
        )

    def value(self, classifier: Classifier, problem: Problem, weights: Tensor) -> Tensor:
        """F_c (B,) of weights (B,K): one iteration without its step."""
        image, single = problem.image, len(problem.features) == 1
        if single and self.normalizer == "range" and classifier.fuses(image):
            raw = self.layer_maps(weights, problem.features)[0]
            s = kernels.stretched(raw, (image.shape[2], image.shape[3]), problem.silent)[0]
        else:
            s = self.map_of(weights, problem)[0]
        return self._objective(classifier, problem, s)

    def explanation(self, weights: Tensor, problem: Problem, made: Made | None = None) -> Explanation:
        """Step 5: the map of weights (B,K), and the reason where it says nothing; `made` is what `map_of` returns."""
        saliency, silent_layers, full = self.map_of(weights, problem) if made is None else made
        says_nothing = silent_layers | degenerate(full, self.normalizer)
        causes = [
            *seen(full, problem.image, problem.features),
            ("the layer's feature maps are constant", lambda: problem.silent),
            ("none of its values is positive, as `normalizer` max needs", lambda: ~degenerate(full)),
        ]
        return Explanation(saliency, problem.target, says_nothing, weights, reasons=why(says_nothing, causes))

    def map_of(self, weights: Tensor, problem: Problem) -> Made:
        """The normalized map (B,1,H,W), which is 0 where the layers say nothing (B,), and the unnormalized map."""
        layers = self.layer_maps(weights, problem.features)
        # Check before upsampling, which turns a constant into noise. Sums of `silent` features may be noise already.
        silent = problem.silent | torch.stack([degenerate(part) for part in layers]).all(0)
        full = self._upsampled(layers, problem.image)
        return normalize(full, self.normalizer, silent.view(-1, 1, 1, 1)), silent, full

    def raw_map(self, weights: Tensor, features: Sequence[Tensor], image: Tensor) -> Tensor:
        """``up(S(x; u))`` (B,1,H,W), before normalization."""
        return self._upsampled(self.layer_maps(weights, features), image)

    @staticmethod
    def layer_maps(weights: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Each layer's part of ``S(x; u)``, (B,1,h,w) before upsampling."""
        parts = torch.split(weights, [A.shape[1] for A in features], dim=1)
        return [combine(w, A) for w, A in zip(parts, features, strict=True)]

    @staticmethod
    def _upsampled(layers: Sequence[Tensor], image: Tensor) -> Tensor:
        maps = [upsample(part, (image.shape[2], image.shape[3])) for part in layers]
        return maps[0] if len(maps) == 1 else torch.stack(maps).sum(0)

    def _objective(self, classifier: Classifier, problem: Problem, s: Tensor) -> Tensor:
        image, reference = problem.image, problem.reference
        scores = classifier.masked(image, s, reference)
        inside, outside = wide(of_class(scores, problem.target)), None
        if problem.rivals is not None:
            return inside - self.gamma * wide(scores.gather(1, problem.rivals)).mean(1)
        if self.objective in ("io_mask", "io_diff"):
            outside = wide(of_class(classifier.masked(image, 1 - s, reference), problem.target))
        return objective_value(self.objective, problem.logit, inside, outside)


def nearest_classes(scores: Tensor, target: Tensor, count: int) -> Tensor:
    """The classes whose scores are nearest to the target's, and are not the target.

    Args:
        scores: (B,C), C at least 2.
        target: (B,).
        count: n; of fewer other classes, all are taken.

    Returns:
        (B,n) int64, the nearest first.

    >>> nearest_classes(torch.tensor([[5.0, 1.0, 4.0, 7.5]]), torch.tensor([0]), 2)
    tensor([[2, 3]])
    """
    distance = (scores - scores.gather(1, target.unsqueeze(1))).abs()
    distance = distance.scatter(1, target.unsqueeze(1), torch.inf)
    return distance.topk(min(count, scores.shape[1] - 1), dim=1, largest=False).indices


def _check_betas(betas: tuple[float, float], optimizer: OptimizerCallable | None) -> tuple[float, float]:
    """Adam's decay rates, each in [0,1).

    Raises:
        ValueError: they are not two numbers in [0,1), or belong to an optimizer of the user's own.
    """
    if optimizer is not None:
        raise ValueError(
            "Expected no `betas` with an `optimizer` of your own: they belong to the default optimizer. Bind them to "
            "yours."
        )
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"Expected `betas` to be two numbers of at least 0 and below 1, but got {betas!r}.")
    first, second = betas
    return float(first), float(second)


def _silent_features(features: Sequence[Tensor]) -> Tensor:
    """(B,): whether all feature maps of all layers are constant, and so is every combination of them."""
    return torch.stack([constant(A) for A in features]).all(0)
