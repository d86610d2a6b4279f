"""The rows of a run: one per image, written durably and read by the report.

A run folder is::

    RUN/manifest.json       the description of the run, written once, atomically, before the first row
    RUN/rows/*.jsonl        the rows, in a new file per attempt and rank, with a checksum per line
    RUN/weights, RUN/maps   tensors, in files that are written under a temporary name and then renamed
    RUN/.lock               held by the running process; the kernel releases it when the process dies

Guarantees: after `RowWriter.write` has returned, its rows survive a crash of the process and, as far as the file
system keeps its promises, of the machine. A line that a crash has cut short is not read as a row, a line with changed
bytes is detected, and rows are never overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import operator
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from optcam_pl.checks import check_count, check_positive
from optcam_pl.runs.files import NEW_FILE, RunFolderError, sync_data, sync_folder, write_all

Status = Literal["ok", "degenerate", "error"]
Score = float | list[float] | None

STATUSES = frozenset(get_args(Status))
_ROW_FILE = re.compile(r"a(\d+)-r(\d+)\.jsonl")
_SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"}\Z')


def _finite(value: float | None) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _score(value: Any) -> Score:
    if isinstance(value, (list, tuple)):
        values = [float(v) for v in value]
        return values if all(map(math.isfinite, values)) else None
    return _finite(value)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a run for one image.

    Numbers that are not finite become None at construction; a list with such a number becomes None as a whole. A row
    that is read back from its file is therefore equal to the original.

    Attributes:
        index: Position of the image in the dataset, from 0.
        id: Name of the image, the same in every run and on every machine.
        status: "ok"; "degenerate" if the map is constant or a score is undefined; "error" if there is no result.
        reason: Why the status is not "ok".
        target: The explained class.
        predicted: The class that the network predicts for the unmasked image; -1 if unknown.
        p: Probability of the target for the image, in [0, 1], or its score if the network's `link` is identity; None
            if there is none.
        o: The same for the masked image.
        scores: Values by metric; None if the metric is undefined for this image.
        seconds: Time spent on this image.

    Raises:
        ValueError: If the index is negative (padding is not an image), the status is unknown, or the time is negative
            or not finite.
        TypeError: If a value has another type.

    Example:
        >>> row = Row(index=3, id="cat.png", status="ok", target=281, predicted=281, p=0.5, o=0.75,
        ...           scores={"average_gain": 50.0, "average_drop": float("nan")}, seconds=0.5)
        >>> row.scores["average_drop"] is None
        True
        >>> Row.from_json(row.to_json()) == row
        True
    """

    index: int
    id: str
    status: Status
    reason: str = ""
    target: int
    predicted: int
    p: float | None
    o: float | None
    scores: dict[str, Score] = field(default_factory=dict)
    seconds: float

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"Expected `status` to be one of {sorted(STATUSES)}, but got {self.status!r}.")
        for name in ("index", "target", "predicted"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if self.index < 0:
            raise ValueError(f"Expected `index` to be 0 or more, but got {self.index}.")
        if not (isinstance(self.id, str) and isinstance(self.reason, str)):
            raise TypeError(f"Expected `id` and `reason` to be strings, but got {self.id!r} and {self.reason!r}.")
        if not isinstance(self.scores, Mapping):
            raise TypeError(f"Expected `scores` to be a dict, but got {self.scores!r}.")
        seconds = _finite(self.seconds)
        if seconds is None or seconds < 0:
            raise ValueError(f"Expected `seconds` to be a finite number, 0 or more, but got {self.seconds}.")
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "p", _finite(self.p))
        object.__setattr__(self, "o", _finite(self.o))
        object.__setattr__(self, "scores", {key: _score(value) for key, value in self.scores.items()})

    def to_json(self) -> str:
        """One line of ASCII JSON without newlines or NaN, whatever the id contains (even undecodable bytes)."""
        return json.dumps(self.__dict__, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Row:
        """Read a row from its line. Raises ValueError or TypeError if the text is not a row."""
        return cls(**json.loads(text))


def _seal(row: Row) -> bytes:
    """The line of a row: its JSON, with a checksum of the preceding bytes as the last entry."""
    body = row.to_json().encode("ascii")[:-1]
    return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def _unseal(line: bytes) -> Row:
    """Read a row from its sealed line. Raises a ValueError that says what is wrong with the line."""
    seal = _SEAL.search(line)
    if seal is None:
        raise ValueError("no checksum at its end")
    body = line[: seal.start()]
    if zlib.crc32(body) != int(seal[1], 16):
        raise ValueError("its checksum does not match")
    try:
        return _row(json.loads(body + b"}"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"it is not a row: {error}") from error


_KINDS: dict[str, tuple[type, ...]] = {
    **{"index": (int,), "id": (str,), "status": (str,), "reason": (str,), "target": (int,), "predicted": (int,)},
    **{"p": (float, NoneType), "o": (float, NoneType), "scores": (dict,), "seconds": (float,)},
}


def _row(entries: Any) -> Row:
    """`Row(**entries)`; several times as fast for the entries of a row that `Row.to_json` has written."""
    if type(entries) is not dict or entries.keys() != _KINDS.keys():
        return Row(**entries)
    for name, kinds in _KINDS.items():
        if type(entries[name]) not in kinds:
            return Row(**entries)
    numbers = [entries["seconds"], entries["p"] or 0.0, entries["o"] or 0.0, *entries["scores"].values()]
    for number in numbers:  # a number that is not finite minus itself is NaN
        if number is not None and (type(number) is not float or number - number != 0.0):
            return Row(**entries)
    if entries["index"] < 0 or entries["seconds"] < 0 or entries["status"] not in STATUSES:
        return Row(**entries)
    row = object.__new__(Row)
    row.__dict__.update(entries)
    return row


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Without the search for circles of objects, which looks at all rows again and again while they are read."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The rows of a run, one for each index, sorted by index; `damaged` has a sentence for each unreadable line."""

    rows: tuple[Row, ...] = ()
    damaged: tuple[str, ...] = ()

    def __getitem__(self, item: Any) -> Any:  # an index or a slice
        return self.rows[item]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def _row_files(run_dir: Path) -> list[tuple[int, int, Path]]:
    """(attempt, rank, path) of every row file, the oldest attempt first."""
    found = ((_ROW_FILE.fullmatch(path.name), path) for path in (run_dir / "rows").glob("*.jsonl"))
    return sorted((int(match[1]), int(match[2]), path) for match, path in found if match)


def row_files(run_dir: str | os.PathLike[str]) -> list[Path]:
    """The files of a run's rows, the oldest attempt first."""
    return [path for _, _, path in _row_files(Path(run_dir))]


def read_rows(run_dir: str | os.PathLike[str], strict: bool = False) -> Rows:
    """Read all rows of a run; a folder without row files has none.

    A crash may have cut the last line of a file short; such a line is ignored. An index may occur in several files
    (after a block was repeated) if the rows differ only in their seconds and the wording of their reason; the oldest
    row is kept. Other unreadable lines are collected in `Rows.damaged`; with `strict`, the first one raises an error.

    Raises:
        RunFolderError: If two rows of one index differ, a file cannot be read or, with `strict`, a line is damaged.
    """
    with _no_garbage():
        return _read(Path(run_dir), strict)


def _read(run_dir: Path, strict: bool) -> Rows:
    rows: dict[int, tuple[Row, Path]] = {}
    damaged: list[str] = []
    for _, _, path in _row_files(run_dir):
        try:
            *lines, rest = path.read_bytes().split(b"\n")
        except OSError as error:
            raise RunFolderError(f"Cannot read {path}: {error.strerror}.") from error
        for number, line in enumerate([*lines, rest], start=1):
            try:
                row = _unseal(line)
            except ValueError as error:
                if number > len(lines):  # without its newline: empty, or cut short by a crash
                    continue
                damaged.append(f"{path}, line {number}: {error}")
                if strict:
                    raise RunFolderError(f"Damaged row in {damaged[-1]}.") from error
                continue
            first, where = rows.setdefault(row.index, (row, path))
            if first is not row and replace(row, seconds=first.seconds, reason=first.reason) != first:
                raise RunFolderError(f"Two different rows of image {row.index} ({row.id!r}): in {where} and in {path}.")
    return Rows(tuple(rows[index][0] for index in sorted(rows)), tuple(damaged))


class RowWriter:
    """Appends rows to a new file, `RUN/rows/a<attempt>-r<rank>.jsonl`; the attempt is one more than the last.

    This is a context manager. Entering it creates the folder and the file, so an unwritable place is noticed at once.
    Rows are durable when `write` returns. After a failed write the writer is closed, and earlier rows remain readable.
    A run that is continued writes only the missing rows: on a device that does not repeat its results bit for bit, a
    second row of an image would contradict the first.

    Args:
        run_dir: The run's folder.
        rank: Number of the process (or shard), 0 or more.

    Raises:
        RunFolderError: If the folder or the file cannot be created or written; the message names it.
    """

    def __init__(self, run_dir: str | os.PathLike[str], rank: int = 0) -> None:
        self.run_dir, self.rank = Path(run_dir), check_count("rank", rank)
        self.path: Path | None = None
        self._fd: int | None = None
        self._size = 0

    def __enter__(self) -> RowWriter:
        folder = self.run_dir / "rows"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd, self.path = self._new_file(folder)
            self._size = 0
            sync_folder(folder)
        except OSError as error:
            self.close()
            raise RunFolderError(f"Cannot write rows into {folder}: {error.strerror}.") from error
        return self

    def _new_file(self, folder: Path) -> tuple[int, Path]:
        while True:
            attempt = 1 + max((a for a, rank, _ in _row_files(self.run_dir) if rank == self.rank), default=0)
            path = folder / f"a{attempt:04d}-r{self.rank:05d}.jsonl"
            with contextlib.suppress(FileExistsError):  # another shard was faster: try the next number
                return os.open(path, NEW_FILE, 0o666), path

    def write(self, rows: Iterable[Row]) -> None:
        """Append the rows of a block and return when they are on the disk, after one write and one sync.

        Raises:
            RunFolderError: If they cannot be written, for example because the disk is full or the file was deleted.
        """
        if self._fd is None:
            raise RunFolderError(f"The writer of {self.path or self.run_dir} is closed.")
        data = b"".join(map(_seal, rows))
        try:
            write_all(self._fd, data)
            sync_data(self._fd)
            if not os.fstat(self._fd).st_nlink:  # writing to a deleted file succeeds but keeps nothing
                raise FileNotFoundError(errno.ENOENT, "the file was deleted")  # noqa: TRY301 - reported like the others
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            self.close()
            if isinstance(error, OSError):
                raise RunFolderError(f"Cannot write rows to {self.path}: {error.strerror}.") from error
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file. From then on, `write` raises an error."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __exit__(self, *_: object) -> None:
        self.close()


def missing(rows: Iterable[Row], n: int) -> list[int]:
    """The indices below `n` without a row, in order."""
    have = {row.index for row in rows}
    return [index for index in range(n) if index not in have]


def completed_blocks(rows: Iterable[Row], n: int, block_size: int) -> set[int]:
    """The blocks in which every image has a row, for `n` images; block k starts at index k * `block_size`.

    Raises:
        ValueError: If `block_size` is not positive.

    Example:
        >>> row = dict(id="", status="ok", target=0, predicted=0, p=None, o=None, seconds=0)
        >>> completed_blocks([Row(index=i, **row) for i in (0, 1, 2, 4)], n=5, block_size=2)
        {0, 2}
    """
    check_positive("block_size", block_size)
    return set(range(-(-n // block_size))) - {index // block_size for index in missing(rows, n)}


def format_ranges(numbers: Iterable[int]) -> str:
    """Format integers as ranges, for messages.

    Example:
        >>> format_ranges([7, 1, 2, 3])
        '1-3, 7'
    """
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
