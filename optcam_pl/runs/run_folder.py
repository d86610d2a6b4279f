"""The folder of an active run: its lock and manifest, the blocks that are left, and its new rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch.callbacks import Callback

from optcam_pl.runs.behind import Job, WriteBehind, helpers
from optcam_pl.runs.files import RunFolderError, RunLock
from optcam_pl.runs.manifest import MANIFEST, FingerprintMismatch, check_fingerprint, read_manifest, write_manifest
from optcam_pl.runs.processes import FAILED, TOO_MANY_ERRORS, Processes
from optcam_pl.runs.rows import Row, RowWriter, completed_blocks, missing, read_rows
from optcam_pl.runs.signals import Stopped

Resume: TypeAlias = Literal["auto", "never", "require"]
Shard: TypeAlias = tuple[int, int]  # which, counted from 1, of how many


class FileWriter(Callback, ABC):
    """A callback that stores files for each image. A block is only done when these files exist."""

    @abstractmethod
    def lacking(self, run_dir: Path, rows: Iterable[Row]) -> set[int]:
        """The indices of the images with a row whose files are incomplete."""


@dataclass(frozen=True)
class Plan:
    """What a start of a run has found in its folder and has to do. One process makes the plan for all.

    Attributes:
        todo: the numbers of the blocks to do.
        known: the indices of images in these blocks that already have a row, so that no row is written twice.
        done: the number of images of the dataset with a row.
        errors: the number of those that could not be read.
        manifest: the run's manifest.
    """

    todo: tuple[int, ...]
    known: frozenset[int]
    done: int
    errors: int
    manifest: Mapping[str, Any]


class RunFolder:
    """The folder of an active run: locked, with one manifest and at most one row per image.

    Args:
        run_dir: the run's folder.
        resume: "auto" continues the run in the folder or begins a new one; "never" refuses a folder with a run, and
            "require" refuses a folder without one.
        shard: (i, n) does only the blocks k with k mod n = i - 1. Independent processes do the other blocks in the same
            folder.
        processes: the processes that share the blocks.
    """

    def __init__(
        self, run_dir: Path, resume: Resume = "auto", shard: Shard | None = None, processes: Processes | None = None
    ) -> None:
        self.run_dir, self.resume, self.shard = run_dir, resume, shard
        self.processes = Processes() if processes is None else processes
        self.plan = Plan((), frozenset(), 0, 0, {})
        self._left: Callable[[Sequence[Row]], list[int]] = lambda _: []
        self._open = ExitStack()
        self._writer: RowWriter | None = None
        self._behind = WriteBehind(helpers())
        self._jobs: list[Job] = []

    def prepare(
        self,
        describe: Callable[[Mapping[str, Any] | None], Mapping[str, Any]],
        images: int,
        block_size: int,
        lacking: Callable[[Sequence[Row]], set[int]],
        broadcast: Callable[[Any], Any],
    ) -> Plan:
        """Decide on rank 0 what has to be done, and tell the other processes.

        Args:
            describe: returns the manifest of the run. It is called once, on rank 0, with the manifest of the run in the
                folder, from which a run that goes on takes what the first start has chosen, or with None. The two
                fingerprints must be equal. Other shards wait meanwhile.
            images: the number of images of the dataset.
            block_size: the number of images in a block.
            lacking: returns the indices of images that lack a file and have to be done again.
            broadcast: gives every process the argument of the first process.

        Raises:
            RunFolderError: another process uses this folder, or it cannot be read or written.
            FingerprintMismatch: the run in the folder was started with other settings.
            SystemExit: on the other processes in these cases. The first one says why.
        """
        plan: Plan | None = None
        self._left = lambda rows: self._indices_left(rows, images, block_size, lacking)
        try:
            if self.processes.rank == 0:
                plan = self._plan(describe, images, block_size, lacking)
        finally:  # also after an error, or the other processes would wait forever
            self.plan = broadcast(plan)
        if self.plan is None:
            raise SystemExit(2)
        return self.plan

    def _plan(
        self,
        describe: Callable[[Mapping[str, Any] | None], Mapping[str, Any]],
        images: int,
        block_size: int,
        lacking: Callable[[Sequence[Row]], set[int]],
    ) -> Plan:
        if self.resume == "require" and not (self.run_dir / MANIFEST).exists():  # before anything is written
            raise RunFolderError(f"Expected a run in {self.run_dir} to continue, but there is none.")
        self._lock()
        manifest = self._check(describe)
        rows = read_rows(self.run_dir)
        todo = tuple(self._blocks_left(rows, images, block_size, lacking))
        blocks = {*todo}
        known = frozenset(row.index for row in rows if row.index // block_size in blocks)
        return Plan(todo, known, len(rows), sum(row.status == "error" for row in rows), manifest)

    def _blocks_left(
        self, rows: Sequence[Row], n: int, block_size: int, lacking: Callable[[Sequence[Row]], set[int]]
    ) -> list[int]:
        """The blocks of this shard with an image that has no row or lacks a file."""
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
        """The indices of the images that this start should have done but did not.

        Args:
            rows: the rows in the folder after the run has ended.
        """
        return self._left(rows)

    def _lock(self) -> None:
        """Lock the folder for this process, or for all shards of the same division."""
        self._open.enter_context(RunLock(self.run_dir, shared=self.shard is not None))
        if self.shard is None:
            return
        i, n = self.shard
        for path in self.run_dir.glob(".shard-*-of-*.lock"):
            if not path.name.endswith(f"-of-{n}.lock"):
                with RunLock(self.run_dir, path.name):  # refused while shards of another division are active
                    pass
        self._open.enter_context(RunLock(self.run_dir, f".shard-{i}-of-{n}.lock"))

    def _check(self, describe: Callable[[Mapping[str, Any] | None], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Write the manifest at the first start; compare with it at later starts. Returns this start's."""
        with RunLock(self.run_dir, ".manifest.lock", wait=60):  # shards may start together
            begun = (self.run_dir / MANIFEST).exists()
            if begun and self.resume == "never":
                raise RunFolderError(f"Expected no run in {self.run_dir} with `resume` never, but there is one.")
            if not begun and (rows := read_rows(self.run_dir)):
                raise RunFolderError(
                    f"Expected a run in {self.run_dir} to have a {MANIFEST}, but it has only {len(rows)} rows, whose "
                    "settings nobody knows. Put the file back, or give another folder."
                )
            old = read_manifest(self.run_dir) if begun else None
            manifest = describe(old)
            if old is not None:
                self._check_same(old, manifest)
            else:
                write_manifest(self.run_dir, manifest)
        return manifest

    def _check_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, now = ({"stage": one["stage"], **one["fingerprint"]} for one in (old, new))
        if "device" in new and "device" not in old:  # of an early version, whose fingerprints say "cpu" of every device
            before["device"] = now["device"]
        try:
            check_fingerprint(before, now)
        except FingerprintMismatch as error:
            raise FingerprintMismatch(
                f"{error}\nOne folder holds one run, here {old['explainer']} in {self.run_dir}. Give this one another: "
                "`--run_dir`, or from Python the task's `run_dir` or a trainer with a logger of its own.",
                error.keys,
            ) from None

    def open(self) -> None:
        """Create the row file of this process."""
        i, _ = self.shard or (1, 1)
        self._writer = RowWriter(self.run_dir, (i - 1) * self.processes.size + self.processes.rank)
        self._open.enter_context(self._writer)
        self._open.enter_context(self._behind)  # left first: what is handed over is written before the file is closed

    def store(self, job: Job) -> None:
        """Have something of the block in hand written, before its rows.

        Args:
            job: writes it, in another thread while the next block is computed (see `WriteBehind`). It holds all that it
                needs, on the CPU, and nobody changes that anymore.
        """
        self._jobs.append(job)

    def write(self, rows: Iterable[Row], max_errors: int | None = None) -> None:
        """End a block: have what was stored and then those of its rows that are not there yet written.

        The block before is durable when this returns, and this one when the next call or `finish` returns.

        Args:
            rows: the rows of one block.
            max_errors: end the run on all processes when more images than this could not be read.

        Raises:
            RunFolderError: something of the block before could not be written.
        """
        assert self._writer is not None  # see open
        new = [row for row in rows if row.index not in self.plan.known]
        jobs, self._jobs = self._jobs, []
        if jobs or new:
            self._behind.hand_over(jobs, partial(self._writer.write, new) if new else None)
        errors = sum(row.status == "error" for row in new)
        if errors:
            self.limit_errors(max_errors, errors)

    def limit_errors(self, most: int | None, more: int = 0) -> None:
        """Have the run ended on all processes (see `heed`) when more images could not be read than are allowed.

        Args:
            most: as many may; None sets no limit.
            more: as many could not be read in this process since the last call.
        """
        if most is not None and self.plan.errors + self.processes.add("errors", more) > most:
            self.processes.stop(TOO_MANY_ERRORS)

    def heed(self) -> None:
        """End the run if any of its processes was told to; call this between two blocks.

        Raises:
            Stopped: by a signal; everything that was handed over is written.
            RunFolderError: more errors than `max_errors`; SystemExit on the other processes.
        """
        if self.processes.heed() is not None:
            self.finish()

    def finish(self) -> None:
        """Write what was handed over, close the row file and wait for the other processes.

        Raises:
            RunFolderError: it could not be written; and what `heed` raises.
        """
        self._behind.settle()
        if self._writer is not None:
            self._writer.close()
        reason = self.processes.leave()
        if reason is None:
            return
        self.close()
        if reason == FAILED:
            raise RunFolderError("Ended because another process of this run failed; its message says why.")
        if reason != TOO_MANY_ERRORS:
            raise Stopped(reason)
        if self.processes.rank != 0:
            raise SystemExit(2)
        errors = [row for row in read_rows(self.run_dir) if row.status == "error"]
        raise RunFolderError(
            f"Ended because more images could not be read than `max_errors` allows: {len(errors)} in {self.run_dir}, "
            f"most recently {errors[-1].id!r} ({errors[-1].reason})."
        )

    def fail(self) -> None:
        """Tell the other processes, on all machines, that this one has failed, then `close`."""
        with suppress(RuntimeError):  # they may have ended already
            self.processes.stop(FAILED)
        self.close()

    def close(self) -> None:
        """Write what was handed over, close the row file and release the lock.

        This may be called at any time, any number of times.
        """
        self._open.close()
