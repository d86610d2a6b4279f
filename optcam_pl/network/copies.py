"""Copies of networks, also of those that `copy.deepcopy` refuses."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Alone(nn.Module):
    """Stands in a copy where `DistributedDataParallel` was: that is bound to other processes, and a copy is not.

    Args:
        module: the copy of what was wrapped; it keeps its name.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns."""
        return self.module(*args, **kwargs)


def copied(network: Module) -> Module:
    """A copy of a network with its own tensors.

    `copy.deepcopy` refuses a network that keeps a tensor with a graph: the weight that pruning or the older weight norm
    has computed, features or attention of the last pass. Such tensors are copied without their graph.
    `DistributedDataParallel` is left out of the copy.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.seen = layer.weight * 2
        >>> copied(layer).seen.requires_grad
        False
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        _note_computed(vars(module), memo, set())
    for module in network.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            memo[id(module)] = Alone(copy.deepcopy(module.module, memo)).train(module.training)
    return copy.deepcopy(network, memo)


def shell_of(module: Module) -> Module:
    """A second object with everything that a module has, but with tables of its own: of hooks, parameters, modules."""
    shell = copy.copy(module)
    vars(shell).update({name: v.copy() if isinstance(v, dict) else v for name, v in vars(module).items()})
    return shell


def _note_computed(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Note copies of the tensors with a graph in a value and in the containers that it holds."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            _note_computed(part, memo, seen)
