"""A network that stays as it is while it is explained, and gets its flags back afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor, nn

from optcam_pl.network import suitability

if TYPE_CHECKING:
    from typing_extensions import Self

    from optcam_pl.network.speed import FasterNetwork

Flags: TypeAlias = "tuple[list[tuple[nn.Module, bool]], list[tuple[nn.Parameter, bool]]]"


def flags_of(network: nn.Module) -> Flags:
    """`training` of each module, `requires_grad` of each parameter."""
    modules = [(module, module.training) for module in network.modules()]
    return modules, [(parameter, parameter.requires_grad) for parameter in network.parameters()]


class Frozen(nn.Module):
    """A module around a frozen `network`, which is called `name` in messages."""

    name: str
    network: nn.Module
    fast: FasterNetwork | None
    _found: Flags

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cpu` and `cuda` call: captured passes would go on to read the weights where they were."""
        before = self._addresses()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.fast is not None and before != self._addresses():
            self.fast.forget()
        return self

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.parameters(), *self.buffers())]

    def release(self) -> None:
        """Restore the network's original flags: each module's `training` and each parameter's `requires_grad`.

        Leaving ``with Classifier(network) as classifier:`` also does this, even after an exception. Calling it twice is
        harmless. To explain a network again after training it, make a new `Classifier`.
        """
        modules, parameters = self._found
        for module, training in modules:
            module.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode; warn if training mode is requested."""
        if mode:
            warnings.warn(f"{self.name} is frozen and stays in eval mode: explanations do not train it.", stacklevel=2)
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stay frozen.

        Raises:
            RuntimeError: gradients were requested.
        """
        if requires_grad:
            raise RuntimeError(f"{self.name} is frozen: no gradient is ever computed for the classifier's parameters.")
        return super().requires_grad_(False)

    def check_frozen(self) -> None:
        """Check that the network is still in eval mode: the user may have called ``classifier.network.train()``.

        In training mode, dropout makes maps random. Batch norm makes a map depend on the other images of its batch and
        changes the network's running means.

        Raises:
            ValueError: a part of the network is not in eval mode; the message names the first one.
        """
        suitability.check_eval(self.name, self.network)
