"""Methods that find the important pixels by masking the image itself, without using any layer."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from itertools import product
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from optcam_pl.checks import check_choice, check_number, check_positive
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.chunk_size import ChunkSize, check_chunk_size, images_in_pass
from optcam_pl.explainers.steps import tell
from optcam_pl.maps import Baseline, check_baseline, mask_image, of_class, separable_blur, uniform, upsample
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.errors import backward_errors, check_differentiable
from optcam_pl.network.link import probabilities_of

Game: TypeAlias = Literal["preserve", "delete", "dual"]
Reward: TypeAlias = Literal["logit", "contrastive"]


class RISE(Explainer):
    """RISE (Petsiuk, Das, Saenko, BMVC 2018): ``S = 1/(N p1) sum_i p_c(x . M_i) M_i``.

    p_c is the class's probability. A mask M_i is a coarse grid of s x s cells, each 1 with probability p1. It is
    upsampled bilinearly to (s+1) cells per side and cropped with a random shift of up to one cell. The masks are the
    same for every image. Mask i depends only on the seed and on i, and is made when it is needed: the N masks are never
    in memory together. The authors' program masks the normalized image (here: baseline "mean").

    Args:
        num_masks: N.
        cells: s, at least 2.
        probability: p1, in (0,1).
        seed: of the masks.
        chunk_size: number of masked images in one pass, or "auto" (see `chunk_size`); halved automatically if a GPU
            runs out of memory.
        baseline: see `Explainer`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        *,
        num_masks: int = 4000,
        cells: int = 7,
        probability: float = 0.5,
        seed: int = 0,
        chunk_size: ChunkSize = 64,
        baseline: Baseline = "black",
        **shared: Any,
    ) -> None:
        super().__init__(None, check_baseline(baseline), **shared)
        self.num_masks, self.cells = check_positive("num_masks", num_masks), check_positive("cells", cells)
        if cells < 2:
            raise ValueError(f"Expected `cells` to be at least 2, but got {cells}.")
        if not 0 < probability < 1:
            raise ValueError(f"Expected `probability` to be between 0 and 1, but got {probability!r}.")
        self.probability, self.seed = probability, seed
        self.chunk_size = check_chunk_size(chunk_size)

    @property
    def compares_classes(self) -> bool:
        """See `Explainer`: it weighs masks by a probability."""
        return True

    @property
    def reads_probability(self) -> bool:
        """See `Explainer`."""
        return True

    def check(self, classifier: Classifier) -> None:
        """Any network that is a function will do."""
        self.check_network(classifier)

    def draw(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The grids (N,s,s) of 0 and 1, and the shifts (N,2) in pixels, down and to the right."""
        s = self.cells
        drawn = uniform([self.num_masks, s * s + 2], torch.Generator().manual_seed(self.seed))
        cell = torch.tensor([math.ceil(side / s) for side in size], device="cpu")
        return (drawn[:, :-2] < self.probability).float().view(-1, s, s), (drawn[:, -2:] * cell).long()

    @torch.no_grad()
    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """One forward pass per mask, many masks at once."""
        size, reference = (image.shape[2], image.shape[3]), self.reference(classifier, image)
        classifier.check_outputs(size)
        grids, shifts = (drawn.to(image.device) for drawn in self.draw(size))
        total = torch.zeros_like(image[:, 0])
        weights = [_interpolation(_every_shift(side, self.cells, image.device), self.cells, side) for side in size]

        def add(part: slice) -> None:
            rows, columns = (weights[axis][shifts[part, axis]] for axis in (0, 1))
            masks = _interpolated(grids[part], rows, columns).to(image)
            each = masks.squeeze(1).expand(len(image), len(masks), *size)
            scores = classifier.masked(image, each, reference)
            p = of_class(probabilities_of(scores, classifier.link), target.repeat_interleave(len(masks)))
            total.add_((p.view(len(image), -1).to(image) @ masks.flatten(1)).view_as(total))

        Chunks(images_in_pass(self.chunk_size, classifier, image), len(image)).each(add, len(grids))
        return self.finish(total.unsqueeze(1) / (len(grids) * self.probability), image, target)


def rise_masks(grids: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """RISE's masks from their coarse grids.

    Args:
        grids: (n,s,s) 0 or 1.
        shifts: (n,2) in pixels, down and to the right, from 0 to the size of a cell.
        size: (H,W).

    Returns:
        (n,1,H,W) in [0,1].

    >>> rise_masks(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[0, 1]]), (2, 4))
    tensor([[[[1.0000, 0.6667, 0.3333, 0.0000],
              [1.0000, 0.6667, 0.3333, 0.0000]]]])
    """
    rows, columns = (_interpolation(shifts[:, axis], grids.shape[1], size[axis]) for axis in (0, 1))
    return _interpolated(grids, rows, columns)


def _interpolated(grids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n,1,H,W) float32 from grids (n,s,s) and the weights of their cells for each row and column of the image."""
    return torch.bmm(torch.bmm(rows, grids.double()), columns.mT).float().unsqueeze(1)


