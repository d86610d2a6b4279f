"""What is private in other packages and touched is still there, and nothing else is touched."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest

import optcam_pl
from optcam_pl import private
from optcam_pl.private import TOUCHED, Touched

PACKAGE = Path(optcam_pl.__file__).parent


def owner_of(touched: Touched) -> Any:
    module, _, path = touched.owner.partition(":")
    found: Any = importlib.import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("touched", TOUCHED, ids=lambda touched: f"{touched.owner}.{touched.name}")
def test_it_has_not_vanished(touched: Touched) -> None:
    owner = owner_of(touched)
    if touched.name == "_broadcast_sigterm_tensor" and lightning.__version__.startswith("2.5.0"):
        pytest.skip("this version does not ask the other processes about signals")
    if not touched.of_instances:
        assert hasattr(owner, touched.name)
        return
    sources = [inspect.getsource(kind) for kind in owner.__mro__ if kind is not object and not is_builtin(kind)]
    assert any(f"self.{touched.name}" in s or f'"{touched.name}"' in s for s in sources)


def is_builtin(kind: type) -> bool:
    try:
        inspect.getsource(kind)
    except (OSError, TypeError):
        return True
    return False


def test_each_has_a_reason() -> None:
    assert all(touched.reason.endswith(".") for touched in TOUCHED)


def private_names(tree: ast.AST) -> set[str]:
    """Attributes with one leading underscore that are asked of anything but self, cls and super()."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.add(node.attr)
    return found


def own_names(trees: list[ast.AST]) -> set[str]:
    """Names that the package itself defines or sets."""
    found = {"_replace", "_asdict", "_fields", "_exit"}  # public by documentation: named tuples and os._exit
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.update({node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else ())
    return found


def test_nothing_private_is_touched_elsewhere() -> None:
    files = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    own = own_names([tree for path, tree in files.items() if path != Path(private.__file__)])
    foreign = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path, tree in files.items()
        if path != Path(private.__file__)
        for name in private_names(tree) - own
    }
    assert not foreign


def test_what_the_file_touches_is_listed() -> None:
    tree = ast.parse(Path(private.__file__).read_text(encoding="utf-8"))
    assert private_names(tree) == {touched.name for touched in TOUCHED}
