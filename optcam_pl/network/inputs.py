"""A network's inputs besides the image: they stay fixed while the image is masked and differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl.checks import check_choice, nearest
from optcam_pl.network.bound import Bound
from optcam_pl.network.plain import plain

InputsAs: TypeAlias = Literal["keywords", "dict"]


class SideInputs:
    """The inputs by name, each as one image has it; all images of a pass get the same.

    Args:
        given: the inputs of images that bring none; None: the network has no other input.
        how: see `Classifier`.

    Example:
        >>> inputs = SideInputs({"age": [0.5]})
        >>> inputs.of(torch.zeros(2, 3, 4, 4))["age"].tolist()
        [[0.5], [0.5]]
        >>> with inputs.bound_to({"age": torch.tensor([0.25])}):
        ...     inputs.of(torch.zeros(1, 3, 4, 4))["age"].tolist()
        [[0.25]]
    """

    def __init__(self, given: Mapping[str, Any] | None = None, how: InputsAs = "keywords") -> None:
        self.given = {name: torch.as_tensor(value) for name, value in (given or {}).items()}
        self.how: InputsAs = check_choice("inputs_as", how, InputsAs)
        self._bound = Bound()
        self._caller: _OfDict | None = None

    def of(self, image: Tensor) -> dict[str, Tensor]:
        """What stands beside the images (B,...) of a pass: (B, ...) each, floating ones in the images' dtype."""
        if not self.given:
            return {}
        current = self.given if self._bound.value is None else self._bound.value
        return {name: _beside(value, image) for name, value in current.items()}

    @contextmanager
    def bound_to(self, values: Mapping[str, Tensor] | None) -> Iterator[None]:
        """For these images: their own inputs, by name; None keeps what there is.

        Raises:
            ValueError: the network has no such input.
        """
        for name in values or {}:
            if name not in self.given:
                known = nearest(name, self.given) if self.given else "none: name them in `inputs` of the classifier"
                raise ValueError(f"Expected `inputs` that the network has, but got {name!r}; it has {known}.")
        with self._bound.to(self._bound.value if values is None else {**self.given, **values}):
            yield

    def caller(self, network: nn.Module) -> nn.Module:
        """The network as it is called: itself, with keywords, or a module around it that makes a dict of them."""
        if self.how == "keywords":
            return network
        caller = self._caller
        if caller is None or caller.network is not network:
            self._caller = caller = _OfDict(network)
        return caller

    def settings(self) -> dict[str, Any]:
        """For a run's manifest; {} if there is no other input."""
        return {"inputs": plain(self.given), "inputs_as": self.how} if self.given else {}


class _OfDict(nn.Module):
    """Calls a network with a dict of all inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, **inputs: Tensor) -> Any:
        """What the network returns."""
        return self.network({"image": image, **inputs})


def _beside(value: Tensor, image: Tensor) -> Tensor:
    moved = value.to(image.device, image.dtype if value.is_floating_point() else value.dtype)
    return moved.unsqueeze(0).expand(len(image), *moved.shape)
