"""Tables of plain cells as text, Markdown and LaTeX; names of others are escaped. Nothing here knows of runs."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from optcam_pl.checks import check_choice

PagesFormat = Literal["text", "markdown", "latex"]


@dataclass(frozen=True)
class Grid:
    """A table for human readers: plain cells and, below them, the settings that all runs share and the notes.

    Attributes:
        header: The headings of the columns.
        body: The rows, each with one cell per column.
        left: The number of leading columns that hold words; the others hold numbers.
        common: The settings that all rows share.
        notes: Sentences below the table.
        title: A line above the table.
    """

    header: list[str]
    body: list[list[str]]
    left: int
    common: list[str]
    notes: list[str]
    title: str = ""

    @property
    def below(self) -> list[str]:
        """The lines below the table."""
        return [line for line in ["; ".join(self.common), *self.notes] if line]


def printable(text: str) -> str:
    r"""Escape control characters and undecodable bytes, so that a name can neither drive a terminal nor break a line.

    Example:
        >>> print(printable("a\nb\x1b[31m"))
        a\nb\x1b[31m
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def grid_width(grid: Grid) -> int:
    """How many characters wide a table is in plain text."""
    return sum(2 + max(map(cell_len, column)) for column in zip(grid.header, *grid.body, strict=True)) - 2


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def wrapped(settings: Sequence[str]) -> list[str]:
    """Settings as lines of plain text, each in one line as far as it fits."""
    whole = [printable(setting).replace(" ", "\0") for setting in settings]  # no line break within a setting
    return [part.replace("\0", " ") for part in _wrap("; ".join(whole))]


def aligned(header: Sequence[str], body: Sequence[Sequence[str]], left: int) -> list[str]:
    r"""Lines of a table in plain text, with columns as wide as their widest cell and a rule under the header.

    Args:
        header: The headings of the columns.
        body: The rows, each with one cell per column.
        left: The number of leading columns that are aligned on the left; the others are aligned on the right.

    Example:
        >>> print("\n".join(aligned(["method", "AD"], [["GradCAM", "9.50"]], 1)))
        method     AD
        -------  ----
        GradCAM  9.50
    """
    rows = [[printable(cell) for cell in row] for row in [header, *body]]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if column < left else space + cell)
        return "  ".join(padded).rstrip()

    return [line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])]


def _text(grid: Grid) -> str:
    lines = [printable(grid.title)] if grid.title else []
    lines += aligned(grid.header, grid.body, grid.left)
    lines += wrapped(grid.common)
    lines += [part for note in grid.notes for part in _wrap(printable(note))]
    return "\n".join(lines) + "\n"


def _markdown(grid: Grid) -> str:
    def escape(text: str) -> str:
        return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(printable(text), quote=False))

    rules = ["---" if column < grid.left else "---:" for column in range(len(grid.header))]
    rows = [[escape(cell) for cell in row] for row in [grid.header, *grid.body]]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rules, *rows[1:]]]
    title = [escape(grid.title), ""] if grid.title else []
    return "\n".join([*title, *lines, "", *(f"- {escape(below)}" for below in grid.below)]) + "\n"


_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$"},
}


def _latex(grid: Grid) -> str:
    def escape(text: str) -> str:
        return "".join(_TEX.get(c, c) for c in printable(text))

    rows = [" & ".join(map(escape, row)) + r" \\" for row in [grid.header, *grid.body]]
    # Of a row that begins with one of these, the end of the row before would make its own argument.
    rows = [f"{{{row[0]}}}{row[1:]}" if row[0] in "[*" else row for row in rows]
    columns = "l" * grid.left + "r" * (len(grid.header) - grid.left)
    below = [rf"\par{{\footnotesize {escape(line)}\par}}" for line in grid.below]
    title = rf"\par {escape(grid.title)}\par" if grid.title else "% needs \\usepackage{booktabs}"
    head = [title, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule"]
    return "\n".join([*head, *rows[1:], r"\bottomrule", r"\end{tabular}", *below]) + "\n"


_RENDERERS: dict[PagesFormat, Callable[[Grid], str]] = {"text": _text, "markdown": _markdown, "latex": _latex}


def render(grid: Grid, format: PagesFormat = "text") -> str:
    """Show a table of plain cells, with everything that stands below it.

    Raises:
        ValueError: If the format is not one of these.
    """
    check_choice("format", format, PagesFormat)
    return _RENDERERS[format](grid)
