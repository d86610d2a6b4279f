"""`optcam paper`: a table or a figure of the paper, our numbers beside the published ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optcam_pl.checks import expanded_path
from optcam_pl.cli.compare import check_settings
from optcam_pl.cli.experiments import Experiment, instead, read_config, short_network, unknown_network
from optcam_pl.cli.grid import Axes, points, read_axes
from optcam_pl.cli.methods import Method, check_used, choose, listed_methods
from optcam_pl.cli.output import Tables, show, tell
from optcam_pl.cli.paper_check import paper_check
from optcam_pl.cli.parsers import asked
from optcam_pl.cli.points import (
    Job,
    Outcome,
    check_first,
    finished,
    jobs,
    print_failed,
    run_all,
    save_sweep,
)
from optcam_pl.cli.sanity import sanity_of_several
from optcam_pl.cli.words import value_of
from optcam_pl.network.errors import NetworkError
from optcam_pl.reports.beside import folded, misclassified, paper_csv, paper_grids
from optcam_pl.reports.grids import PagesFormat, printable, render
from optcam_pl.reports.published import MISCLASSIFIED
from optcam_pl.reports.summary import load_run, summarize
from optcam_pl.reports.sweeps import Measured, selectivity_figure
from optcam_pl.reports.tables import Summary, table
from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.folders import REPORT, check_no_others
from optcam_pl.runs.manifest import MANIFEST

_FILES: dict[str, PagesFormat] = {"table.md": "markdown", "table.tex": "latex"}


@dataclass(frozen=True)
class _Part:
    """One config of an experiment on one network: its runs, and whether the map has no method."""

    jobs: list[Job]
    axes: Axes
    methodless: bool


def paper_command(argv: Sequence[str]) -> int:
    """`optcam paper NAME ...` or `optcam paper check`; returns the exit code. The list needs no run: see `answered`.

    Args:
        argv: the words after `optcam paper`.

    Raises:
        ValueError: an unknown table, network or explainer.
        Exception: that of the runs, if the first two break off alike.
    """
    options, rest, experiments, check = asked("paper", argv)
    if check:
        return paper_check(options, rest)
    code = 0
    tables = Tables(options.format)
    for experiment in experiments:
        for network in _networks(experiment, options.network):
            code = max(code, _Table(experiment, network, options, rest, tables).make())
    return code


def _networks(experiment: Experiment, asked: Sequence[str] | None) -> list[str]:
    """The networks to run: the experiment's own by their short names, and others as `network` of a classifier.

    Raises:
        ValueError: a name is neither.
    """
    if asked is None:
        return list(experiment.configs)
    found = []
    for name in asked:
        if short_network(name) in experiment.configs:
            found.append(short_network(name))
        elif any(mark in name for mark in "/.:"):
            found.append(name)
        else:
            raise unknown_network(name, list(experiment.configs))
    return found


class _Table:
    """An experiment on one network.

    Args:
        experiment: the table or figure.
        network: its short name, or another network.
        options: those of the command line.
        rest: the words for `optcam test`.
        tables: those that are printed before it.
    """

    def __init__(
        self, experiment: Experiment, network: str, options: argparse.Namespace, rest: Sequence[str], tables: Tables
    ) -> None:
        self.experiment, self.options, self.tables = experiment, options, tables
        self.own = network in experiment.configs
        self.config = network if self.own else next(iter(experiment.configs))
        self.words = [] if self.own else instead(network)
        self.words += rest
        if options.limit is not None:
            self.words.append(f"--data.limit={options.limit}")
        limit = value_of("--data.limit", self.words)
        name = network.rpartition("/")[2] + (f"_limit{limit}" if limit else "")
        self.folder = expanded_path(options.run_dir) / experiment.name / name
        self.title = f"{experiment.name} ({experiment.title}), {network}"

    def make(self) -> int:
        """Run what is missing, print and write the table; the exit code."""
        check_no_others(self.folder)
        self._check_weights()
        if self.experiment.kind == "sanity":
            return self._sanity()
        parts = [self._part(file, first=number == 0) for number, file in enumerate(self._files())]
        todo = [job for part in parts for job in part.jobs]
        if not todo:
            raise ValueError(f"None of the explainers of {self.title} can work on this network.")
        outcome = Outcome()
        if not self.options.report:
            check_first(todo)
            outcome = run_all(todo, f"optcam paper {self.experiment.name}")
        if outcome.leader:
            self._report(parts)
            print_failed(outcome)
        return outcome.exit_code

    def _files(self) -> list[Path]:
        return self.experiment.files(self.config)

    def _check_weights(self) -> None:
        """Say how a network that has to be fine-tuned first is made."""
        weights = read_config(self._files()[0])["model"]["init_args"]["classifier"]["init_args"].get("weights", "")
        given = value_of("--model.classifier.weights", self.words)
        if given is None and str(weights).endswith(".ckpt") and not Path(weights).exists():
            raise FileNotFoundError(
                f"Expected the fine-tuned network {weights}, but there is no such file. It is made by: optcam fit "
                f"--config {self._files()[0].parent / self.config}_fit.yaml --data.root FOLDER. Another one is "
                "--model.classifier.weights CHECKPOINT."
            )

    def _part(self, file: Path, *, first: bool) -> _Part:
        config = read_config(file)
        axes = read_axes(self.options.grid if first else [], config.get("grid"))
        layered = next((key for key in axes if key.endswith("target_layer")), None)
        if layered and not self.own and not any(text.startswith(f"{layered}=") for text in self.options.grid):
            raise ValueError(
                f"Expected the layers of this network: --grid {layered}=LAYER,LAYER... The table's own are of "
                f"{self.config}: {', '.join(axes[layered])}."
            )
        words = ["--config", str(file), *self.words]
        methods = self._methods(file, first=first) if config.get("explainers") else []
        if not self.own:
            methods = [method for method in methods if self._usable(method, words)]
            if config.get("explainers") and not methods:
                return _Part([], axes, not first)
        return _Part(jobs(words, points(axes), methods, self.folder), axes, not first)

    def _methods(self, file: Path, *, first: bool) -> list[Method]:
        """The listed explainers that are asked for, with their settings there, and others."""
        listed = listed_methods([str(file)])
        if not first:
            return listed
        of = {method.name: method for method in listed}
        asked_for = list(of) if self.options.explainers is None else self.options.explainers
        found = [of[name] if name in of else choose([name])[0] for name in asked_for]
        check_used(self.words, found)
        return found

    def _usable(self, method: Method, words: Sequence[str]) -> bool:
        """Whether a method can work on another network than the table's; if not, the reason is printed."""
        try:
            check_settings(method.added_to(["test", *words]))
        except (ValueError, TypeError, ImportError, NetworkError) as error:
            if self.options.explainers is not None:
                raise
            tell(f"optcam paper: {method.name} is left out: {printable(str(error))}")
            return False
        return True

    def _report(self, parts: Sequence[_Part]) -> None:
        found = [(job, _of_boxes(summary) if part.methodless else summary)
                 for part in parts for job, summary in finished(part.jobs)]  # fmt: skip
        if not found:
            raise RunFolderError(f"None of the runs of {self.title} has begun in {self.folder}.")
        runs = [Measured(job.point.values, summary) for job, summary in found]
        if self.experiment.table == "A.9":
            runs += _misclassified([job for job, _ in found])
        place = self.folder / REPORT
        for name, format in _FILES.items():
            write_file(place / name, self._text(runs, format))
        of_paper = self.experiment.table
        csv = paper_csv(runs, of_paper) if of_paper else table([run.summary for run in runs], format="csv")
        write_file(place / "table.csv", csv)
        self._draw(found, parts[0].axes, place / "figure.png")
        text = csv if self.options.format == "csv" else self._text(runs, self.options.format)
        self._print(text)

    def _text(self, runs: Sequence[Measured], format: PagesFormat) -> str:
        if not self.experiment.table:
            return table([run.summary for run in runs], format=format)
        grids = paper_grids(runs, self.experiment.table)
        shown = [part for grid in grids for part in folded(grid)] if format == "text" else grids
        return "\n".join(render(grid, format) for grid in shown)

    def _draw(self, found: Sequence[tuple[Job, Summary]], axes: Axes, path: Path) -> None:
        if self.experiment.kind == "grid":
            save_sweep(found, axes, path)
        elif self.experiment.kind == "selectivity":
            selectivity_figure([(summary.explainer, job.folder) for job, summary in found]).savefig(path, dpi=120)

    def _sanity(self) -> int:
        if self.options.format != "text":
            raise ValueError(
                f"Expected no `--format` for {self.experiment.name}, which is text, but got {self.options.format!r}."
            )
        (file,) = self._files()
        # The config's stages are those of its network; another one's are its children.
        words = ["--config", str(file), *([] if self.own else ["--stages=null"]), *self.words]
        methods = self._methods(file, first=True)
        if not self.own:
            methods = [method for method in methods if self._usable(method, words)]
        of = {method.name: (method.added_to(words), self.folder / method.name) for method in methods}
        text = sanity_of_several(of, self.folder / REPORT, run=not self.options.report)
        self._print(text)
        return 0

    def _print(self, text: str) -> None:
        tell(f"\n{self.title}\n")
        show(self.tables.add(text))
        tell(f"\nreport:      {self.folder / REPORT}")


def _of_boxes(summary: Summary) -> Summary:
    """The box or its complement as the map: no method has a part in it."""
    return summary.named("no method")


def _misclassified(of: Sequence[Job]) -> list[Measured]:
    """The rows of table A.9 about misclassified images, where both of a method's runs are there."""
    found = []
    folders = {(job.method.name, job.point.values["target"]): job for job in of if job.method}
    for name in dict.fromkeys(name for name, _ in folders):
        pair = [folders.get((name, target)) for target in ("predicted", "label")]
        if all(job is not None and (job.folder / MANIFEST).is_file() for job in pair):
            predicted, label = (load_run(job.folder) for job in pair if job)
            summary = summarize(misclassified(predicted, label), intervals="bca")
            found.append(Measured({"target": MISCLASSIFIED}, summary))
    return found
