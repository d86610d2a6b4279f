"""`optcam sanity`: do the maps change when the network forgets?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from optcam_pl.checks import expanded_path
from optcam_pl.cli.lightning_cli import OptcamCLI
from optcam_pl.cli.output import tell
from optcam_pl.cli.parsers import asked
from optcam_pl.cli.words import CONFIGS
from optcam_pl.evaluate.sanity import SanityResult, check, figure_of_several, summary
from optcam_pl.evaluate.subject import Subject
from optcam_pl.network.speed import original_of
from optcam_pl.runs.files import RunFolderError, probe_folder, write_file
from optcam_pl.runs.folders import missing_folders, remove_empty
from optcam_pl.runs.manifest import flatten
from optcam_pl.tasks import SaliencyTask

_RESULT = "sanity.json"


def sanity_command(argv: Sequence[str]) -> int:
    """`optcam sanity [--stages NAME...] ...`; returns the exit code.

    Args:
        argv: the words after `optcam sanity`.

    Raises:
        RunFolderError: the folder has a result already, or cannot be written; before anything is computed.
    """
    options, rest, *_ = asked("sanity", argv)
    given = expanded_path(options.run_dir) if options.run_dir else None
    if given is not None and (given / _RESULT).exists():
        raise RunFolderError(f"Expected a folder without a result, but there is {given / _RESULT}. Give another one.")
    above = given or Path("logs")
    made = missing_folders(above)
    probe_folder(above)  # now, not after the work
    try:
        result, default = _checked(["test", *rest], options.stages, options.random_seed)
        folder = given or _new_folder(default)
        result.save(folder)
    except BaseException:
        remove_empty(made)
        raise
    print(f"{result.text()}\n\nresult:      {folder / _RESULT}, {folder / 'sanity.png'}")
    return 0


def _checked(words: Sequence[str], stages: Sequence[str] | None = None, seed: int = 0) -> tuple[SanityResult, Path]:
    """The result for the words of an `optcam test`, and the folder above such results; the config may have `stages`."""
    cli = OptcamCLI(words, dry=True)
    task, data = cli.model, cli.datamodule
    if not isinstance(task, SaliencyTask):
        raise TypeError(f"Expected a SaliencyTask to check, but got {type(task).__name__}.")
    method, names = task.explainer.title, stages or cli.setting("stages")
    device = cli.trainer.strategy.root_device
    network, explainer = task.classifier.to(device).requires_grad_(False), task.explainer.to(device)
    found = check(network, explainer, data, task.target, names=names, seed=seed)
    whole = original_of(network)  # what `check` explains, in its precision
    subject = Subject(whole, explainer, data, (), task.target, "map", precision="32-true", device=device.type)
    settings = dict(flatten(subject.settings() | {"random_seed": seed}))
    own = explainer.settings()
    options = {key: value for key, value in flatten(own) if key not in settings} if own else {}
    result = summary(f"{method} on {task.classifier.name}, {data.name}", found, method, settings, options)
    return result, Path("logs", data.name, method)


def sanity_of_several(of: Mapping[str, tuple[Sequence[str], Path]], report: Path, *, run: bool) -> str:
    """The sanity check of several methods: what is missing is done; one table a method, and one figure of all.

    Args:
        of: method -> the words of its `optcam test`, and the folder of its result.
        report: folder of the figure and the tables.
        run: whether to do what is missing.

    Returns:
        The tables.

    Raises:
        RunFolderError: a result was made by other words, or there is none.
    """
    results = {}
    for method, (words, folder) in of.items():
        made_by = folder / "command.json"
        if (folder / _RESULT).is_file():
            before = json.loads(made_by.read_bytes()) if made_by.is_file() else None
            if before not in (_anywhere(words), list(words)):
                raise RunFolderError(
                    f"The result in {folder} was made by other words: {before}, not {_anywhere(words)}. Give another "
                    "--run_dir."
                )
            results[method] = SanityResult.load(folder)
        elif run:
            tell(f"optcam: sanity check of {method}")
            result, _ = _checked(["test", *words])
            write_file(made_by, json.dumps(_anywhere(words)) + "\n")
            result.save(folder)
            results[method] = result
    if not results:
        raise RunFolderError(f"There is no result in {', '.join(str(folder) for _, folder in of.values())}.")
    text = "\n\n".join(result.text() for result in results.values()) + "\n"
    write_file(report / "table.txt", text)
    figure_of_several(results).savefig(report / "figure.png", dpi=120)
    return text


def _anywhere(words: Sequence[str]) -> list[str]:
    """The words without the folder that the package's configs are in, which is another one elsewhere."""
    return [word.removeprefix(f"{CONFIGS}{os.sep}") for word in words]


def _new_folder(parent: Path) -> Path:
    number = 0
    while (parent / f"sanity_{number}").exists():
        number += 1
    return parent / f"sanity_{number}"
