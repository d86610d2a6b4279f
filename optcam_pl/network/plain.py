"""The arguments that an object was made with, as plain values that a run's manifest can store."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class Remembers:
    """An object that stores the arguments it was made with as `_given`, without those in `_unstored`.

    It is a separate class because, for a class that defines `__new__`, jsonargparse reads the options from there.
    """

    _unstored: ClassVar[tuple[str, ...]] = ()
    _given: dict[str, object]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the arguments; a copy is created without arguments and gets them with its state."""
        made = super().__new__(cls)
        given = arguments(cls, args, kwargs)
        given = {name: value for name, value in given.items() if name not in cls._unstored}
        cls.check_arguments(given)
        made.__dict__["_given"] = given
        return made

    @classmethod
    def check_arguments(cls, given: dict[str, object]) -> None:
        """Refuse invalid arguments with a clear error message."""


def arguments(cls: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, object]:
    """The arguments of a constructor by name, with its defaults; {} if they do not fit it.

    Example:
        >>> arguments(nn.Flatten, [2], {})
        {'start_dim': 2, 'end_dim': -1}
    """
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind_partial(None, *args, **kwargs)
    except TypeError:  # the constructor will raise this error itself
        return {}
    bound.apply_defaults()
    given: dict[str, object] = {}
    for name, value in list(bound.arguments.items())[1:]:  # the first is `self`
        kind = signature.parameters[name].kind
        given |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return given


def check_plain(name: str, given: Mapping[str, object]) -> None:
    """Check that each argument of an explainer or of scores can be stored with its results.

    Raises:
        TypeError: an argument cannot be stored.
    """
    for argument, value in given.items():
        try:
            plain(value)
        except TypeError as error:
            raise TypeError(
                f"Expected the arguments of {name} to be what can be stored with its results (numbers, words, lists of "
                f"them, tensors, modules, functions), but `{argument}` is {type(value).__name__}. Give {name} a method "
                "`settings(self)` that returns in plain values what its results depend on."
            ) from error


def plain(value: object) -> Any:
    """Convert a value to one that JSON can store.

    Numbers, strings, None, and lists, tuples and dicts of them are kept. Tensors, modules and functions become strings
    that identify them: a tensor by the SHA-256 of its bytes, a module by its class and the SHA-256 of its state, a
    function by its name, and a `functools.partial` by its function and arguments.

    Raises:
        TypeError: the value is of another kind.

    Example:
        >>> plain([1, "x"]), plain(nn.functional.relu), plain(torch.zeros(2))
        ([1, 'x'], 'torch.nn.functional.relu', 'float32 (2,) af5570f5a1810b7a')
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


def described(function: object) -> object:
    """A function by its name; another object by its class and what it holds, as far as `plain` knows it."""
    try:
        return plain(function)
    except TypeError:
        kind = type(function)
        return {f"{kind.__module__}.{kind.__qualname__}": {key: _held(value) for key, value in vars(function).items()}}


def _held(value: object) -> object:
    try:
        return plain(value)
    except TypeError:
        return type(value).__qualname__


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors in containers, and other values, by names; of quantized layers' packed weights the numbers."""
    if isinstance(value, Tensor) and value.is_quantized:
        yield f"{name} quantized", value.dequantize()
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            yield from _flat(f"{name}.{key}" if name else str(key), part)
    else:
        yield name, value


def state_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over name, type, shape and bytes of the tensors of a state dict, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, value in _flat("", state):
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
