"""Finer-CAM and Opti-CAM's contrast: what speaks for a class and not for those nearest to it in score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explainer_cases import correlation, leaves_no_trace, tiny_cnn
from scores_cases import Ending
from torch import Tensor

import optcam_pl
from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.explainers import (
    RISE,
    EigenCAM,
    Explainer,
    ExtremalPerturbation,
    FinerCAM,
    FullGrad,
    HiResCAM,
    LayerCAM,
    MeaningfulPerturbation,
    ScoreCAM,
    XGradCAM,
)
from optcam_pl.explainers.opticam import nearest_classes
from optcam_pl.network.scores import Binary, Regression


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inner", [GradCAM, HiResCAM, LayerCAM, XGradCAM])
def test_gradient_methods_equal_pytorch_grad_cams_finer_weighted_target(inner: type[Any]) -> None:
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    torch.manual_seed(0)
    classifier, x, target = tiny_cnn(), images(), torch.tensor([2, 0, 4])
    scores = classifier(x)
    near = nearest_classes(scores, target, 3)
    ours = FinerCAM(inner(), alpha=0.7)(classifier, x, target).saliency
    theirs = getattr(pytorch_grad_cam, inner.__name__)
    targets = [FinerWeightedTarget(int(c), others, 0.7) for c, others in zip(target, near.tolist(), strict=True)]
    normalized = (x - classifier.mean.view(-1, 1, 1)) / classifier.std.view(-1, 1, 1)
    layer = classifier.layer("4")
    with theirs(model=classifier.network.requires_grad_(True), target_layers=[layer]) as method:
        found = torch.from_numpy(method(input_tensor=normalized, targets=targets)).unsqueeze(1)
    speaks = found.flatten(1).amax(1) > 0
    assert speaks.any()
    assert correlation(ours, found)[speaks].min() > 0.999
    assert correlation(ours, inner()(classifier, x, target).saliency)[speaks].min() < 0.999  # another map than its own


def test_without_a_difference_it_is_the_method_itself_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    classifier = tiny_cnn()
    with leaves_no_trace(classifier):
        found = FinerCAM(GradCAM(), alpha=0.0)(classifier, images(), 1).saliency
    # sum_k p_k y_c / sum_k p_k = y_c
    torch.testing.assert_close(found, GradCAM()(classifier, images(), 1).saliency, atol=1e-5, rtol=1e-4)
    assert classifier.transform.value is None


def test_settings_title_and_baseline_are_the_methods_too() -> None:
    finer = FinerCAM(OptiCAM(max_iter=2), compare=2, selectivity=2.0)
    finer.baseline = "blur"
    assert finer.explainer.baseline == "blur"
    assert finer.title == "FinerOptiCAM"
    assert finer.settings()["explainer"]["max_iter"] == 2  # type: ignore[index]
    assert (finer.settings()["compare"], finer.settings()["selectivity"]) == (2, 2.0)
    result = optcam_pl.evaluate(tiny_cnn(), [finer, FinerCAM(EigenCAM()), FinerCAM(ScoreCAM())], images())
    assert list(result.rows) == ["FinerOptiCAM", "FinerEigenCAM", "FinerScoreCAM"]


def test_what_the_method_itself_cannot_have_is_refused() -> None:
    for own, told in (({"selectivity": 2.0}, "selectivity=2.0"), ({"augment": True}, "augment=True")):
        with pytest.raises(ValueError, match=f"of FinerCAM itself, .* but got {told} of its GradCAM"):
            FinerCAM(GradCAM(**own))  # type: ignore[arg-type]


def test_a_method_of_the_networks_own_modules_gets_them() -> None:
    torch.manual_seed(0)
    classifier, x = tiny_cnn(), images()
    folded = Classifier(classifier.network, input_size=16, target_layer="4", speed="folded")
    plain = Classifier(classifier.network, input_size=16, target_layer="4")
    maps = [FinerCAM(FullGrad(), alpha=0.5)(one, x, 1).saliency for one in (plain, folded)]
    torch.testing.assert_close(*maps, atol=1e-6, rtol=0)


def test_the_contrast_is_the_difference_to_the_nearest_classes() -> None:
    torch.manual_seed(0)
    classifier, x, target = tiny_cnn(), images(), torch.tensor([2, 0, 4])
    found = OptiCAM(objective="contrast", gamma=0.5, rivals=2, max_iter=3)(classifier, x, target)
    with torch.no_grad():
        y = classifier(x)
        masked = classifier(x * found.saliency)
    for i, c in enumerate(target.tolist()):
        near = sorted((abs(float(y[i, k] - y[i, c])), k) for k in range(5) if k != c)[:2]
        expected = masked[i, c] - 0.5 * (masked[i, near[0][1]] + masked[i, near[1][1]]) / 2
        assert found.objective is not None
        torch.testing.assert_close(found.objective[-1, i], expected, atol=1e-5, rtol=1e-5)
        assert found.objective[-1, i] > found.objective[0, i]


def test_gamma_is_a_setting_only_where_it_has_a_meaning() -> None:
    assert not {"gamma", "rivals"} & set(OptiCAM().settings())
    assert OptiCAM(objective="contrast").settings()["gamma"] == 0.6
    mask = OptiCAM(max_iter=3)(tiny := tiny_cnn(), images(), 1).saliency
    same = OptiCAM(objective="contrast", gamma=0.0, max_iter=3)(tiny, images(), 1).saliency
    torch.testing.assert_close(same, mask, atol=1e-5, rtol=0)


def test_no_contrast_without_other_classes() -> None:
    one = Classifier(Ending(1), input_size=16, scores=Regression())
    for explainer in (OptiCAM(objective="contrast", max_iter=1), FinerCAM(GradCAM())):
        with pytest.raises(ValueError, match="Expected scores of several classes"):
            explainer(one, images(), 0)
    both = Classifier(Ending(1), input_size=16, scores=Binary())
    assert OptiCAM(objective="contrast", max_iter=1)(both, images(), 0).saliency.shape == (3, 1, 16, 16)


@pytest.mark.parametrize(
    "method",
    [
        ExtremalPerturbation(max_iter=1, reward="contrastive"),
        OptiCAM(objective="contrast"),
        FinerCAM(GradCAM()),
    ],
    ids=lambda method: method.title,
)
def test_a_method_that_compares_classes_itself_is_refused(method: Explainer) -> None:
    """Their maps depended on the classes that the other images of the batch were explained for."""
    with pytest.raises(ValueError, match=f"one class's score for FinerCAM, but {method.title} with these settings"):
        FinerCAM(method)


def test_a_map_of_finer_cam_does_not_depend_on_the_classes_of_other_images() -> None:
    torch.manual_seed(0)
    classifier, x = tiny_cnn(), images()
    for method in (GradCAM(), OptiCAM(max_iter=3), ScoreCAM(), ExtremalPerturbation(max_iter=2)):
        finer = FinerCAM(method)
        together = finer(classifier, x, [0, 1, 2]).saliency[0]
        torch.testing.assert_close(together, finer(classifier, x, 0).saliency[0], atol=1e-5, rtol=0)
    method = OptiCAM(max_iter=1)
    finer, method.objective = FinerCAM(method), "contrast"  # a setting may change later
    with pytest.raises(ValueError, match="reads other classes' scores"):
        finer(classifier, x, 0)


@pytest.mark.parametrize("method", [RISE(num_masks=6, cells=3), MeaningfulPerturbation(max_iter=2, cell=4)])
def test_a_method_of_a_probability_needs_a_link_that_reads_no_other_class(method: Explainer) -> None:
    """Its map depended on the classes that the other images of the batch were explained for."""
    finer, x = FinerCAM(method), images()
    for link in ("softmax", lambda scores: scores.sigmoid()):
        classifier = Classifier(tiny_cnn().network, input_size=16, link=link)
        for refused in (lambda c: finer.check(c), lambda c: finer(c, x, 0)):
            with pytest.raises(
                ValueError, match=f"{method.title} with these settings reads its probability, which .*`link`"
            ):
                refused(classifier)
    classifier = Classifier(tiny_cnn().network, input_size=16, link="sigmoid")
    finer.check(classifier)
    together = finer(classifier, x, [0, 1, 2]).saliency[0]
    torch.testing.assert_close(together, finer(classifier, x, 0).saliency[0], atol=1e-5, rtol=0)
    with classifier.transform.to(lambda scores: _finer_by_hand(scores, 0)):
        torch.testing.assert_close(together, method(classifier, x, 0).saliency[0], atol=1e-5, rtol=0)
    assert not torch.equal(together, method(classifier, x, 0).saliency[0])


def _finer_by_hand(scores: Tensor, c: int) -> Tensor:
    """The score of one class against its three nearest, in every column."""
    rows = []
    for y in scores:
        near = sorted((k for k in range(len(y)) if k != c), key=lambda k: abs(float(y.detach()[k] - y.detach()[c])))[:3]
        p = torch.stack([y.softmax(0)[k] for k in near])
        rows.append(sum(p[i] * (y[c] - y[k]) for i, k in enumerate(near)) / p.sum())
    return torch.stack(rows)[:, None].expand_as(scores)
