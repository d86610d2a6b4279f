"""The snippets of docs/tasks.md run as they stand there, each on a network that returns what its section is about."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optcam_pl
from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.data import MultiLabel
from optcam_pl.network.scores import Binary, Regression

NAMES = {
    "Binary": Binary, "Classifier": Classifier, "GradCAM": GradCAM, "MultiLabel": MultiLabel, "OptiCAM": OptiCAM,
    "Regression": Regression, "optcam_pl": optcam_pl, "torch": torch,
}  # fmt: skip
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Net(nn.Module):
    """A convolution and its mean over places, shown as `output` wants it."""

    def __init__(self, outputs: int, output: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head, self.output = nn.Linear(8, outputs), output

    def forward(self, image: Tensor, age: Tensor | None = None) -> Any:
        z = self.head(self.features(image).mean((2, 3)))
        return self.output(z if age is None else z + age)


def run(start: str, **given: Any) -> dict[str, Any]:
    """Run the snippet that contains `start`."""
    (snippet,) = [snippet for snippet in SNIPPETS if start in snippet]
    images = {"image": torch.rand(2, 3, 16, 16)}
    scope = {**NAMES, "image": images["image"][:1], "images": images, **given}
    exec(snippet, scope)
    return scope


def test_one_logit() -> None:
    assert run("Binary()", network=Net(1))["classifier"].num_classes == 2


def test_several_labels() -> None:
    dataset = [(torch.rand(3, 16, 16), [0, 2]), (torch.rand(3, 16, 16), [1])]
    assert run("MultiLabel", network=Net(3), dataset=dataset)["classifier"].link == "sigmoid"


def test_an_estimate() -> None:
    assert run("Regression", network=Net(1))["classifier"].link == "identity"


def test_a_function_and_a_list_of_functions() -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    assert "ClassifierOutputSoftmaxTarget(3)" in PAGE
    (snippet,) = [snippet for snippet in SNIPPETS if "my_target" in snippet]
    depth, logits = snippet.splitlines()
    given = {"Classifier": Classifier, "my_target": lambda output: output[0]}
    target = grad_cam.ClassifierOutputSoftmaxTarget
    places = Net(2, lambda z: {"depth": z[:, :, None, None].expand(-1, -1, 4, 4)})
    found = [
        eval(depth, {**given, "network": places}),
        eval(logits, {**given, "network": Net(5), "ClassifierOutputSoftmaxTarget": target}),
    ]
    assert [classifier(torch.rand(3, 3, 16, 16)).shape for classifier in found] == [(3, 2), (3, 2)]


def test_an_input_beside_the_image() -> None:
    given = {"images": torch.rand(2, 3, 16, 16), "ages": torch.rand(2, 1)}
    assert run("inputs=", network=Net(4), **given)["classifier"].num_classes == 4


def test_every_snippet_is_one_of_these() -> None:
    tested = ("Binary()", "MultiLabel", "Regression", "my_target", "inputs=")
    assert all(any(word in snippet for word in tested) for snippet in SNIPPETS)
