"""`optcam compare`: several explainers on one dataset or several, one table a dataset and their mean."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from optcam_pl.callbacks import overlay_folder, write_comparison
from optcam_pl.checks import expanded_path
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.cli.methods import COSTLY, Method, check_distinct, check_used, choose, listed_methods
from optcam_pl.cli.output import show, tell
from optcam_pl.cli.parsers import asked
from optcam_pl.cli.places import command, has_events, lines
from optcam_pl.cli.plan import Cost, cost, plan_text
from optcam_pl.cli.words import config_file, config_names, read_yaml
from optcam_pl.network.errors import NetworkError
from optcam_pl.reports.grids import printable
from optcam_pl.reports.report import find_runs
from optcam_pl.reports.tables import Estimate, Format, Summary, table
from optcam_pl.runs.folders import check_no_others
from optcam_pl.tasks import SaliencyTask


class Dataset(NamedTuple):
    """A dataset to compare on: its name in run folders, and the words that choose it."""

    name: str = ""
    words: tuple[str, ...] = ()


@dataclass
class Outcome:
    """The results of a comparison.

    Attributes:
        skipped: method -> the reason why it was not run.
        runs: (dataset, method) -> run folder.
        summaries: (dataset, method) -> its numbers, in the process that prints.
        failed: (dataset, method) -> the error that ended it.
        exit_code: the largest of the runs' own.
        leader: whether this process is the one that prints.
        planned: number of runs to do.
        begun: number of runs that were begun.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[Dataset, Method], Path] = field(default_factory=dict)
    summaries: dict[tuple[Dataset, Method], Summary] = field(default_factory=dict)
    failed: dict[tuple[Dataset, Method], Exception] = field(default_factory=dict)
    exit_code: int = 0
    leader: bool = True
    planned: int = 0
    begun: int = 0


def compare_command(argv: Sequence[str]) -> int:
    """`optcam compare`: one `optcam test` for each dataset and explainer, in a run folder of its own, then the tables.

    Args:
        argv: the words after `optcam compare`.

    Returns:
        The exit code: 1 if a run broke off, whose error is printed below the tables; otherwise the largest of the runs.

    Raises:
        ValueError: an explainer is unknown, or was named and cannot work on the network, or a plan is asked for in a
            format of tables; before anything runs.
        Exception: that of the first run, if no run came to its end.
    """
    options, rest, *_ = asked("compare", argv)
    if options.plan and options.format != "text":
        raise ValueError(f"Expected no `--format` with `--plan`, which is text, but got {options.format!r}.")
    datasets = [_dataset(given) for given in options.data] or [Dataset()]
    methods = choose(options.explainers) if options.explainers else listed_methods(options.config)
    check_distinct("--data", [dataset.name for dataset in datasets])
    check_distinct("--explainers", [method.name for method in methods])
    above = None if options.run_dir is None else expanded_path(options.run_dir)
    if above is not None:
        check_no_others(above)
    outcome = Outcome(skipped=_left_out(methods) if "all" in (options.explainers or ()) else {})
    configs = [word for file in options.config for word in ("--config", file)]
    quiet = ["--quiet"] if options.quiet else []
    words = {dataset: ["test", *configs, *dataset.words, *rest, *quiet] for dataset in datasets}
    check_used(rest, methods)
    check_settings(Method("FakeCAM", "FakeCAM").added_to(words[datasets[0]]))  # a fault of every method skips none
    methods = [method for method in methods if _usable(method, words[datasets[0]], datasets, outcome)]
    if options.plan:
        pairs = [(method, dataset) for dataset in datasets for method in methods]
        show(plan_text([_cost(*pair, words[pair[1]], 60 / len(pairs)) for pair in pairs]) + "\n")
        return 0
    outcome.planned = len(datasets) * len(methods)
    for dataset in datasets:
        folder = None if above is None else Path(above, dataset.name if len(datasets) > 1 else "")
        _run_all(dataset, methods, words[dataset], folder, outcome)
    if outcome.failed and not outcome.runs:
        raise next(iter(outcome.failed.values()))
    if outcome.leader:
        if not options.quiet:
            tell("")  # parts the table from the progress on a terminal
        _print_tables(outcome, datasets, methods, options.format)
        _print_missing(outcome)
        _write_comparisons(outcome, datasets)
        if not options.quiet:
            _print_places(outcome)
    return 1 if outcome.failed else outcome.exit_code


