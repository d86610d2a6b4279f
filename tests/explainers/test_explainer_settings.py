"""What an explainer was made with: shared arguments at construction, and own explainers' arguments in the settings."""

from __future__ import annotations

import inspect
from typing import Any

import jsonargparse
import pytest
import torch
from torch import Tensor, nn

from optcam_pl import Classifier, explainers
from optcam_pl.data import Entry, ImageDataModule
from optcam_pl.explainers import Explainer, GradCAM, OptiCAM

REQUIRED = {"CaptumExplainer": ("Saliency",), "CallableExplainer": (len,)}
METHODS = [
    cls
    for cls in (getattr(explainers, name) for name in explainers.__all__)
    if inspect.isclass(cls) and issubclass(cls, Explainer) and not inspect.isabstract(cls)
]


def test_settings_of_another_kind_are_told() -> None:
    with pytest.raises(TypeError, match="Expected `lr` to be a number, but got 'fast'"):
        OptiCAM(lr="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected `layer` to name one layer or several, but got \[\]"):
        GradCAM(layer=[])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_selectivity_and_augment_can_be_given_at_construction(method: Any) -> None:
    pytest.importorskip("captum")
    arguments = REQUIRED.get(method.__name__, ())
    explainer = method(*arguments, selectivity=2, augment=True)
    assert (explainer.selectivity, explainer.augment) == (2, True)
    assert explainer.settings() == method(*arguments).settings() | {"selectivity": 2, "augment": True}
    with pytest.raises(ValueError, match="selectivity"):
        method(*arguments, selectivity=0)
    with pytest.raises(TypeError, match="Expected `augment` to be True or False, but got 1"):
        method(*arguments, augment=1)


@pytest.mark.parametrize(
    "method", [cls for cls in METHODS if cls.__name__ not in REQUIRED], ids=lambda cls: cls.__name__
)
def test_a_config_gives_them_too(method: Any) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(method, "method")
    given = parser.parse_args(["--method.selectivity=2", "--method.augment=true"])
    explainer = method(**given.method.as_dict())
    assert explainer.changes() == {"selectivity": 2, "augment": True}
    assert "six times the work" in " ".join(parser.format_help().split())
    # Named where not the paper's, and where the objective needs them.
    unsaid = {"preset", "betas", "schedule", "start", "gamma", "rivals"} if method is OptiCAM else set()
    assert set(given.method.as_dict()) - {"selectivity", "augment"} - unsaid == set(method().settings())


class Forgetful(Explainer):
    """Keeps none of its arguments under their own names."""

    def __init__(self, power: float, ways: list[str] | None = None, extra: object = None) -> None:
        super().__init__()
        self._alpha = power

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Any:
        return self.finish(image.mean(1, keepdim=True) ** self._alpha, image, target)


def test_arguments_that_are_not_kept_are_what_was_given() -> None:
    assert Forgetful(2, ways=["a"]).settings() == {"power": 2, "ways": ["a"], "extra": None}
    two = (Forgetful(1, extra=value).settings()["extra"] for value in (torch.zeros(2), torch.ones(2)))
    assert len(set(two)) == 2
    assert Forgetful(1, extra=len).settings()["extra"] == "builtins.len"
    assert str(Forgetful(1, extra=nn.ReLU()).settings()["extra"]).startswith("torch.nn.modules.activation.ReLU ")


def test_arguments_that_no_run_can_store_are_told_when_the_object_is_made() -> None:
    with pytest.raises(TypeError, match="`extra` is object. Give Forgetful a method `settings"):
        Forgetful(1, extra=object())

    class Told(Forgetful):
        """Says itself what it depends on."""

        def settings(self) -> dict[str, object]:
            return {"power": self._alpha}

    assert Told(1, extra=object()).settings() == {"power": 1}
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'power'"):
        Forgetful()  # type: ignore[call-arg]


def test_settings_of_plain_explainers_are_as_before() -> None:
    assert GradCAM().settings() == {"layer": None}
    positional = [
        p for p in inspect.signature(OptiCAM.__init__).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert list(OptiCAM().settings()) == [parameter.name for parameter in positional][1:]


def test_a_dataset_needs_no_words_for_what_it_looked_for() -> None:
    class Nothing(ImageDataModule):
        """Has no image."""

        def entries(self) -> list[Entry]:
            return []

    with pytest.raises(ValueError, match="Nothing found no image: looked for what its `entries` list"):
        Nothing().setup()
