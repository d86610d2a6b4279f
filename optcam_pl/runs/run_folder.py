"""A run's folder while the run is at work: its lock and manifest, which blocks are left, and its new rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch.callbacks import Callback

from optcam_pl.runs.files import RunFolderError, RunLock
from optcam_pl.runs.manifest import MANIFEST, FingerprintMismatch, check_fingerprint, read_manifest, write_manifest
from optcam_pl.runs.processes import FAILED, TOO_MANY_ERRORS, Processes
from optcam_pl.runs.rows import Row, RowWriter, completed_blocks, missing, read_rows
from optcam_pl.runs.signals import Stopped

Resume: TypeAlias = Literal["auto", "never", "require"]
Shard: TypeAlias = tuple[int, int]  # which, counted from 1, of how many


class FileWriter(Callback, ABC):
    """A callback that stores files for each image. A block is done only when these files exist."""

    @abstractmethod
    def lacking(self, run_dir: Path, rows: Iterable[Row]) -> set[int]:
        """The indices of the rows' images whose files are not all there."""


@dataclass(frozen=True)
class Plan:
    """What a start of a run finds in its folder, and what it has to do. One process makes it for all.

    Attributes:
        todo: numbers of the blocks to do.
        known: indices of images in these blocks that have a row already, so that none is written again.
        done: number of images of the dataset with a row.
        errors: number of those that could not be read.
    """

    todo: tuple[int, ...]
    known: frozenset[int]
    done: int
    errors: int