def _cost(method: Method, dataset: Dataset, words: Sequence[str], seconds: float) -> Cost:
    name = f"{method.name} on {dataset.name}" if dataset.name else method.name
    return cost(name, method.added_to(words), seconds)


def _left_out(methods: Sequence[Method]) -> dict[str, str]:
    """The costly methods that `all` leaves out, with the reason; not those that are named."""
    named = {method.name for method in methods}
    return {name: f"{why}; name it to run it" for name, why in COSTLY.items() if name not in named}


def check_settings(words: Sequence[str]) -> None:
    """Make the objects of an `optcam test`, and ask the explainer whether it can work on the network."""
    model = OptcamCLI(words, dry=True).model
    if isinstance(model, SaliencyTask):
        model.explainer.check(model.classifier)


def _dataset(given: str) -> Dataset:
    """A class; or a file or config of the package's that is one (`class_path: ...`) or has the key `data`."""
    if not given.endswith((".yaml", ".yml")) and given not in config_names():
        return Dataset(given.rpartition(".")[2], (f"--data={given}",))
    file = config_file(given, "--data")
    content = read_yaml(file)
    whole = isinstance(content, dict) and "data" in content
    return Dataset(Path(file).stem, (f"--{'config' if whole else 'data'}={file}",))


def _usable(method: Method, words: Sequence[str], datasets: Sequence[Dataset], outcome: Outcome) -> bool:
    """Whether the method can work on the network. If not, the reason is noted, or raised if the user named the method.

    An error of another kind, from the network or another package, is noted as a failure of the method.
    """
    try:
        check_settings(method.added_to(words))
    except (ValueError, TypeError, ImportError, NetworkError) as error:
        if method.asked:
            raise
        outcome.skipped[method.name] = str(error)
        return False
    except Exception as error:
        if method.asked:
            _tell_broken(method, error)
            for dataset in datasets:
                outcome.failed[dataset, method] = error
        else:
            _print_traceback()
            outcome.skipped[method.name] = _words(error)
        return False
    return True


def _run_all(
    dataset: Dataset,
    methods: Sequence[Method],
    words: Sequence[str],
    folder: Path | None,
    outcome: Outcome,
) -> None:
    """Run every method on one dataset. One that breaks off does not stop the others, but the same error of all does."""
    for method in methods:
        own = [] if folder is None else [f"--run_dir={folder / method.name}"]
        outcome.begun += 1
        try:
            cli = OptcamCLI(method.added_to([*words, *own]), method.name, place=f"{outcome.begun}/{outcome.planned}")
        except Exception as error:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                raise  # the other processes wait, and would for ever
            if outcome.planned > 1:  # of the only one, it is the error of the command
                _tell_broken(method, error)
            outcome.failed[dataset, method] = error
            if _all_fail_alike(dataset, error, outcome):
                return  # it is the data, or the settings
            continue
        outcome.runs[dataset, method] = cli.run_dir
        if cli.summary is not None:
            outcome.summaries[dataset, method] = replace(cli.summary, explainer=method.name)
        outcome.exit_code = max(outcome.exit_code, cli.exit_code)
        outcome.leader = bool(cli.trainer.is_global_zero)


def _tell_broken(method: Method, error: Exception) -> None:
    """Print at once what a method broke off with; the last lines of the output repeat it."""
    _print_traceback()
    tell(f"optcam compare: {method.name} broke off: {_words(error)}")


def _print_traceback() -> None:
    """The traceback of the error in hand, where the user asked for tracebacks."""
    if os.environ.get("OPTCAM_TRACEBACK"):
        traceback.print_exc()


def _all_fail_alike(dataset: Dataset, error: Exception, outcome: Outcome) -> bool:
    """Whether a second method has failed on the dataset with the same words, and none has come to its end."""
    alike = [of for (of, _), other in outcome.failed.items() if of == dataset and _words(other) == _words(error)]
    return len(alike) > 1 and all(of != dataset for of, _ in outcome.runs)


