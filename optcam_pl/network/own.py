"""Networks of the user's own, by the import path or the file of the class or function that makes them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from optcam_pl.checks import expanded_path, nearest

_MODULE = r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+"
_FILE = r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)"


def is_import_path(network: object) -> bool:
    """Whether this names an object in a module or a file: "my_module.Net", "my_module:Net" or "folder/my_net.py:Net".

    Example:
        >>> is_import_path("my_module.Net"), is_import_path("timm/resnet18.a1_in1k"), is_import_path("resnet18")
        (True, False, False)
        >>> is_import_path("~/nets/my_net.py:Net")
        True
    """
    return isinstance(network, str) and (re.fullmatch(_MODULE, network) or re.fullmatch(_FILE, network)) is not None


def make_network(path: str) -> nn.Module:
    """Call the class or function at an import path, or in a file, without arguments and return the network.

    A file is run under the name of its stem. Its folder is appended to Python's path, so that it finds what lies beside
    it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or no object of this name in it.
        TypeError: it cannot be called without arguments, or the result is not a module.
    """
    make = _found(path)
    what = f"Expected `network` {path!r} to be a class or function without arguments that makes a torch.nn.Module"
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(f"{what}, but it is {type(make).__name__}.")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise TypeError(f"{what}, but it needs arguments: {error}. Write a function that passes them.") from error
    network = make()
    if not isinstance(network, nn.Module):
        raise TypeError(f"{what}, but it made {type(network).__name__}.")
    return network


def _found(path: str) -> Any:
    file = re.fullmatch(_FILE, path)
    where, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    try:
        module = _run_file(path, file["file"]) if file else importlib.import_module(where)
        return getattr(module, name)
    except ModuleNotFoundError as error:
        if file or error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # a package that the user's module needs is missing
        raise ImportError(
            f"Expected `network` {path!r} to be in a module that Python finds, but there is no module {error.name!r}. "
            f"Run the command in its folder, name that folder in PYTHONPATH, or name the file: folder/my_net.py:{name}."
        ) from error
    except AttributeError as error:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ImportError(
            f"Expected {name!r} in {where!r}, as `network` is {path!r}, but it has no such name. The nearest are: "
            f"{nearest(name, known) or 'none'}."
        ) from error


def _run_file(path: str, file: str) -> ModuleType:
    """The module of a file, which is run once."""
    source = expanded_path(file).resolve()
    if not source.is_file():
        raise FileNotFoundError(f"Expected `network` {path!r} to name a Python file, but there is no file {file!r}.")
    name = source.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) and Path(str(known.__file__)).resolve() == source:
        return known
    if known is not None or not name.isidentifier():  # never in the place of another module
        name = f"_optcam_own_{hashlib.sha256(str(source).encode()).hexdigest()[:16]}"  # the same in every process
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None  # the file ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(source.parent) not in sys.path:
        sys.path.append(str(source.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
