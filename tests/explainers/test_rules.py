"""Methods with rules for modules: right where the rules hold, else one sentence; what counts is what is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from explainer_cases import MEAN, STD, leaves_no_trace
from torch import Tensor, nn

from optcam_pl.explainers import CaptumExplainer, FullGrad
from optcam_pl.network.classifier import Classifier

pytest.importorskip("captum.attr")
DEEP = ["DeepLift", "DeepLiftShap"]
GUIDED = ["GuidedBackprop", "Deconvolution"]


class Net(nn.Module):
    """Convolution, `first`, convolution, `second`, average, linear; the two may be modules or anything else."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.first, self.second = first, second or nn.ReLU()
        self.average, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.average(self.second(self.b(self.first(self.a(x))))).flatten(1))


def classifier_of(network: nn.Module) -> Classifier:
    return Classifier(network.eval(), target_layer="b", mean=MEAN, std=STD, input_size=16)


def twice() -> Net:
    shared = nn.ReLU()
    return Net(shared, shared)


def raw(method: str, classifier: Classifier, image: Tensor, target: Tensor, **settings: object) -> Tensor:
    return CaptumExplainer(method, sign="all", **settings).raw_map(classifier, image, target)


# Refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Net(F.relu), "'relu' in its forward"),
        (lambda: Net(F.relu_), "'relu' in its forward"),
        (lambda: Net(lambda x: x.relu()), "'relu' in its forward"),
        (lambda: Net(lambda x: x.clamp(min=0)), "'clamp' in its forward"),
        (lambda: Net(F.gelu), "'gelu' in its forward"),
        (lambda: Net(nn.SiLU()), r"'silu' in first \(SiLU\)"),
        (lambda: Net(nn.Hardswish()), r"'hardswish' in first \(Hardswish\)"),
        (lambda: Net(nn.ReLU6()), r"'hardtanh' in first \(ReLU6\)"),
        (lambda: Net(nn.ReLU(), lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), "in its forward"),
        (lambda: Net(nn.LayerNorm([6, 16, 16])), r"'layer_norm' in first \(LayerNorm\)"),
    ],
)
@pytest.mark.parametrize("method", DEEP)
def test_deep_lift_names_what_it_has_no_rule_for(method, make, named):
    classifier = classifier_of(make())
    with leaves_no_trace(classifier), pytest.raises(ValueError, match=named):
        CaptumExplainer(method)(classifier, torch.rand(2, 3, 16, 16), 1)
    with pytest.raises(ValueError, match=named):
        CaptumExplainer(method).check(classifier)


@pytest.mark.parametrize("first", [F.relu, F.relu_, torch.relu, lambda x: x.clamp(min=0), lambda x: x.clamp_min(0)])
@pytest.mark.parametrize("method", [*GUIDED, "GuidedGradCam"])
def test_guided_backpropagation_names_a_relu_that_is_no_module(method, first):
    classifier = classifier_of(Net(first))
    with leaves_no_trace(classifier), pytest.raises(ValueError, match="to be nn.ReLU modules .* in its forward"):
        CaptumExplainer(method)(classifier, torch.rand(2, 3, 16, 16), 1)
    with pytest.raises(ValueError, match=r"to be nn\.ReLU modules"):
        CaptumExplainer(method).check(classifier)


@pytest.mark.parametrize("method", GUIDED)
def test_a_relu_module_that_is_never_called_is_none(method):
    network = Net(nn.SiLU(), nn.SiLU())
    network.unused = nn.ReLU()
    with pytest.raises(ValueError, match="which is the method Saliency"):
        CaptumExplainer(method)(classifier_of(network), torch.rand(1, 3, 16, 16), 1)


def test_other_activations_beside_relus_are_told_once():
    explainer, classifier = CaptumExplainer("GuidedBackprop"), classifier_of(Net(nn.ReLU(), nn.Hardswish()))
    with pytest.warns(UserWarning, match=r"other activations too.*'hardswish' in second \(Hardswish\)"):
        explainer(classifier, torch.rand(1, 3, 16, 16), 1)
    explainer(classifier, torch.rand(1, 3, 16, 16), 1)


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: Net(nn.SiLU()), TypeError, "'first', a SiLU"),
        (lambda: Net(F.gelu), ValueError, "'gelu' in its forward"),
        (lambda: Net(lambda x: x + x.relu()), ValueError, "'add' in its forward"),
        (lambda: Net(lambda x: F.max_pool2d(x, 2) * 2), ValueError, "in its forward"),
    ],
)
def test_lrp_names_what_it_has_no_rule_for(make, error, named):
    classifier = classifier_of(make())
    with pytest.raises(error, match=named):
        CaptumExplainer("LRP")(classifier, torch.rand(2, 3, 16, 16), 1)
    with pytest.raises(error, match=named):
        CaptumExplainer("LRP").check(classifier)


