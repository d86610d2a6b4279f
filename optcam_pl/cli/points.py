"""Several runs of one config: the points of a grid, the explainers at each of them, and what came of each run.

A run's folder is `FOLDER/<point>/<explainer>`, without a part that is the only one. What is done is seen by the run's
own folder (see `RunFolder`), so the same words continue what was begun, and another process may do other points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from optcam_pl.cli.grid import Axes, Point, short_names
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.cli.methods import Method
from optcam_pl.cli.output import tell
from optcam_pl.reports.grids import printable
from optcam_pl.reports.summary import load_run, summarize
from optcam_pl.reports.sweeps import Measured, sweep_figure
from optcam_pl.reports.tables import Summary
from optcam_pl.runs.manifest import MANIFEST
from optcam_pl.runs.run_folder import Shard


class Job(NamedTuple):
    """One run: a method at a point, or without a method the config's own explainer."""

    point: Point
    method: Method | None
    words: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """The run in words."""
        return " ".join(filter(None, (self.method.name if self.method else "", self.point.folder))) or "the run"


@dataclass
class Outcome:
    """What came of several runs.

    Attributes:
        failed: the runs that broke off, by name, with the error.
        exit_code: the largest of the runs' own.
        leader: whether this process is the one that prints.
    """

    failed: dict[str, Exception] = field(default_factory=dict)
    exit_code: int = 0
    leader: bool = True


def jobs(words: Sequence[str], of: Sequence[Point], methods: Sequence[Method], folder: Path) -> list[Job]:
    """The runs of every method at every point.

    Args:
        words: the words of `optcam test` that all runs share.
        of: the points.
        methods: the explainers; none stands for the config's own.
        folder: the folder above the runs.
    """
    found: list[Job] = []
    each: list[Method | None] = [*methods] or [None]
    for point in of:
        for method in each:
            chosen = method.added_to(words) if method else words
            place = folder / point.folder / (method.name if method else "")
            found.append(Job(point, method, ("test", *chosen, *point.words, f"--run_dir={place}"), place))
    return found


def run_all(todo: Sequence[Job], command: str) -> Outcome:
    """Do the runs one after the other; one that breaks off does not stop the others, but the same error of all does.

    Args:
        todo: the runs.
        command: the name of the command, for its messages.
    """
    outcome = Outcome()
    for number, job in enumerate(todo, 1):
        if outcome.leader:
            tell(f"\n{command}: run {number} of {len(todo)}: {printable(job.name)}")
        try:
            cli = OptcamCLI(job.words, job.method.name if job.method else None, place=f"{number}/{len(todo)}")
        except (Exception, SystemExit) as raised:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                raise  # the other processes wait, and would for ever
            # The parser has printed what is wrong, and would end the command.
            error = ValueError("a setting is wrong, as told above") if isinstance(raised, SystemExit) else raised
            tell(f"{command}: {job.name} broke off: {in_words(error)}")
            outcome.failed[job.name] = error
            if len(outcome.failed) == number == min(2, len(todo)) and _alike(outcome.failed.values()):
                raise  # it is the data, or the settings
            continue
        outcome.exit_code = max(outcome.exit_code, cli.exit_code)
        outcome.leader = bool(cli.trainer.is_global_zero)
    outcome.exit_code = 1 if outcome.failed else outcome.exit_code
    return outcome


def _alike(errors: Iterable[Exception]) -> bool:
    return len({in_words(error) for error in errors}) == 1


def in_words(error: Exception) -> str:
    """An error in one line."""
    return printable(f"{type(error).__name__}: {error}")


def of_shard(todo: Sequence[Job], shard: Shard | None) -> list[Job]:
    """The runs of the i-th of n parts, (i, n); all of them for None."""
    return list(todo) if shard is None else list(todo[shard[0] - 1 :: shard[1]])


def finished(of: Iterable[Job]) -> list[tuple[Job, Summary]]:
    """The runs that have been begun, with their numbers and intervals; a run that is not complete says so itself.

    A method has the name of its class, or where several have one class the names of the command line.
    """
    found = [(job, summarize(load_run(job.folder), "bca")) for job in of if (job.folder / MANIFEST).is_file()]
    names = {(summary.explainer, job.method.name) for job, summary in found if job.method}
    several = Counter(title for title, _ in names)
    return [
        (job, summary.named(job.method.name) if job.method and several[summary.explainer] > 1 else summary)
        for job, summary in found
    ]


def check_first(todo: Sequence[Job]) -> None:
    """Make the parts of the first run, so that what is wrong with all of them is told before anything runs.

    Raises:
        SystemExit: a setting is unknown or of another type.
        ValueError: the first run cannot be.
    """
    if todo:
        OptcamCLI(todo[0].words, dry=True)


def save_sweep(found: Sequence[tuple[Job, Summary]], axes: Axes, path: Path) -> None:
    """Draw the figure of a sweep into a file."""
    names = short_names(list(axes))
    runs = [Measured(job.point.values, summary) for job, summary in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_figure(runs, {names[key]: values for key, values in axes.items()}).savefig(path, dpi=120)


def print_failed(outcome: Outcome) -> None:
    """The runs that broke off, with the reasons."""
    if outcome.failed:
        tell("\nfailed (the same command tries them again):")
        for name, error in outcome.failed.items():
            tell(f"  {printable(name)}: {in_words(error)}")
