"""Where the words of a command go: what was asked for to stdout, so that a program can read it; all else to stderr."""

from __future__ import annotations

import sys

from optcam_pl.reports.tables import Format


class Tables:
    """Tables that are printed one after the other.

    Args:
        format: how they are written. Those in CSV that have the same columns are one; others stand apart.
    """

    def __init__(self, format: Format) -> None:
        self._format, self._head = format, ""

    def add(self, text: str) -> str:
        r"""What to print of the next table.

        >>> tables = Tables("csv")
        >>> [tables.add(text) for text in ("a,b\n1,2\n", "a,b\n3,4\n", "c\n5\n")]
        ['a,b\n1,2\n', '3,4\n', '\nc\n5\n']
        """
        before, (self._head, _, body) = self._head, text.partition("\n")
        if self._format == "csv" and before == self._head:
            return body
        return f"\n{text}" if before else text


def show(text: str) -> None:
    """Print the table that was asked for, whole at once; a sign that the terminal does not have becomes a "?"."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def tell(text: str) -> None:
    """Print how it goes, a note or a place."""
    print(text, file=sys.stderr, flush=True)