class RunFolder:
    """The folder of a run at work: locked, with one manifest, and at most one row for each image.

    Args:
        run_dir: the run's folder.
        resume: "auto" continues a run that is in the folder, or begins one; "never" refuses a folder with a run,
            "require" one without.
        shard: for (i, n), do only the blocks k with k mod n = i - 1. Independent processes do the other blocks into
            the same folder.
        processes: the processes that share these blocks.
    """

    def __init__(
        self, run_dir: Path, resume: Resume = "auto", shard: Shard | None = None, processes: Processes | None = None
    ) -> None:
        self.run_dir, self.resume, self.shard = run_dir, resume, shard
        self.processes = Processes() if processes is None else processes
        self.plan = Plan((), frozenset(), 0, 0)
        self._left: Callable[[Sequence[Row]], list[int]] = lambda _: []
        self._open = ExitStack()
        self._writer: RowWriter | None = None

    def prepare(
        self,
        manifest: Mapping[str, Any],
        block_size: int,
        lacking: Callable[[Sequence[Row]], set[int]],
        broadcast: Callable[[Any], Any],
    ) -> Plan:
        """Decide on rank 0 what there is to do, and tell the other processes.

        Args:
            manifest: the run's; its fingerprint must equal that of a run that is in the folder.
            block_size: images in a block.
            lacking: tells which rows' images lack a file and have to be done again.
            broadcast: gives every process the first one's argument.

        Raises:
            RunFolderError: another process works in this folder, or it cannot be read or written.
            FingerprintMismatch: the folder's run was made with other settings.
            SystemExit: on the other processes in these cases. The first one says why.
        """
        plan: Plan | None = None
        self._left = lambda rows: self._indices_left(rows, manifest["images"], block_size, lacking)
        try:
            if self.processes.rank == 0:
                plan = self._plan(manifest, block_size, lacking)
        finally:  # also after an error: else the others would wait for ever
            self.plan = broadcast(plan)
        if self.plan is None:
            raise SystemExit(2)
        return self.plan

    def _plan(self, manifest: Mapping[str, Any], block_size: int, lacking: Callable[[Sequence[Row]], set[int]]) -> Plan:
        if self.resume == "require" and not (self.run_dir / MANIFEST).exists():  # before anything is written
            raise RunFolderError(f"Expected a run in {self.run_dir} to go on with, but there is none.")
        self._lock()
        self._check(manifest)
        n, rows = manifest["images"], read_rows(self.run_dir)
        todo = tuple(self._blocks_left(rows, n, block_size, lacking))
        blocks = {*todo}
        known = frozenset(row.index for row in rows if row.index // block_size in blocks)
        return Plan(todo, known, len(rows), sum(row.status == "error" for row in rows))

    def _blocks_left(
        self, rows: Sequence[Row], n: int, block_size: int, lacking: Callable[[Sequence[Row]], set[int]]
    ) -> list[int]:
        """The blocks of this shard in which an image has no row or lacks a file."""
        without = lacking(rows)
        done = completed_blocks([row for row in rows if row.index not in without], n, block_size)
        i, shards = self.shard or (1, 1)
        return [block for block in range(i - 1, -(-n // block_size), shards) if block not in done]

    def _indices_left(
        self, rows: Sequence[Row], n: int, block_size: int, lacking: Callable[[Sequence[Row]], set[int]]
    ) -> list[int]:
        blocks = {*self._blocks_left(rows, n, block_size, lacking)}
        without = {*missing(rows, n), *lacking(rows)}
        return sorted(index for index in without if index // block_size in blocks)

    def left(self, rows: Sequence[Row]) -> list[int]:
        """The indices of the images that this start had to do and did not.

        Args:
            rows: of the folder, once the run has ended.
        """
        return self._left(rows)

    def _lock(self) -> None:
        """Lock the folder for this process, or for the shards of one number of shards."""
        self._open.enter_context(RunLock(self.run_dir, shared=self.shard is not None))
        if self.shard is None:
            return
        i, n = self.shard
        for path in self.run_dir.glob(".shard-*-of-*.lock"):
            if not path.name.endswith(f"-of-{n}.lock"):
                with RunLock(self.run_dir, path.name):  # refused where shards of another number are at work
                    pass
        self._open.enter_context(RunLock(self.run_dir, f".shard-{i}-of-{n}.lock"))

    def _check(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest at the first start; compare with it at a later one."""
        with RunLock(self.run_dir, ".manifest.lock", wait=60):  # shards may start together
            begun = (self.run_dir / MANIFEST).exists()
            if begun and self.resume == "never":
                raise RunFolderError(f"Expected no run in {self.run_dir} with `resume` never, but there is one.")
            if begun:
                self._check_same(read_manifest(self.run_dir), manifest)
            else:
                write_manifest(self.run_dir, manifest)

    def _check_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        try:
            check_fingerprint(*({"stage": one["stage"], **one["fingerprint"]} for one in (old, new)))
        except FingerprintMismatch as error:
            raise FingerprintMismatch(
                f"{error}\nOne folder holds one run, here {old['explainer']} in {self.run_dir}. Give this one another: "
                "`--run_dir`, or from Python the task's `run_dir` or a trainer with a logger of its own.",
                error.keys,
            ) from None

    def open(self) -> None:
        """Make this process's file of rows."""
        i, _ = self.shard or (1, 1)
        self._writer = RowWriter(self.run_dir, (i - 1) * self.processes.size + self.processes.rank)
        self._open.enter_context(self._writer)

    def write(self, rows: Iterable[Row], max_errors: int | None = None) -> None:
        """Write the rows of a block that are not there yet. They are durable on return.

        Args:
            rows: of one block.
            max_errors: end the run on all processes if more images than this could not be read.

        Raises:
            RunFolderError: they cannot be written.
        """
        assert self._writer is not None  # see open
        new = [row for row in rows if row.index not in self.plan.known]
        if not new:
            return
        self._writer.write(new)
        errors = sum(row.status == "error" for row in new)
        if errors and max_errors is not None and self.plan.errors + self.processes.add("errors", errors) > max_errors:
            self.processes.stop(TOO_MANY_ERRORS)

    def heed(self) -> None:
        """Call between two blocks: ends the run if any of its processes was told to.

        Raises:
            Stopped: by a signal.
            RunFolderError: more errors than `max_errors`; SystemExit on the other processes.
        """
        if self.processes.heed() is not None:
            self.finish()

    def finish(self) -> None:
        """Close the rows and wait for the other processes; raises what `heed` raises."""
        if self._writer is not None:
            self._writer.close()
        reason = self.processes.leave()
        if reason is None:
            return
        self.close()
        if reason == FAILED:
            raise RunFolderError("Ended because another process of this run failed, which said why.")
        if reason != TOO_MANY_ERRORS:
            raise Stopped(reason)
        if self.processes.rank != 0:
            raise SystemExit(2)
        errors = [row for row in read_rows(self.run_dir) if row.status == "error"]
        raise RunFolderError(
            f"Ended because more images than `max_errors` allows could not be read: {len(errors)} in {self.run_dir}, "
            f"the last of them {errors[-1].id!r} ({errors[-1].reason})."
        )

    def fail(self) -> None:
        """Tell the other processes, on this machine and others, that this one has failed; then `close`."""
        with suppress(RuntimeError):  # they may have ended before
            self.processes.stop(FAILED)
        self.close()

    def close(self) -> None:
        """Close the rows and give the lock back; may be called at any time, any number of times."""
        self._open.close()
