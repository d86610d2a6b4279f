"""The arguments that an explainer was made with, in the plain values that a run's manifest can hold."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn


def arguments(cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, object]:
    """The arguments of a constructor by name, with its defaults; {} where they do not fit it.

    Example:
        >>> from optcam_pl.explainers import EigenCAM
        >>> arguments(EigenCAM, ["layer4"], {"augment": True})
        {'layer': 'layer4', 'center': False, 'augment': True}
    """
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind_partial(None, *args, **kwargs)
    except TypeError:  # the constructor is about to say so
        return {}
    bound.apply_defaults()
    given: dict[str, object] = {}
    for name, value in list(bound.arguments.items())[1:]:  # the first is `self`
        kind = signature.parameters[name].kind
        given |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return given


def check_plain(name: str, given: Mapping[str, object]) -> None:
    """Make sure that each argument of an explainer can be stored with its results.

    Raises:
        TypeError: one cannot be.
    """
    for argument, value in given.items():
        try:
            plain(value)
        except TypeError as error:
            raise TypeError(
                f"Expected the arguments of {name} to be what can be stored with its results (numbers, words, lists of "
                f"them, tensors, modules, functions), but `{argument}` is {type(value).__name__}. Give {name} a method "
                "`settings(self)` that returns in plain values what its maps depend on."
            ) from error


def plain(value: object) -> Any:
    """A value as JSON can hold it.

    Numbers, words, None, lists, tuples and dicts of them stay. Tensors, modules and functions become words that tell
    them apart: a tensor by the SHA-256 of its bytes, a module by its class and that of its state, a function by its
    name, a `functools.partial` by its function and arguments.

    Raises:
        TypeError: it is something else.

    Example:
        >>> plain([1, "x"]), plain(torch.relu), plain(torch.zeros(2))
        ([1, 'x'], 'torch.relu', 'float32 (2,) af5570f5a1810b7a')
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return _words(value)


def _words(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} {_digest([value])}"
    if isinstance(value, nn.Module):
        return f"{type(value).__module__}.{type(value).__qualname__} {_digest(value.state_dict().values())}"
    if isinstance(value, (PurePath, torch.dtype, torch.device, Enum)):
        return str(value)
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{type(value).__name__} has no plain form.")


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
