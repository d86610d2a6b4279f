"""The sanity check: do maps change when the network forgets what it has learned?

Cascading parameter randomization (Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018; Zhang et al., CVIU
2024, figure A6): the network's stages lose their weights one after the other, from the head down. After each stage, the
network's maps are compared with those of the trained network. A method whose maps stay similar does not explain what
the network has learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from optcam_pl.checks import nearest
from optcam_pl.data import Batch, ImageDataModule
from optcam_pl.evaluate.block import Target, explained_classes, readable
from optcam_pl.explainers import Explainer, Explanation
from optcam_pl.figures.fonts import legible
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.copies import copied
from optcam_pl.network.speed import original_of
from optcam_pl.private import written_to
from optcam_pl.reports.grids import aligned, wrapped
from optcam_pl.reports.tables import words_of
from optcam_pl.runs.files import write_file
from optcam_pl.threads import process_wide

_SMALLEST = 6  # pixels of a side: SSIM mirrors 5 of them beyond the border
SIMILARITIES = ("rank_correlation", "rank_correlation_absolute", "ssim", "hog")
"""How similar two maps are; 1 means equal."""


def rank_correlation(ours: Tensor, theirs: Tensor, absolute: bool = False) -> Tensor:
    """Spearman's rank correlation of the pixels of two maps; ties share their mean rank.

    Args:
        ours: (B,1,H,W).
        theirs: (B,1,H,W).
        absolute: correlate the maps' absolute distances from their mean. A map in [0, 1] has no negative values, so an
            absolute value would change nothing; its counterpart is how far a pixel is above or below the mean.

    Returns:
        (B,) float64 in [-1, 1]; NaN where a map is constant.

    Example:
        >>> maps = torch.tensor([[[[0.0, 0.1, 0.9]]]])
        >>> found = [rank_correlation(maps, maps**2), rank_correlation(maps, 1 - maps)]
        >>> [round(value.item(), 6) for value in [*found, rank_correlation(maps, 1 - maps, absolute=True)]]
        [1.0, -1.0, 1.0]
    """
    ranks = []
    for maps in (ours, theirs):
        flat = maps.detach().double().flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)).abs() if absolute else flat
        ranks.append(torch.from_numpy(rankdata(flat.cpu().numpy(), axis=1)))
    centered = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    lengths = torch.linalg.vector_norm(centered[0], dim=1) * torch.linalg.vector_norm(centered[1], dim=1)
    correlation: Tensor = (centered[0] * centered[1]).sum(1) / lengths.where(lengths > 0, torch.nan)
    return correlation.to(ours.device)


def hog_similarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """Pearson correlation of the maps' histograms of oriented gradients (scikit-image, 16 x 16 pixels per cell).

    A map that is less than 32 pixels high or wide has cells of half as many pixels there: a single cell would say
    little, as the histogram's large values are cut off.

    Returns:
        (B,) float64; NaN where a map has no gradient.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage.feature import hog
    except ImportError as error:
        raise ImportError("HOG similarity needs scikit-image: pip install 'optcam_pl[demo]'.") from error
    found, cell = [], [min(16, max(1, side // 2)) for side in ours.shape[2:]]
    for pair in zip(ours, theirs, strict=True):
        a, b = (hog(m[0].detach().double().cpu().numpy(), pixels_per_cell=cell, cells_per_block=(1, 1)) for m in pair)
        flat = not (a.std() and b.std())
        found.append(float("nan") if flat else float(np.corrcoef(a, b)[0, 1]))
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def similarities(ours: Tensor, theirs: Tensor) -> dict[str, Tensor]:
    """Compute all `SIMILARITIES` between two sets of maps (B,1,H,W) in [0, 1]; each is (B,) float64 on the CPU.

    Raises:
        ValueError: the maps are less than 6 pixels high or wide.
    """
    _check_size(ours)
    pair = (ours.detach().float().cpu(), theirs.detach().float().cpu())
    ssim = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {
        "rank_correlation": rank_correlation(*pair),
        "rank_correlation_absolute": rank_correlation(*pair, absolute=True),
        "ssim": ssim.double(),
        "hog": hog_similarity(*pair),
    }


def _check_size(image: Tensor) -> None:
    """Raise a ValueError for images (B,C,H,W) whose maps are too small for SSIM."""
    height, width = image.shape[2:]
    if min(height, width) < _SMALLEST:
        raise ValueError(
            f"Expected images of at least {_SMALLEST} x {_SMALLEST} pixels for the sanity check, as the windows of SSIM"
            f" reach {_SMALLEST - 1} pixels to each side, but got {height} x {width}. Give the data a larger `size`."
        )


def stages(network: nn.Module, names: Sequence[str] | None = None) -> list[tuple[str, nn.Module]]:
    """The parts of a network that lose their weights one after the other, from the head down.

    Args:
        network: the network.
        names: dotted names, in this order. None means the children that have weights, in reverse order; if there are
            fewer than five of them, containers are replaced by their children, and so is a single child, because its
            parent only wraps it.

    Raises:
        ValueError: an unknown name, or a part without weights.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> [name for name, _ in stages(network)]
        ['2', '0']
    """
    if names is None:
        found = [(name, child) for name, child in network.named_children() if _has_weights(child)]
        while len(found) < 5:
            wrapped = len(found) == 1
            opened = [part for item in found for part in _opened(*item, wrapped=wrapped)]
            if opened == found or (len(opened) == len(found) and not wrapped):
                break
            found = opened
        return found[::-1]
    known = dict(network.named_modules())
    for name in names:
        if name not in known or not name:
            raise ValueError(f"Unknown stage {name!r}. The nearest are: {nearest(name, list(known))}.")
        if not _has_weights(known[name]):
            raise ValueError(f"Expected stages with weights, but {name!r} has none.")
    return [(name, known[name]) for name in names]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _opened(name: str, module: nn.Module, *, wrapped: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """The children of a container, or of a `wrapped` network, or the module itself."""
    inside = [(f"{name}.{key}", child) for key, child in module.named_children() if _has_weights(child)]
    if inside and (wrapped or isinstance(module, (nn.Sequential, nn.ModuleList))):
        yield from inside
    else:
        yield name, module


def randomize(module: nn.Module, seed: int) -> None:
    """Reinitialize the module's weights as before training; weights without a rule of their own are normal, sd 0.02.

    Those are also the weights that a layer's `reset_parameters` leaves alone: of a pruned layer, or one with the older
    weight norm, it resets only what is computed of them at each pass.
    """
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with process_wide(), torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        torch.manual_seed(seed)
        for part in module.modules():
            trained = {own: written_to(own) for own in part.parameters(recurse=False)}
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            for own in part.parameters(recurse=False):
                if trained.get(own) == written_to(own):
                    own.normal_(std=0.02)


def cascade(
    classifier: Classifier, names: Sequence[str] | None = None, seed: int = 0
) -> Iterator[tuple[str, Classifier]]:
    """Randomize a copy of a classifier, one more stage at a time; the classifier itself is not changed.

    Yields:
        (the stage that was randomized last, the copy). It is the same object each time, with one more stage randomized.
    """
    forgetting = copied(original_of(classifier))
    for number, (name, module) in enumerate(stages(forgetting.network, names)):
        randomize(module, seed + number)
        yield name, forgetting


@dataclass(frozen=True)
class SanityResult:
    """The result of the check: the mean similarity of the maps for each stage, starting with the trained network.

    Attributes:
        run: what was checked, in words.
        stages: the stages in the order in which they lost their weights.
        similarity: name -> one mean for each stage; None where no image has this similarity.
        undefined: name -> number of images without this similarity (a constant map), by stage.
        images: the number of images that were explained.
        explainer: the method.
        settings: what the maps depend on beside the method, by name.
        options: the method's own settings, by name.
    """

    run: str
    stages: tuple[str, ...]
    similarity: dict[str, tuple[float | None, ...]]
    undefined: dict[str, tuple[int, ...]]
    images: int
    explainer: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """A table with one row per stage, and below it the settings."""
        heads = [name.replace("rank_correlation_absolute", "|rank corr.|").replace("rank_correlation", "rank corr.")
                 for name in self.similarity]  # fmt: skip
        body = [
            [stage, *("-" if values[n] is None else f"{values[n]:.3f}" for values in self.similarity.values())]
            for n, stage in enumerate(self.stages)
        ]
        lines = [f"{self.run}: {self.images} images", *aligned(["up to stage", *heads], body, 1)]
        method = ", ".join(f"{key}={words_of(value)}" for key, value in self.options.items())
        words = [f"{key}: {words_of(value)}" for key, value in self.settings.items()]
        lines += wrapped([*words, *([f"{self.explainer}({method})"] if method else [])])
        left_out = sum(map(sum, self.undefined.values()))
        return "\n".join([*lines, *([f"left out of a mean, as a map was constant: {left_out}"] if left_out else [])])

    def figure(self) -> Figure:
        """A plot of the similarities against the stages."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, values in self.similarity.items():
            axes.plot(["trained", *self.stages], [1.0, *(np.nan if v is None else v for v in values)], "o-", label=name)
        axes.set(xlabel="randomized from the head down to", ylabel="similarity to the trained network's map")
        axes.tick_params(axis="x", rotation=45)
        axes.legend()
        return legible(figure)

    def save(self, folder: Path) -> None:
        """Write ``sanity.json`` and ``sanity.png``."""
        write_file(folder / "sanity.json", json.dumps(asdict(self), indent=1) + "\n")
        self.figure().savefig(folder / "sanity.png", dpi=100)

    @classmethod
    def load(cls, folder: Path) -> SanityResult:
        """Read ``sanity.json``."""
        stored = json.loads((folder / "sanity.json").read_bytes())
        lists = {
            key: {name: tuple(values) for name, values in stored[key].items()} for key in ("similarity", "undefined")
        }
        return cls(**{**stored, **lists, "stages": tuple(stored["stages"])})


def figure_of_several(results: Mapping[str, SanityResult]) -> Figure:
    """A plot for each similarity, with the methods as curves against the stages.

    Args:
        results: method -> its result.
    """
    figure = Figure(figsize=(4 * len(SIMILARITIES), 3.6), layout="constrained")
    panels = figure.subplots(1, len(SIMILARITIES), sharey=True)
    for panel, name in zip(panels, SIMILARITIES, strict=True):
        for method, result in results.items():
            values = [1.0, *(np.nan if v is None else v for v in result.similarity[name])]
            panel.plot(["trained", *result.stages], values, "o-", label=method)
        panel.set(title=name.replace("_", " "), xlabel="randomized from the head down to")
        panel.tick_params(axis="x", rotation=45)
    panels[0].set_ylabel("similarity to the trained network's map")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center")
    return legible(figure)


def summary(
    run: str,
    found: dict[str, list[dict[str, Tensor]]],
    explainer: str = "",
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> SanityResult:
    """Combine the similarities of all blocks.

    Args:
        run: what was checked.
        found: stage -> for each block, similarity -> (n,).
        explainer: the method.
        settings: what the maps depend on beside the method, as JSON values by name.
        options: the method's own settings, as JSON values by name.
    """
    similarity: dict[str, list[Any]] = {name: [] for name in SIMILARITIES}
    undefined: dict[str, list[int]] = {name: [] for name in SIMILARITIES}
    images = 0
    for blocks in found.values():
        for name in SIMILARITIES:
            values = torch.cat([block[name] for block in blocks])
            defined = values[~values.isnan()]
            images = len(values)
            similarity[name].append(float(defined.mean()) if len(defined) else None)
            undefined[name].append(len(values) - len(defined))
    return SanityResult(
        run,
        tuple(found),
        {name: tuple(values) for name, values in similarity.items()},
        {name: tuple(counts) for name, counts in undefined.items()},
        images,
        explainer,
        dict(settings or {}),
        dict(options or {}),
    )


def check(
    classifier: Classifier,
    explainer: Explainer,
    data: ImageDataModule,
    target: Target | int,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, list[dict[str, Tensor]]]:
    """Compute the similarities of every image's maps, by stage and block, in one process.

    Args:
        classifier: the trained network, on the device to use.
        explainer: the method that is checked.
        data: the images.
        target: which class of an image is explained, according to the trained network's output; see
            `explained_classes`. The same class is explained after the network's weights have been randomized.
        names: the names of the stages; see `stages`.
        seed: the seed of the random weights.

    Raises:
        ValueError: a stage is unknown or without weights, the images are too small, or none can be read.
    """
    classifier = original_of(classifier)  # weights that are folded into others cannot be drawn anew
    data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction, classifier.channels)
    data.setup("test")
    blocks: list[tuple[Batch, Tensor, Tensor]] = []
    for block in data.test_dataloader():
        batch = readable(block)
        if batch["id"]:
            _check_size(batch["image"])
            image = batch["image"] = batch["image"].to(classifier.mean.device)
            with torch.no_grad(), classifier.references(batch) as own:
                classes = explained_classes(target, batch, classifier(image), own=own is not None).to(image.device)
                blocks.append((batch, classes, explainer(classifier, image, classes).saliency))
    if not blocks:
        raise ValueError(f"Expected images to check, but none of the {len(data.table)} of {data.name} can be read.")
    found: dict[str, list[dict[str, Tensor]]] = {}
    for name, forgetting in cascade(classifier, names, seed):
        found[name] = [similarities(maps, _map(forgetting, explainer, batch, c)) for batch, c, maps in blocks]
    return found


def _map(classifier: Classifier, explainer: Explainer, batch: Batch, classes: Tensor) -> Tensor:
    """(B,1,H,W), with the images' own references where they have some."""
    with classifier.references(batch):
        explanation: Explanation = explainer(classifier, batch["image"], classes)
        return explanation.saliency
