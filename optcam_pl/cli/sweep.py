"""`optcam sweep`: every point of a grid of settings, each in a run folder of its own, one table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optcam_pl.checks import expanded_path
from optcam_pl.cli.grid import Axes, points, read_axes
from optcam_pl.cli.lightning_cli import parse_shard
from optcam_pl.cli.methods import Method, check_used, choose, config_key, listed_methods
from optcam_pl.cli.output import show, tell
from optcam_pl.cli.parsers import asked
from optcam_pl.cli.points import (
    Job,
    check_first,
    finished,
    jobs,
    of_shard,
    print_failed,
    run_all,
    save_sweep,
)
from optcam_pl.reports.tables import Format, Summary, table
from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.folders import REPORT, check_no_others

_FILES: dict[str, Format] = {"table.md": "markdown", "table.csv": "csv", "table.tex": "latex", "table.json": "json"}


def sweep_command(argv: Sequence[str]) -> int:
    """`optcam sweep --grid KEY=VALUE,VALUE ...`; returns the exit code: 1 if a point broke off.

    Args:
        argv: the words after `optcam sweep`.

    Raises:
        ValueError: the grid is none, or a setting is wrong at its first point; before anything runs.
        Exception: that of the runs, if the first two break off alike.
    """
    options, rest, *_ = asked("sweep", argv)
    shard, folder = parse_shard(options.shard), expanded_path(options.run_dir)
    axes = read_axes(options.grid, config_key(options.config, "grid"))
    if not axes:
        raise ValueError("Expected `--grid KEY=VALUE,VALUE`, or a config with a `grid`: the settings to vary.")
    check_no_others(folder)
    methods = _methods(options.explainers, options.config, axes)
    words = [word for file in options.config for word in ("--config", file)] + list(rest)
    if methods:
        check_used(rest, methods)
    todo = jobs(words, points(axes), methods, folder)
    outcome = None
    if not options.report:
        check_first(todo)
        mine = of_shard(todo, shard)
        if not mine:
            tell(f"optcam sweep: nothing to do for shard {options.shard}: the sweep has {len(todo)} runs.")
            return 0
        outcome = run_all(mine, "optcam sweep")
    if outcome is None or outcome.leader:
        _report(todo, axes, folder, options.format)
    if outcome is None:
        return 0
    if outcome.leader:
        print_failed(outcome)
    return outcome.exit_code


def _methods(names: Sequence[str] | None, configs: Sequence[str], axes: Axes) -> list[Method]:
    """The explainers at every point; none where the grid or the config chooses."""
    own = [key for key in axes if key == "model.explainer" or key.startswith("model.explainer.")]
    several = names is not None or config_key(configs, "explainers") is not None
    if own and several:
        raise ValueError(
            f"Expected a grid over {own[0]} or several explainers, but got both: settings of one explainer are no "
            "settings of another. Give `--explainers` or the config's `explainers` up."
        )
    if names is not None:
        return choose(names)
    return listed_methods(configs) if several else []


def _report(todo: Sequence[Job], axes: Axes, folder: Path, format: Format) -> None:
    found = finished(todo)
    if not found:
        raise RunFolderError(f"None of the {len(todo)} runs of the sweep has begun in {folder}.")
    tell("")  # parts the table from the progress on a terminal
    show(table([summary for _, summary in found], format=format))
    if len(found) < len(todo):
        tell(f"\n{len(found)} of {len(todo)} runs are there; the others are another shard's, broke off or are to come.")
    place = write_report(found, axes, folder)
    tell(f"\nreport:      {place}")


def write_report(found: Sequence[tuple[Job, Summary]], axes: Axes, folder: Path) -> Path:
    """Write the table in every format, and the plot, into FOLDER/report.

    Args:
        found: the runs with their numbers.
        axes: the axes of the grid.
        folder: the folder above the runs.

    Returns:
        The folder of the report.
    """
    place = folder / REPORT
    for name, format in _FILES.items():
        write_file(place / name, table([summary for _, summary in found], format=format))
    save_sweep(found, axes, place / "figure.png")
    return place
