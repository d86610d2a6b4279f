"""A network that stays as it is while it is explained, and gets its flags back afterwards."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from optcam_pl.network import suitability
from optcam_pl.private import tables_of, written_to

if TYPE_CHECKING:
    from typing_extensions import Self

    from optcam_pl.network.speed import FasterNetwork

Flags: TypeAlias = "tuple[list[tuple[nn.Module, bool]], list[tuple[nn.Parameter, bool]]]"


class _Own(NamedTuple):
    """The flags of one module: its `training`, and `requires_grad` of the parameters that it holds itself."""

    training: bool
    gradients: dict[str, bool]


_BEFORE: WeakKeyDictionary[nn.Module, _Own] = WeakKeyDictionary()
"""What modules were like before they were frozen, until they are released."""


def flags_of(network: nn.Module) -> Flags:
    """`training` of each module, `requires_grad` of each parameter."""
    return _as_flags({module: _own_flags(module) for module in network.modules()})


def flags_before(network: nn.Module) -> Flags:
    """The flags as they were before the network was first frozen.

    Several classifiers may hold one network, as where a cell of a notebook is run again. Each of them gives the network
    back as it was before the first.
    """
    now = {module: _own_flags(module) for module in network.modules()}
    known = {module: _BEFORE[module] for module in now if module in _BEFORE}
    if any(now[module].training or any(now[module].gradients.values()) for module in known):
        known = {}  # its owner has thawed it meanwhile
    before = now | known
    _BEFORE.update(before)
    return _as_flags(before)


def _own_flags(module: nn.Module) -> _Own:
    gradients = {name: parameter.requires_grad for name, parameter in module.named_parameters(recurse=False)}
    return _Own(module.training, gradients)


def _as_flags(each: Mapping[nn.Module, _Own]) -> Flags:
    parameters = [
        (parameter, own.gradients[name])
        for module, own in each.items()
        for name, parameter in module.named_parameters(recurse=False)
        if name in own.gradients
    ]
    return [(module, own.training) for module, own in each.items()], parameters


def restore(flags: Flags) -> None:
    """Give modules and parameters these flags."""
    modules, parameters = flags
    for module, training in modules:
        module.training = training
    for parameter, requires_grad in parameters:
        parameter.requires_grad_(requires_grad)


class Untouched:
    """Tells, in a fraction of a pass, whether a network still has the same tensors and nobody has written to them."""

    def __init__(self, network: nn.Module) -> None:
        self._tables = [(table, list(table.items())) for module in network.modules() for table in tables_of(module)]
        values = [value for _, items in self._tables for _, value in items]
        self._tensors = [value for value in values if isinstance(value, Tensor)]
        self._written = list(map(written_to, self._tensors))

    def __bool__(self) -> bool:
        same = all(
            len(table) == len(items) and all(table.get(name) is value for name, value in items)
            for table, items in self._tables
        )
        return same and self._written == list(map(written_to, self._tensors))


class Frozen(nn.Module):
    """A module around a frozen `network`, which is called `name` in messages."""

    name: str
    network: nn.Module
    fast: FasterNetwork | None
    trust_network: bool
    _found: Flags
    _copied: str = ""  # hash of the weights that the faster copy was made of
    _untouched: Untouched | None = None  # since it was compared last

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
        restore(self._found)
        for module, _ in self._found[0]:
            _BEFORE.pop(module, None)

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
            ValueError: a part of the network is not in eval mode; the message names the first one. Or the network's
                weights have changed since its faster copy was made.
        """
        suitability.check_eval(self.name, self.network)
        if self.fast is not None and not self.trust_network:  # one that is no function may change with each pass
            self._check_copy(self.fast)

    @abstractmethod
    def weight_hash(self) -> str:
        """A word that changes with the weights of the network that was given."""

    def _check_copy(self, fast: FasterNetwork) -> None:
        if self._untouched:
            return
        if self.weight_hash() != self._copied:
            raise ValueError(
                f"Expected the weights of {self.name} to stay as they were when its faster copy was made (`speed` "
                f"{fast.speed}), but they have changed since: its maps would be those of the old weights. Make a new "
                "Classifier, or give `speed` plain, which follows the network."
            )
        self._untouched = Untouched(fast.original)