def _every_shift(side: int, cells: int, device: torch.device) -> Tensor:
    """All shifts that are drawn, from 0 to the size of a cell in pixels."""
    return torch.arange(math.ceil(side / cells) + 1, device=device)


def _interpolation(shift: Tensor, cells: int, side: int) -> Tensor:
    """(n,side,cells): the weight of each cell for each pixel of one axis, mirrored at the ends of the grid."""
    stretch = (cells + 1) * math.ceil(side / cells) / cells
    at = (shift.double().unsqueeze(1) + torch.arange(side, device=shift.device) + 0.5) / stretch - 0.5
    near = (1 - (at.unsqueeze(2) - torch.arange(-1, cells + 1, device=shift.device)).abs()).clamp(min=0)
    inner = near[:, :, 1:-1].clone()
    inner[:, :, 1] += near[:, :, 0]
    inner[:, :, -2] += near[:, :, -1]
    return inner


class MaskOptimizer(Explainer):
    """Methods that optimize a mask of the image itself, separately for each image. A subclass provides `optimize`.

    Where the mask is 0, the image is blurred by a Gaussian; the network's mean color lies beyond its border. The blur
    is part of these methods: the baseline of the metrics does not change.

    Args:
        chunk_size: masked images in one pass; halved by itself where a GPU runs out of memory.
    """

    def __init__(self, chunk_size: int, **shared: Any) -> None:
        super().__init__(None, "black", **shared)
        self.chunk_size = check_positive("chunk_size", chunk_size)

    @abstractmethod
    def optimize(self, classifier: Classifier, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The raw map (B,1,h,w), and the maximized objective (T+1,B)."""

    def check(self, classifier: Classifier) -> None:
        """Any network that is a function will do."""
        self.check_network(classifier)

    def passes(self) -> int:
        """Number of masked images per image in one pass."""
        return 1

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Run the optimization for as many images at once as fit into a chunk."""
        done: list[tuple[Tensor, Tensor]] = []

        def some(part: slice) -> None:
            done.append(self.optimize(classifier, image[part], target[part]))

        Chunks(self.chunk_size, self.passes()).each(some, len(image))
        explanation = self.finish(torch.cat([raw for raw, _ in done]), image, target)
        objective = torch.cat([values for _, values in done], dim=1)
        return replace(explanation, objective=objective)


def gaussian_blur(image: Tensor, sigma: float, border: Tensor) -> Tensor:
    """Gaussian blur with one color beyond the border.

    Args:
        image: (B,3,H,W).
        sigma: in pixels; the kernel ends at 4 sigma. 0 returns the image.
        border: (3,) the color.

    Returns:
        (B,3,H,W).
    """
    if sigma == 0:
        return image
    radius = math.ceil(4 * sigma)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, device=image.device).to(image).square() / (2 * sigma**2))
    return separable_blur(image, kernel / kernel.sum(), border)


