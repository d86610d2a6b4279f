"""A value that holds inside a `with`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bound:
    """A value that holds inside a `with`, for this thread alone; a copy begins without one.

    Example:
        >>> bound = Bound()
        >>> with bound.to(3):
        ...     bound.value
        3
        >>> bound.value is None
        True
    """

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def value(self) -> Any:
        """What is bound; None outside."""
        return getattr(self._local, "value", None)

    @contextmanager
    def to(self, value: Any) -> Iterator[None]:
        """Bind a value; afterwards what was bound before holds again."""
        before = self.value
        try:
            self._local.value = value
            yield
        finally:
            self._local.value = before

    def __reduce__(self) -> tuple[type[Bound], tuple[()]]:
        return Bound, ()
