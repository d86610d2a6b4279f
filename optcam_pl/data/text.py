"""Text files and labels as people have them: read right, or refused in words."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# As pandas, R, spreadsheets and databases write that there is nothing. Lower-case "none" is a word, and a class's name.
_MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "-nan", "-NaN", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "null", "NULL")
)
# With a decimal comma or separated thousands, too, which are refused.
_NUMBER = re.compile(r"[+-]?(\d[\d.,]*|[.,]\d+)([eE][+-]?\d+)?")
_MOST = 1_000_000  # classes


def check_encoding(encoding: str) -> str:
    """The name of an encoding. Raises ValueError where Python knows none of that name."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(
            f"Expected `encoding` to name one, such as 'utf-8', 'latin-1' or 'utf-16', but got {encoding!r}."
        ) from None


def decode_text(data: bytes, source: str, encoding: str = "utf-8", advice: str = "") -> str:
    """The text of a file, without the mark that some programs put at its beginning.

    Args:
        data: its bytes.
        source: the file's name, for the message.
        encoding: what it is written in.
        advice: what else can be done about another encoding than saving the file anew.

    Raises:
        ValueError: it is written in another encoding.
    """
    try:
        text = data.decode("utf-8-sig" if check_encoding(encoding) == "utf-8" else encoding)
        where = f"a zero character in line {text[: text.index(chr(0))].count(chr(10)) + 1}" if "\0" in text else ""
    except UnicodeDecodeError as fault:
        where = f"byte 0x{data[fault.start]:02X} in line {data[: fault.start].count(10) + 1}"
    if where:
        raise ValueError(
            f"Expected the text file {source!r} to be written in {encoding}, but it is not: {where} is none of its "
            f"characters. Save it as UTF-8{advice}."
        )
    return text


def read_text(file: Path, encoding: str = "utf-8", advice: str = "") -> str:
    """`decode_text` of a file."""
    return decode_text(file.read_bytes(), str(file), encoding, advice)


def is_missing(text: str) -> bool:
    """Whether a cell of a table says that there is nothing."""
    return text.strip() in _MISSING


def class_number(label: object) -> int | None:
    """The number that a label is, -1 for none; None where it is a word.

    A number may be written as 3, 3.0, 003, 3e0, or with spaces around it.

    Raises:
        ValueError: it is a number, but not one of a class.
        TypeError: it is neither a number nor text.

    Example:
        >>> [class_number(label) for label in (3, "3", " 3.0 ", "1e1", 10.0, "", "nan", -1, None, "cat")]
        [3, 3, 3, 10, 10, -1, -1, -1, -1, None]
        >>> class_number("2.5")
        Traceback (most recent call last):
        ValueError: Expected a label to be a class's name or its number (0, 1, ...; -1 or empty: none), but got '2.5'.
    """
    if label is None or (isinstance(label, (float, np.floating)) and math.isnan(label)):
        return -1
    if isinstance(label, str):
        text = label.strip()
        if is_missing(text):
            return -1
        if not _NUMBER.fullmatch(text):
            return None
        value = float(text) if "," not in text and text.count(".") < 2 else math.nan
    elif isinstance(label, (bool, int, float, np.bool_, np.integer, np.floating)):
        value = float(label) if abs(label) < _MOST else math.inf
    else:
        raise TypeError(f"Expected a label to be a number or text, but got {type(label).__name__}.")
    if not (-1 <= value < _MOST and value.is_integer()):
        raise ValueError(
            f"Expected a label to be a class's name or its number (0, 1, ...; -1 or empty: none), but got {label!r}."
        )
    return int(value)


def class_names_of(labels: Iterable[tuple[int, object]], source: str) -> tuple[str, ...] | None:
    """The classes that labels tell by themselves: words sorted, or numbers from 0; None where there is no label.

    Args:
        labels: the number of its row, and each label.
        source: the table's name, for the message.

    Raises:
        ValueError: a number is not one of a class, or there are words and numbers; the rows are named.

    Example:
        >>> class_names_of([(2, "dog"), (3, ""), (4, "cat")], "the table")
        ('cat', 'dog')
        >>> class_names_of([(2, "3.0"), (3, "nan")], "the table")
        ('0', '1', '2', '3')
    """
    words: dict[str, int] = {}
    numbers: dict[int, tuple[int, object]] = {}
    for row, label in labels:
        try:
            number = class_number(label)
        except (TypeError, ValueError) as fault:
            raise ValueError(f"Row {row} of {source} is wrong: {fault}") from fault
        if number is None:
            words.setdefault(str(label).strip(), row)
        elif number >= 0:
            numbers.setdefault(number, (row, label))
    if words and numbers:
        (word, row), (other, label) = next(iter(words.items())), next(iter(numbers.values()))
        raise ValueError(
            f"Expected the labels of {source} to be all numbers or all words, but row {row} has {word!r} and row "
            f"{other} has {label!r}: `classes` says which names there are, and their numbers."
        )
    return tuple(map(str, range(max(numbers) + 1))) if numbers else tuple(sorted(words)) or None