class MeaningfulPerturbation(MaskOptimizer):
    """Meaningful perturbation (Fong and Vedaldi, ICCV 2017): the smallest smooth mask that removes the class.

    ``m* = argmin_m l1 |1 - m|_1 + l2 sum |grad m|^3 + p_c(x . m + b . (1 - m))``, where b is the image blurred with a
    standard deviation of 10 pixels, and m lies on a coarse grid. In each step the image moves by a few random pixels,
    in the same way for all images. The map is 1 - m*, the part that had to be removed. The optimizer is Adam; m is kept
    in [0,1].

    Differences from the paper: m starts at 0.5 everywhere, not at the smallest central disc that removes the class, and
    it is upsampled bilinearly, not by a Gaussian.

    Args:
        max_iter: T.
        lr: Adam's learning rate.
        cell: side of the mask's cells in pixels (the paper has a 28 x 28 mask on 224 pixels).
        l1: weight of the removed area, counted in cells.
        l2: weight of the roughness.
        jitter: the image moves by 0 to this many pixels down and right.
        seed: of the movements.
        chunk_size: see `MaskOptimizer`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        *,
        max_iter: int = 300,
        lr: float = 0.1,
        cell: int = 8,
        l1: float = 1e-4,
        l2: float = 1e-2,
        jitter: int = 4,
        seed: int = 0,
        chunk_size: int = 64,
        **shared: Any,
    ) -> None:
        super().__init__(chunk_size, **shared)
        self.max_iter, self.cell = check_positive("max_iter", max_iter), check_positive("cell", cell)
        self.lr = check_number("lr", lr, positive=True)
        self.l1, self.l2 = check_number("l1", l1), check_number("l2", l2)
        self.jitter, self.seed = int(check_number("jitter", jitter)), seed

    @property
    def compares_classes(self) -> bool:
        """See `Explainer`: it lowers a probability."""
        return True

    @property
    def reads_probability(self) -> bool:
        """See `Explainer`."""
        return True

    def optimize(self, classifier: Classifier, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        size, blurred = (image.shape[2], image.shape[3]), gaussian_blur(image, 10.0, classifier.mean)
        m = image.new_full((len(image), 1, *(math.ceil(side / self.cell) for side in size)), 0.5).requires_grad_()
        optimizer, generator = torch.optim.Adam([m], lr=self.lr), torch.Generator().manual_seed(self.seed)
        trace: list[Tensor] = []
        for t in range(self.max_iter + 1):
            move = torch.randint(self.jitter + 1, (2,), generator=generator, device="cpu").tolist()
            moved, under = (torch.roll(pixels, move, (2, 3)) for pixels in (image, blurred))
            p = of_class(classifier.probabilities(mask_image(moved, upsample(m, size), under)), target)
            if t == 0:
                check_differentiable(p, m, classifier)
            loss = p.to(m.dtype) + self._regularizer(m)
            trace.append(-loss.detach())
            tell("iteration", t, self.max_iter, trace[-1])
            if t < self.max_iter:
                with backward_errors(classifier):
                    (m.grad,) = torch.autograd.grad(loss.sum(), [m])
                optimizer.step()
                m.detach().clamp_(0, 1)
        return 1 - m.detach(), torch.stack(trace)

    def _regularizer(self, m: Tensor) -> Tensor:
        """(B,1,h,w) -> (B,): removed area and roughness."""
        rough = sum(m.diff(dim=axis).abs().pow(3).flatten(1).sum(1) for axis in (2, 3))
        return self.l1 * (1 - m).abs().flatten(1).sum(1) + self.l2 * rough


class ExtremalPerturbation(MaskOptimizer):
    """Extremal perturbation (Fong, Patrick, Vedaldi, ICCV 2019): the best mask of a given area.

    ``m_a = argmax_m y_c(m (x) x) - lambda mean(vecsort(m) - r_a)^2``, for each area a; r_a is a share 1 - a of zeros,
    followed by ones, which pushes the sorted mask to the values 0 and 1 and to the area a. The map is the mean of m_a
    over the areas.

    1. m, on a coarse grid with one value every `step` pixels, is widened by a smooth maximum: ``m(u) = smax_v
       k(|u-v|/sigma) m_v`` with ``smax f = sum f e^(f/T) / sum e^(f/T)``, T = 1/20, over the nearest nodes; ``k(z) =
       exp(-2 max(0, z - 1/2)^2)``.
    2. The perturbation m (x) x reads each pixel from a pyramid of 8 images and interpolates between them. The pyramid
       ranges from an image blurred by 20 pixels (m = 0) to the image itself (m = 1).
    3. SGD goes up the gradient (learning rate 0.01, momentum and dampening 0.9); m is kept in [0,1]. lambda starts at
       300 and grows by 0.35 % per step. Every other step uses the mirrored image.

    The authors' program extends the mask beyond the image by sigma, and a is a share of that larger frame: in the image
    itself the mask is larger than a. `margin` None does the same; with 0, a is a share of the image. The result is not
    unique: positions with equal mask values have no order, and the first steps decide on one. Here the sort is stable,
    on every device. (The contrastive reward of that program mixes several areas; here each area has its own.)

    Args:
        areas: one or several areas a, in (0,1), optimized at once.
        max_iter: T.
        step: pixels between the mask's nodes.
        sigma: reach of the smooth maximum, in pixels.
        game: "preserve" keeps what the mask shows; "delete" removes it, to make y_c small; "dual" does both.
        reward: "logit" y_c, or "contrastive" y_c minus the largest other logit.
        margin: in pixels; None is sigma. See above.
        smooth: standard deviation of a final Gaussian blur of the map, as a share of the image's shorter side (0.09 in
            the paper's pointing game).
        chunk_size: see `MaskOptimizer`; images times areas.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        areas: float | list[float] = 0.1,
        *,
        max_iter: int = 800,
        step: int = 7,
        sigma: float = 21.0,
        game: Game = "preserve",
        reward: Reward = "logit",
        margin: int | None = None,
        smooth: float = 0.0,
        chunk_size: int = 64,
        **shared: Any,
    ) -> None:
        super().__init__(chunk_size, **shared)
        self.areas = [areas] if isinstance(areas, (int, float)) else list(areas)
        if not self.areas or not all(0 < area < 1 for area in self.areas):
            raise ValueError(f"Expected `areas` to be shares between 0 and 1, but got {areas!r}.")
        self.game: Game = check_choice("game", game, Game)
        self.reward: Reward = check_choice("reward", reward, Reward)
        self.max_iter, self.step = check_positive("max_iter", max_iter), check_positive("step", step)
        self.sigma, self.smooth = check_number("sigma", sigma, positive=True), check_number("smooth", smooth)
        self.margin = None if margin is None else int(check_number("margin", margin))

    @property
    def compares_classes(self) -> bool:
        """See `Explainer`: the contrastive reward does."""
        return self.reward == "contrastive"

    def passes(self) -> int:
        """One per area; two per area if the inverted masks are used too."""
        return len(self.areas) * (2 if self.game == "dual" else 1)

    def optimize(self, classifier: Classifier, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        masks, rewards, penalties = self.masks(classifier, image, target)
        raw = masks.mean(1, keepdim=True)
        if self.smooth:
            sigma = self.smooth * min(image.shape[2:])
            raw = gaussian_blur(raw, sigma, raw.new_zeros(1))
        return raw, (rewards - penalties).sum(2)

    def masks(self, classifier: Classifier, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The masks (B,a,H,W) of each area, and the rewards and lambda times area terms of all steps (T+1,B,a)."""
        size = (image.shape[2], image.shape[3])
        widen = SmoothMaximum(size, self.step, self.sigma, self.margin)
        m = image.new_ones(len(image) * len(self.areas), *widen.nodes).requires_grad_()
        goal = torch.stack([_sorted_goal(area, widen.frame) for area in self.areas]).to(image).repeat(len(image), 1)
        pyramid = _pyramid(image, classifier.mean).repeat_interleave(len(self.areas), 0)
        c = target.repeat_interleave(len(self.areas))
        optimizer = torch.optim.SGD([m], lr=0.01, momentum=0.9, dampening=0.9)
        trace: list[tuple[Tensor, Tensor]] = []
        for t in range(self.max_iter + 1):
            with torch.set_grad_enabled(t < self.max_iter):
                full = widen(m)
                reward = self._reward(classifier, pyramid, widen.crop(full), c, mirrored=t % 2 == 0)
                distance = full.flatten(1).sort(dim=1, stable=True).values - goal
                penalty = 300 * 1.0035**t * distance.square().mean(1)
            trace.append((reward.detach(), penalty.detach()))
            tell("iteration", t, self.max_iter, trace[-1][0] - trace[-1][1])
            if t < self.max_iter:
                if t == 0:
                    check_differentiable(reward, full, classifier)
                with backward_errors(classifier):
                    (m.grad,) = torch.autograd.grad((penalty - reward).sum(), [m])
                optimizer.step()
                m.detach().clamp_(0, 1)
        shape = (len(image), len(self.areas))
        rewards = torch.stack([reward for reward, _ in trace]).view(-1, *shape)
        penalties = torch.stack([penalty for _, penalty in trace]).view(-1, *shape)
        return widen.crop(full).reshape(*shape, *size), rewards, penalties

    def _reward(self, classifier: Classifier, pyramid: Tensor, masks: Tensor, c: Tensor, *, mirrored: bool) -> Tensor:
        """(n,H,W) -> (n,): the reward for the classes c (n,), with the images under the masks."""
        sides = {"preserve": [masks], "delete": [1 - masks], "dual": [masks, 1 - masks]}[self.game]
        pixels = torch.cat([_blurred(pyramid, side) for side in sides])
        logits: Tensor = classifier(pixels.flip(3) if mirrored else pixels).to(masks.dtype)
        classes = c.repeat(len(sides))
        values = of_class(logits, classes)
        if self.reward == "contrastive":
            values = values - logits.scatter(1, classes.unsqueeze(1), -torch.inf).amax(1)
        if self.game == "dual":
            kept, removed = values.chunk(2)
            return kept - removed
        return values if self.game == "preserve" else -values


def _pyramid(image: Tensor, border: Tensor, levels: int = 8, most: float = 20.0) -> Tensor:
    """(B,levels,3,H,W): the image, from blurred by `most` pixels to not blurred at all."""
    sigmas = [(1 - level / (levels - 1)) * most for level in range(levels)]
    return torch.stack([gaussian_blur(image, sigma, border) for sigma in sigmas], dim=1)


def _blurred(pyramid: Tensor, masks: Tensor) -> Tensor:
    """Images (n,3,H,W) whose sharpness at each position is given by the masks (n,H,W)."""
    top, channels = pyramid.shape[1] - 1, pyramid.shape[2]
    at = (masks * top).unsqueeze(1)
    level = at.detach().floor().clamp(0, top - 1)
    # A mask that is not finite has no level; the result for its image is not finite in any case.
    index = level.nan_to_num().long().unsqueeze(2).expand(-1, -1, channels, -1, -1)
    lower, upper = pyramid.gather(1, index).squeeze(1), pyramid.gather(1, index + 1).squeeze(1)
    return lower + (upper - lower) * (at - level)


class _SmoothMaximum(torch.autograd.Function):
    """Smooth maximum of the nodes around each pixel. It does not keep its intermediates, 100 times the result's size.

    With g_v = k_v m_v / T it is ``S = T sum g e^g / sum e^g``, and ``dS/dg_v = T e^g_v (1 + g_v - S/T) / sum e^g``. The
    loop runs over the positions of the nodes relative to the pixel; pixels are ordered by cell.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, kernel: Tensor, cells: tuple[int, int], coldness: float) -> Tensor:
        """(n,>=h',>=w') nodes, (o,o,s,s) k, (h',w') -> (n,h',w',s,s)."""
        scaled = coldness * kernel
        below = padded.new_zeros(len(padded) * cells[0] * cells[1], kernel[0, 0].numel())
        above, g, power = torch.zeros_like(below), torch.empty_like(below), torch.empty_like(below)
        for i, j in product(range(len(kernel)), repeat=2):
            near = padded[:, i : i + cells[0], j : j + cells[1]].reshape(-1, 1)
            torch.mul(near, scaled[i, j].view(1, -1), out=g)
            torch.exp(g, out=power)
            below += power
            above.addcmul_(g, power)
        result = above.div_(below)
        ctx.save_for_backward(padded, scaled, result, below)
        ctx.cells, ctx.coldness = cells, coldness
        return (result / coldness).view(len(padded), *cells, *kernel.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """(n,h',w',s,s) -> the shape of `padded`."""
        padded, scaled, result, below = ctx.saved_tensors
        cells, sums = ctx.cells, torch.zeros_like(padded)
        slope = grad.reshape(below.shape) / (ctx.coldness * below)
        level = slope * (1 - result)
        g, power = torch.empty_like(below), torch.empty_like(below)
        for i, j in product(range(len(scaled)), repeat=2):
            near = padded[:, i : i + cells[0], j : j + cells[1]].reshape(-1, 1)
            weights = scaled[i, j].view(1, -1)
            torch.mul(near, weights, out=g)
            torch.exp(g, out=power)
            g.mul_(slope).add_(level).mul_(power)
            sums[:, i : i + cells[0], j : j + cells[1]] += (g @ weights.T).view(-1, *cells)
        return sums, None, None, None


class SmoothMaximum:
    """Step 1 of `ExtremalPerturbation`: values at nodes `step` pixels apart, widened to a smooth mask of pixels.

    The mask is defined on a frame that extends `margin` pixels before the first node, which lies on the image's first
    pixel, and after the last node.

    Args:
        size: (H,W) of the image.
        step: pixels between nodes.
        sigma: in pixels.
        margin: in pixels; None is sigma.

    Attributes:
        nodes: (h,w). frame: (H',W'), at least the image.
    """

    coldness = 20.0

    def __init__(self, size: tuple[int, int], step: int, sigma: float, margin: int | None = None) -> None:
        self.size, self.margin = size, int(sigma) if margin is None else margin
        self.nodes = (math.ceil(size[0] / step), math.ceil(size[1] / step))
        # A cell holds the pixels that share their nearest node; of two equally near nodes the earlier one counts.
        before, reach = (step - 1) // 2, 1 + math.ceil(sigma / step)
        first, self._skip = divmod(before - self.margin, step)
        ends = [max(side, (count - 1) * step + 1 + self.margin) for side, count in zip(size, self.nodes, strict=True)]
        self.frame = (ends[0] + self.margin, ends[1] + self.margin)
        self._cells = ((ends[0] - 1 + before) // step - first + 1, (ends[1] - 1 + before) // step - first + 1)
        # Pad the nodes with as many zeros as are ever read.
        beyond = (first + cells - 1 + reach - (count - 1) for cells, count in zip(self._cells, self.nodes, strict=True))
        self._pad = max(reach - first, *beyond)
        self._start = first - reach + self._pad
        pixels, nodes = (torch.arange(*ends, device="cpu") for ends in ((step,), (-reach, reach + 1)))
        away = (pixels - before - step * nodes.unsqueeze(1)).float() / sigma
        distance = torch.hypot(away[:, None, :, None], away[None, :, None, :])  # (offsets, offsets, step, step)
        self._kernel = torch.exp(-2 * (distance - 0.5).clamp(min=0).square())

    def __call__(self, m: Tensor) -> Tensor:
        """(n,h,w) in [0,1] -> (n,H',W')."""
        padded = F.pad(m, (self._pad,) * 4)[:, self._start :, self._start :]
        cells: Tensor = _SmoothMaximum.apply(padded, self._kernel.to(m), self._cells, self.coldness)
        pixels = cells.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        return pixels[:, self._skip : self._skip + self.frame[0], self._skip : self._skip + self.frame[1]]

    def crop(self, full: Tensor) -> Tensor:
        """(n,H',W') -> (n,H,W), the part within the image."""
        top = self.margin
        return full[:, top : top + self.size[0], top : top + self.size[1]]


def _sorted_goal(area: float, frame: tuple[int, int]) -> Tensor:
    """(H'W',) the target of the sorted mask: r_a."""
    count = frame[0] * frame[1]
    goal = torch.ones(count, dtype=torch.float32, device="cpu")
    goal[: int(count * (1 - area))] = 0
    return goal
