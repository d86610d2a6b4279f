"""Reads text files and labels in the forms that occur in practice, or refuses them in words."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# How pandas, R, spreadsheets and databases write an empty cell. Lower-case "none" is a word: it may name a class.
_MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "-nan", "-NaN", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "null", "NULL")
)
# Matches a decimal comma and separated thousands, too, which are refused.
_NUMBER = re.compile(r"[+-]?(\d[\d.,]*|[.,]\d+)([eE][+-]?\d+)?")
_MOST = 1_000_000  # classes


def check_encoding(encoding: str) -> str:
    """Return the name of an encoding. Raises ValueError if Python does not know it."""
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(
            f"Expected `encoding` to name one, such as 'utf-8', 'latin-1' or 'utf-16', but got {encoding!r}."
        ) from None


def decode_text(data: bytes, source: str, encoding: str = "utf-8", advice: str = "") -> str:
    """The text of a file, without the byte order mark that some programs put at its beginning.

    Args:
        data: its bytes.
        source: the file's name, for the message.
        encoding: the encoding of the data.
        advice: what else helps against a wrong encoding, besides saving the file again.

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
    """Whether a cell of a table means "empty"."""
    return text.strip() in _MISSING


def class_number(label: object) -> int | None:
    """The number of a label, -1 for none; None if the label is a word.

    A number may be written as 3, 3.0, 003, 3e0, or with spaces around it.

    Raises:
        ValueError: it is a number, but not the number of a class.
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
    """The classes that follow from the labels: sorted words, or numbers from 0; None if there is no label.

    Args:
        labels: the row number and the label of each row.
        source: the table's name, for the message.

    Raises:
        ValueError: a number is not the number of a class, or words and numbers are mixed; the message names the rows.

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