def _words(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")


def mean_over(summaries: Sequence[Summary]) -> Summary:
    """One method's mean over several datasets, each counting the same.

    Settings that differ between the datasets are left out. A metric that one of them lacks is left out, too; one that
    has no value on one of them has none. Images and statuses are added up.
    """
    first, n = summaries[0], len(summaries)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / n if len(known) == n else None

    metrics = {}
    for key in first.metrics:
        if all(key in summary.metrics for summary in summaries):
            of = [summary.metrics[key] for summary in summaries]
            metrics[key] = Estimate(mean([e.value for e in of]), sum(e.undefined for e in of))
    return replace(
        first,
        run=os.path.commonpath([summary.run for summary in summaries]),
        data=f"mean over {', '.join(summary.data for summary in summaries)}",
        settings={k: v for k, v in first.settings.items() if all(s.settings.get(k) == v for s in summaries)},
        images=sum(summary.images for summary in summaries),
        statuses={key: sum(summary.statuses[key] for summary in summaries) for key in first.statuses},
        seconds_per_image=mean([summary.seconds_per_image for summary in summaries]),
        metrics=metrics,
        notes=(),
    )


def _print_tables(outcome: Outcome, datasets: Sequence[Dataset], methods: Sequence[Method], format: Format) -> None:
    """A table for each dataset; with several datasets, also the mean over them of the methods that ran on all.

    In the formats for programs they are one, so that what is printed can be read as a whole.
    """
    found = outcome.summaries
    tables = [[found[dataset, method] for method in methods if (dataset, method) in found] for dataset in datasets]
    if len(datasets) > 1:
        everywhere = [method for method in methods if all((dataset, method) in found for dataset in datasets)]
        tables.append([mean_over([found[dataset, method] for dataset in datasets]) for method in everywhere])
    if format in ("csv", "json"):
        tables = [[summary for summaries in tables for summary in summaries]]
    show("\n".join(table(summaries, format=format) for summaries in tables if summaries))


def _print_missing(outcome: Outcome) -> None:
    """The methods that were skipped or failed, with the reasons."""
    failed = {}
    for (dataset, method), error in outcome.failed.items():
        failed[f"{method.name} on {dataset.name}" if dataset.name else method.name] = _words(error)
    for title, reasons in (("skipped", outcome.skipped), ("failed", failed)):
        if reasons:
            tell("\n".join([f"\n{title}:", *(f"  {name}: {printable(why)}" for name, why in reasons.items())]))


def _write_comparisons(outcome: Outcome, datasets: Sequence[Dataset]) -> None:
    """For TensorBoard, what belongs to several methods together, beside the runs of each dataset."""
    for dataset in datasets:
        shown = {m: path for (on, m), path in outcome.runs.items() if on == dataset and has_events(path)}
        numbers = {m.name: outcome.summaries[dataset, m] for m in shown if (dataset, m) in outcome.summaries}
        if len(numbers) > 1:
            write_comparison(Path(os.path.commonpath(list(shown.values()))), numbers)


def _print_places(outcome: Outcome) -> None:
    """Where everything is, and how to look at it."""
    runs = list(outcome.runs.values())
    if not runs:
        return
    above = os.path.commonpath(runs)
    alone = {run.resolve() for run in runs} == {run.resolve() for run in find_runs([above])}
    named = [above] if alone else runs  # the folder above them, if it holds no other run
    overlays = [overlay_folder(run) for run in runs]
    shown = any(map(has_events, runs))
    places = (
        ("runs", ", ".join(map(str, runs))),
        ("rows", "rows/ in each (a line per image; files are named a<attempt>-r<process>)"),
        ("overlays", "overlays/ in each" if all(overlays) else ", ".join(str(folder) for folder in overlays if folder)),
        ("TensorBoard", shown and command("tensorboard", "--logdir", above)),
        ("table again", command("optcam", "report", *named)),
        ("page", command("optcam", "report", *named, "--html", "page")),
    )
    tell("\n" + lines(places))
