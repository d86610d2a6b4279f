"""Fonts for names in any script: one of the machine's that has their characters; without one, names are escaped.

Pillow's own font has the letters of English, and matplotlib's has accents, Greek and Cyrillic. For others, such as
those of Chinese class names, a drawing shows empty boxes, and matplotlib warns of each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text


def drawable(text: str) -> str:
    r"""A text with an escape for every character that no font of this machine has.

    >>> print(drawable("naïve Ж"), drawable("\U00103456"))
    naïve Ж \U00103456
    """
    return "".join(c if c in _own() or _font_with(c) else _escaped(c) for c in text)


def in_one_font(text: str) -> tuple[str, str | None]:
    """A text as it can be drawn with a single font, and that font's file.

    Returns:
        The text, with an escape for every character that is not ASCII where no font has all of them; the file is None
        if all are ASCII then, which every font has.
    """
    text = drawable(text)
    if text.isascii():
        return text, None
    if all(c in _own() for c in text):
        return text, _own_file()
    file = _font_with("".join(sorted(set(text))))
    return (text, file) if file else (_escaped(text), None)


def legible(figure: Figure) -> Figure:
    """The same figure, finished before, with fonts for its words; characters that no font has are escaped.

    Nothing changes where matplotlib's own font has all of them.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            words = [label.get_text() for label in axis.get_ticklabels()]
            if not all(map(_known, words)):
                axis.set_ticks(axis.get_ticklocs(), list(map(drawable, words)))
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not _known(text.get_text()):
            text.set_text(drawable(text.get_text()))
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *_families(text.get_text())])))
    return figure


def _known(text: str) -> bool:
    return text.isascii() or all(c in _own() for c in text)


def _families(text: str) -> Iterator[str]:
    """The fonts that have what matplotlib's own lacks: one that has all of it, or one for each character."""
    lacking = "".join(sorted({c for c in text if c not in _own()}))
    whole = _font_with(lacking)
    files = [whole] if whole else map(_font_with, lacking)
    yield from (_family_of(file) for file in files if file)


@cache
def _family_of(file: str) -> str:
    """A name that stands for this file alone: matplotlib chooses among the files of a family by weight and style."""
    entry = next(entry for entry in fontManager.ttflist if entry.fname == file)
    name = f"{entry.name} for names"
    fontManager.ttflist.append(replace(entry, name=name, style="normal", weight=400))
    return name


def _escaped(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


@cache
def _own_file() -> str:
    return str(findfont(FontProperties()))


@cache
def _own() -> frozenset[str]:
    """The characters of matplotlib's own font, and those that are not drawn, such as the end of a line."""
    return _characters(_own_file()) | {"\n", "\t", "\r"}


@cache
def _characters(file: str) -> frozenset[str]:
    """What a font has; nothing if it cannot be read or cannot be drawn at any size."""
    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _font_with(characters: str) -> str | None:
    """The file of a font with all of these characters: upright, of normal weight and without serifs if there is one."""
    for entry in sorted(fontManager.ttflist, key=_order):
        # The last resort is a font of boxes with numbers in them.
        if not entry.name.lstrip(".").startswith("Last") and _characters(entry.fname).issuperset(characters):
            return str(entry.fname)
    return None


def _order(entry: FontEntry) -> tuple[bool, bool, bool, str, str]:
    upright, normal = entry.style == "normal", entry.weight in (400, "normal", "regular", "book")
    return not upright, not normal, "sans" not in entry.name.lower(), entry.name, entry.fname
