"""What number of a network's output is explained, and its link to a probability."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier
from optcam_pl.checks import ToldError
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.explainers import GradCAM, OptiCAM
from optcam_pl.metrics import AverageDrop, AverageGain, AverageIncrease
from optcam_pl.network.link import probabilities_of
from optcam_pl.network.scores import (
    Binary,
    ClassLogits,
    References,
    Regression,
    Scores,
    Targets,
)


def features(width: int = 4) -> list[nn.Module]:
    return [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]


def network(outputs: int, end: Callable[[Tensor], Any] = lambda z: z) -> nn.Module:
    class Ending(nn.Module):
        def forward(self, z: Tensor) -> Any:
            return end(z)

    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.manual_seed(0)
    made = nn.Sequential(*features(), *pool, nn.Linear(4, outputs), Ending())
    nn.init.normal_(made[4].weight, std=3.0)
    return made


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@dataclass(slots=True)
class Slots:
    shape: Tensor
    color: Tensor


class Heads(NamedTuple):
    shape: Tensor
    color: Tensor


@pytest.mark.parametrize(
    ("end", "output"),
    [
        (lambda z: {"shape": z[:, :2], "color": z}, "color"),
        (lambda z: Heads(z[:, :2], z), "color"),
        (lambda z: (z[:, :2], z), 1),
        (lambda z: Slots(z[:, :2], z), "color"),
        (lambda z: type("Output", (), {})() if z is None else _object(z), "color"),
    ],
    ids=["mapping", "named tuple", "tuple", "slots", "object"],
)
def test_a_head_of_several_is_named(end: Callable[[Tensor], Any], output: str | int) -> None:
    plain = network(3)
    classifier = Classifier(network(3, end), input_size=8, scores=ClassLogits(output=output))
    assert torch.equal(classifier(images()), plain(images()))
    assert classifier.describe()["scores"] == f"ClassLogits(output={output})"
    assert classifier.describe()["link"] == "softmax"
    with pytest.raises(ValueError, match="Expected `output` to name one of the network's outputs"):
        Classifier(network(3, end), input_size=8, scores=ClassLogits(output="colour")).num_classes  # noqa: B018


def _object(z: Tensor) -> Any:
    class Output:
        def __init__(self) -> None:
            self.shape, self.color = z[:, :2], z

    return Output()


def test_class_logits_are_the_default_and_leave_no_trace_in_the_description() -> None:
    classifier = Classifier(network(3), input_size=8)
    given = Classifier(network(3), input_size=8, scores=ClassLogits(), link="softmax")
    assert classifier.describe() == given.describe()
    assert not {"scores", "link"} & set(classifier.describe())
    assert torch.equal(classifier.probabilities(images()), classifier(images()).softmax(1))


@pytest.mark.parametrize("flat", [False, True])
def test_binary_has_both_answers(flat: bool) -> None:
    net = network(1, lambda z: z[:, 0] if flat else z)
    classifier = Classifier(net, input_size=8, scores=Binary())
    z = network(1)(images())[:, 0]
    p = classifier.probabilities(images())
    torch.testing.assert_close(p[:, 1], 1 / (1 + torch.exp(-z)))
    torch.testing.assert_close(p.sum(1), torch.ones(3))
    assert classifier.num_classes == 2
    assert [classifier.target_name(j) for j in (0, 1)] == ["no", "yes"]
    assert Classifier(net, input_size=8, scores=Binary(), class_names=["healthy", "ill"]).class_name(1) == "ill"
    maps = [GradCAM()(classifier, images(), j) for j in (0, 1)]
    assert not torch.equal(maps[0].saliency, maps[1].saliency)  # each answer has a map of its own


def test_ad_ag_and_ai_of_a_sigmoid_equal_the_values_by_hand() -> None:
    net = network(3)
    classifier = Classifier(net, input_size=8, link="sigmoid")
    result = evaluate_block(
        classifier, GradCAM(), {"image": images()}, 2, [AverageDrop(), AverageGain(), AverageIncrease()]
    )
    p = 1 / (1 + torch.exp(-net(images())[:, 2]))
    o = 1 / (1 + torch.exp(-net(images() * result.explanation.saliency)[:, 2]))
    torch.testing.assert_close(result.scores["average_drop"].float(), 100 * (p - o).clamp(min=0) / p)
    torch.testing.assert_close(result.scores["average_gain"].float(), 100 * (o - p).clamp(min=0) / (1 - p))
    torch.testing.assert_close(result.scores["average_increase"].float(), 100 * (p < o).float())
    assert [row.p for row in result.rows] == pytest.approx(p.tolist())


def test_an_estimate_moves_up_and_down() -> None:
    net = network(2)
    up, down = (Classifier(net, input_size=8, scores=Regression(way)) for way in ("up", "down"))  # type: ignore[arg-type]
    assert torch.equal(up(images()), net(images()))
    assert torch.equal(down(images()), -net(images()))
    one = Classifier(net, input_size=8, scores=Regression(column=1))
    assert torch.equal(one(images()), net(images())[:, 1:])
    assert not up.has_probabilities
    assert up.target_name(0) == "higher estimate"


def test_an_estimate_is_kept_in_a_column_for_each_image() -> None:
    net = network(2)
    classifier = Classifier(net, input_size=8, scores=Regression("keep"))
    y = net(images())
    with classifier.references({"image": images()}) as found:
        assert found is not None
        assert len(found.names) == 3
        moved = classifier(images(seed=1))
        expected = -(net(images(seed=1))[:, None] - y).norm(dim=2)
        torch.testing.assert_close(moved, expected)
        assert classifier.num_classes == 3
        maps = OptiCAM(max_iter=3)(classifier, images(), range(3)).saliency
    with classifier.references({"image": images()[1:2]}):
        alone = OptiCAM(max_iter=3)(classifier, images()[1:2], 0).saliency
    torch.testing.assert_close(alone, maps[1:2], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="Expected the images' references to be bound"):
        OptiCAM(max_iter=1)(classifier, images(), 0)


def test_references_are_bound_for_a_block_and_named_in_its_result() -> None:
    classifier = Classifier(network(1), input_size=8, scores=Regression("keep"), link=lambda s: s.exp().clamp(max=1))
    result = evaluate_block(classifier, OptiCAM(max_iter=2), {"image": images()}, "label", [AverageDrop()])
    assert [row.p for row in result.rows] == pytest.approx([1, 1, 1])  # nothing has moved yet
    assert [(row.target, row.predicted) for row in result.rows] == [(0, 0)] * 3
    assert result.references is not None
    assert result.references.names[0].startswith("unchanged ")


class Missing(Scores):
    """The first class of the first image only."""

    per_image = True
    default_link = "sigmoid"

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, :1].repeat(1, self.columns() or 1)

    @contextmanager
    def references(self, classifier: Classifier, batch: Mapping[str, Any]) -> Iterator[References | None]:
        names = ("it", *("",) * (len(batch["image"]) - 1))
        with self.bound.to(names):
            yield References(
                names, classes=(7,) * len(names), missing=tuple("" if n else "no such thing" for n in names)
            )


def test_an_image_without_a_reference_gets_a_row_without_scores() -> None:
    classifier = Classifier(network(2), input_size=8, scores=Missing())
    result = evaluate_block(classifier, GradCAM(), {"image": images()}, "label", [AverageDrop()])
    assert [(row.status, row.reason, row.target) for row in result.rows] == [
        ("ok", "", 7),
        ("degenerate", "no such thing", 7),
        ("degenerate", "no such thing", 7),
    ]
    assert result.scores["average_drop"].isnan().tolist() == [False, True, True]


def test_functions_are_targets_of_columns() -> None:
    net = network(3, lambda z: {"logits": z, "extra": 2 * z})
    classifier = Classifier(net, input_size=8, scores=[lambda out: out["extra"][0], lambda out: out["logits"].sum()])
    z = network(3)(images())
    torch.testing.assert_close(classifier(images()), torch.stack([2 * z[:, 0], z.sum(1)], dim=1))
    assert (classifier.link, classifier.num_classes) == ("identity", 2)
    assert GradCAM()(classifier, images(2), range(2)).saliency.shape == (2, 1, 8, 8)


def test_a_function_of_the_whole_output_is_scores() -> None:
    def largest(output: Tensor) -> Tensor:
        return output.amax(1, keepdim=True)

    classifier = Classifier(network(3), input_size=8, scores=largest)
    assert torch.equal(classifier(images()), network(3)(images()).amax(1, keepdim=True))
    assert classifier.describe()["scores"].endswith("largest")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"link": "sofmax"}, ValueError, "Expected `link` to be one of softmax, sigmoid, identity or a function"),
        ({"link": lambda s: -s}, ValueError, "Expected `link` to be an increasing function"),
        ({"link": "softmax", "scores": Regression("keep")}, ValueError, "over which a softmax means nothing"),
        ({"scores": Binary}, TypeError, r"Make one of the class: Binary\(\)"),
        ({"scores": 3}, TypeError, "Expected `scores` to be Scores"),
        ({"scores": []}, ValueError, "one function at least"),
        ({"scores": ["a"]}, TypeError, "Expected `functions` of Targets to be functions"),
    ],
)
def test_what_is_no_scores_or_link_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Classifier(network(3), input_size=8, **arguments)


def test_errors_of_a_users_function_say_what_it_was_given() -> None:
    classifier = Classifier(network(3), input_size=8, scores=lambda output: output["boxes"])
    with pytest.raises(ToldError, match=r"raised .*Error: .* It was given a tensor of shape \(3, 3\)"):
        classifier(images())
    with pytest.raises(TypeError, match="floating-point numbers"):
        Classifier(network(3), input_size=8, scores=lambda output: output.argmax(1))(images())
    with pytest.raises(ValueError, match=r"to return scores \(B, C\), but got the shape \(3,\)"):
        Classifier(network(3), input_size=8, scores=lambda output: output.amax(1))(images())
    with pytest.raises(ValueError, match="to return a number"):
        Classifier(network(3), input_size=8, scores=[lambda output: output])(images())


def test_a_link_of_ones_own_has_to_stay_in_the_range_of_probabilities() -> None:
    with pytest.raises(ValueError, match=r"gives values from 5 to 5: end it in `.clamp\(0, 1\)`"):
        probabilities_of(torch.full((1, 1), 2.0), lambda s: s + 3)


def test_scores_are_copied_and_pickled_without_what_is_bound() -> None:
    classifier = Classifier(network(1), input_size=8, scores=Regression("keep"))
    with classifier.references({"image": images()}):
        for twin in (copy.deepcopy(classifier.scores), pickle.loads(pickle.dumps(classifier.scores))):
            assert twin.bound.value is None
            assert twin.settings() == {"direction": "keep", "output": None, "column": None}


def test_scores_and_link_come_from_a_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Classifier, "classifier")
    scores = {"class_path": "optcam_pl.network.scores.ClassLogits", "init_args": {"output": 0}}
    given = {"network": "timm/test_resnet", "weights": None, "link": "sigmoid", "scores": scores}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name in 4.40
    classifier = instantiate(parser.parse_object({"classifier": given})).classifier
    assert classifier.link == "sigmoid"
    assert classifier.scores.output == 0


def test_the_public_name() -> None:
    assert isinstance(optcam_pl.Classifier(network(2), input_size=8, scores=[lambda z: z[0]]).scores, Targets)