def test_a_module_that_is_called_twice():
    classifier, image = classifier_of(twice()), torch.rand(2, 3, 16, 16)
    for method in (*DEEP, "LayerDeepLift"):
        with (
            leaves_no_trace(classifier),
            pytest.raises(ValueError, match=r"called once .*calls 'first' \(ReLU\) again"),
        ):
            CaptumExplainer(method, layer="a")(classifier, image, 1) if "Layer" in method else CaptumExplainer(method)(
                classifier, image, 1
            )
    network = Net(nn.ReLU())
    network.second = nn.Sequential(network.b, nn.ReLU())
    with pytest.raises(ValueError, match=r"called once .*'b' and 'second\.0' of Net are one Conv2d"):
        CaptumExplainer("LRP")(classifier_of(network), image, 1)
    network = Net(nn.ReLU(), lambda x: network.b(x))
    with pytest.raises(ValueError, match=r"called once .*calls 'b' \(Conv2d\) again"):
        CaptumExplainer("LRP")(classifier_of(network), image, 1)


def test_what_is_called_before_the_layer_does_not_count():
    classifier, image = classifier_of(Net(F.gelu)), torch.rand(2, 3, 16, 16)
    assert not CaptumExplainer("LayerDeepLift", sign="all")(classifier, image, 1).degenerate.any()
    with pytest.raises(ValueError, match="'gelu' in its forward"):
        CaptumExplainer("LayerDeepLift", layer="a")(classifier, image, 1)


def test_rules_end_at_the_output():
    for method in (*DEEP, *GUIDED, "LRP"):
        with pytest.raises(ValueError, match="`output` to be 'logit'"):
            CaptumExplainer(method, output="probability")


def test_the_networks_own_error_is_not_covered_up():
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        CaptumExplainer("DeepLift")(classifier_of(Net(F.relu, fail)), torch.rand(1, 3, 16, 16), 1)


# Right --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DEEP)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus])
def test_deep_lift_adds_up_to_the_difference_of_the_logits(method, activation):
    classifier, image = classifier_of(Net(activation(), activation())), torch.rand(3, 3, 16, 16)
    target = torch.tensor([0, 3, 1])
    total = raw(method, classifier, image, target).sum((1, 2, 3))
    y = (classifier(image) - classifier(torch.zeros_like(image))).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(total, y, atol=1e-5, rtol=1e-3)


def test_a_deep_lift_that_does_not_add_up_is_refused():
    torch.manual_seed(0)
    classifier = classifier_of(Net(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))))
    image, target = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"to add up to f\(x\) - f\(x'\) = .*, but it adds up to"):
        CaptumExplainer("DeepLift")(classifier, image, target)
    CaptumExplainer("DeepLift", method_args={"multiply_by_inputs": False})(classifier, image, target)


class Ruled(torch.autograd.Function):
    """A ReLU whose gradient is that of guided backpropagation, or of a deconvolution."""

    guided = True

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        up = gradient.clamp(min=0)
        return up * (ctx.saved_tensors[0] > 0) if Ruled.guided else up


@pytest.mark.parametrize("method", GUIDED)
@pytest.mark.parametrize("make", [lambda: Net(nn.ReLU()), twice])
def test_guided_backpropagation_is_that_of_a_relu_with_its_rule(monkeypatch, method, make):
    network, image = make(), torch.rand(2, 3, 16, 16)
    ours = raw(method, classifier_of(network), image, torch.tensor([1, 2]))
    network.first = network.second = None
    network.first = network.second = Applied()
    monkeypatch.setattr(Ruled, "guided", method == "GuidedBackprop")
    pixels = image.clone().requires_grad_()
    y = classifier_of(network)(pixels).gather(1, torch.tensor([[1], [2]])).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(y, pixels)[0].sum(1, keepdim=True))


class Applied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Ruled.apply(x)


@pytest.mark.parametrize(
    "make", [lambda: Net(nn.ReLU()), lambda: Net(F.relu), twice, lambda: Net(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))]
)
def test_lrp_of_a_relu_network_is_the_normalized_pixel_times_the_gradient(make):
    classifier = classifier_of(make()).double()
    image, target = torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 2])
    ours = raw("LRP", classifier, image, target)
    pixels = image.clone().requires_grad_()
    gradient = torch.autograd.grad(classifier(pixels).gather(1, target.unsqueeze(1)).sum(), pixels)[0]
    mean = classifier.mean.view(3, 1, 1)
    torch.testing.assert_close(ours, (gradient * (image - mean)).sum(1, keepdim=True), atol=1e-6, rtol=1e-4)


# FullGrad -----------------------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """A bias that no function of torch adds."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.bias, self.head = nn.Conv2d(3, 6, 3), nn.Parameter(torch.ones(6, 1, 1)), nn.Linear(6, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.a(x) + self.bias).mean((2, 3)))


def test_biases_that_full_grad_does_not_see_are_noticed_where_its_terms_have_to_add_up():
    image = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="adds constants otherwise than by the bias of a layer"):
        FullGrad()(Classifier(ByHand(F.relu).eval(), input_size=16), image, 1)
    for network in (ByHand(F.gelu), Net(nn.ReLU()), Net(F.relu), Net(lambda x: x.clamp(min=0)), Net(nn.SiLU())):
        assert not FullGrad()(Classifier(network.eval(), input_size=16), image, 1).degenerate.any()
