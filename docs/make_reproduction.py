"""Write the tables of docs/reproduction.md from the rows in docs/results/.

python docs/make_reproduction.py            writes them
python docs/make_reproduction.py --check    exits with 1 where a digit of the page is not that of the rows
python docs/make_reproduction.py --collect [NAME...]  first takes the rows out of logs/, where the commands left them

An archive docs/results/NAME.tar.gz has the run folders of one experiment, without what only shows them. Unpacked in the
root of the repository, they are what `optcam report` and `optcam paper NAME --report` read.
"""

from __future__ import annotations

import difflib
import gzip
import io
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

PAGE = Path(__file__).with_name("reproduction.md")
RESULTS = Path(__file__).with_name("results")
sys.path.insert(0, str(PAGE.resolve().parent.parent))  # this checkout, not another one that is installed

from optcam_pl.evaluate.sanity import SanityResult  # noqa: E402
from optcam_pl.reports.agreement import agreement  # noqa: E402
from optcam_pl.reports.beside import paper_grids  # noqa: E402
from optcam_pl.reports.grids import Grid, render  # noqa: E402
from optcam_pl.reports.report import Run, compare_runs, find_runs, load_run, summarize  # noqa: E402
from optcam_pl.reports.sweeps import Measured  # noqa: E402
from optcam_pl.reports.tables import Summary, against_grid, heading, run_grid  # noqa: E402
from optcam_pl.runs.tensors import mean_curves  # noqa: E402

KEPT = ("manifest.json", "summary.json", "config.yaml", "command.json", "sanity.json")
KEPT_BELOW = ("rows", "curves")
"""What of a run folder the numbers are made from, and what says how it was made."""


def collect(archive: Path, folders: Iterable[Path]) -> None:
    """Pack run folders into an archive; the same runs make the same bytes."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and _kept(path))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as packed:
        for path in files:
            member = tarfile.TarInfo(path.as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                packed.addfile(member, content)
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(gzip.compress(out.getvalue(), 9, mtime=0))


def _kept(path: Path) -> bool:
    return path.name in KEPT or path.parent.name in KEPT_BELOW


def unpack(into: Path) -> None:
    """Unpack every archive."""
    for path in sorted(RESULTS.glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            archive.extractall(into, filter="data")


def runs_in(root: Path, *folders: str) -> list[Run]:
    """The runs in folders below the root, of each folder in the order in which they were begun."""
    found = []
    for folder in folders:
        runs = [load_run(path) for path in find_runs([root / folder])]
        found += sorted(runs, key=lambda run: str(run.manifest["created"]))
    return found


def numbers(
    root: Path,
    *folders: str,
    keys: Sequence[str] = (),
    against: str = "",
    paired: Sequence[str] = ("average_gain",),
    names: Mapping[str, str] | None = None,
) -> str:
    """The table of runs, and the differences to one of them on the same images.

    Args:
        root: where the archives were unpacked.
        folders: the runs, or folders above them.
        keys: the metrics to show; all of them where it is empty.
        against: the run for the differences.
        paired: the metrics with differences.
        names: the end of a run's folder -> another name of its method.
    """
    runs = runs_in(root, *folders)
    found = [summarize(run, "bca") for run in runs]
    if against:
        found = compare_runs(runs, found, load_run(root / against))
    found = [_shown(summary, keys, paired, names or {}) for summary in found]
    parts = [_without(run_grid(found), "s/image"), against_grid(found)]
    return "\n".join(render(part, "markdown") for part in parts if part)


def pairs(root: Path, folder: str, against: str, keys: Sequence[str] = ("average_gain",)) -> str:
    """The differences of a sweep's points to one of them on the same images."""
    runs = runs_in(root, folder)
    found = compare_runs(runs, [summarize(run) for run in runs], load_run(root / folder / against))
    grid = against_grid(
        [_shown(one.named(run.path.name), keys, keys, {}) for one, run in zip(found, runs, strict=True)]
    )
    assert grid is not None
    return render(replace(grid, title=f"Difference to {against}, on the same images:"), "markdown")


def _shown(summary: Summary, keys: Sequence[str], paired: Sequence[str], names: Mapping[str, str]) -> Summary:
    """The summary with some of its metrics and what belongs to them, and under another name."""
    metrics = {
        key: estimate if key in paired else replace(estimate, against=None)
        for key, estimate in summary.metrics.items()
        if key in keys or not keys
    }
    hidden = tuple(f"{key}_" for key in summary.metrics if key not in metrics)
    settings = {name: value for name, value in summary.settings.items() if not name.startswith(hidden)}
    own = next((name for end, name in names.items() if summary.run.endswith(end)), summary.explainer)
    return replace(summary.named(own), metrics=metrics, settings=settings)


def _without(grid: Grid, head: str) -> Grid:
    """The table without a column, and without the settings that the whole page has."""
    kept = [number for number, name in enumerate(grid.header) if name != head]
    body = [[row[number] for number in kept] for row in grid.body]
    common = [words for words in grid.common if words not in SHARED]
    return replace(grid, header=[grid.header[number] for number in kept], body=body, common=common)


def beside_paper(root: Path, folder: str, name: str) -> str:
    """The grid of a sweep beside a table of the paper."""
    runs = [Measured(_point(run.path.name), summarize(run, "bca")) for run in runs_in(root, folder)]
    return "\n".join(render(_without(grid, "s / 8 images"), "markdown") for grid in paper_grids(runs, name))


def _point(folder: str) -> dict[str, str]:
    """The values of the axes that a folder of a sweep is named after."""
    pairs = (part.partition("=") for part in folder.split(","))
    return {name: value for name, equals, value in pairs if equals}


def accuracy(root: Path, folder: str) -> str:
    """How often the network is right on a run's photographs."""
    rows = runs_in(root, folder)[0].usable
    right = sum(row.predicted == row.target for row in rows)
    return f"The network is right on {100 * right / len(rows):.1f} % of the {len(rows)} photographs."


def agreeing(root: Path, *folders: str) -> str:
    """Kendall's tau between the metrics."""
    return render(agreement(runs_in(root, *folders)).grid(), "markdown")


def selectivity(root: Path, folder: str, key: str) -> str:
    """A metric against alpha: the mean and half the width of its 95 % interval."""
    runs = [(run, mean_curves(run.path)[key]) for run in runs_in(root, folder)]
    first, (_, _, images) = runs[0]
    alphas = first.manifest["settings"][f"{key}_alphas"].split()
    body = [
        [run.manifest["explainer"], *(f"{m:.1f} ± {b:.1f}" for m, b in zip(mean.tolist(), band.tolist(), strict=True))]
        for run, (mean, band, _) in runs
    ]
    title = f"{heading(key, first.metrics[key])} of the map to the power of alpha, {images} images:"
    return render(Grid(["method", *alphas], body, 1, [], [], title), "markdown")


def sanity(root: Path, folder: str) -> str:
    """The similarity of the maps to the trained network's, stage by stage."""
    texts = []
    for path in sorted((root / folder).rglob("sanity.json")):
        found = SanityResult.load(path.parent)
        head = ["randomized down to", *(name.replace("_", " ") for name in found.similarity)]
        cells = [["-" if value is None else f"{value:.3f}" for value in column] for column in found.similarity.values()]
        body = [list(row) for row in zip(found.stages, *cells, strict=True)]
        texts.append(render(Grid(head, body, 1, [], [], f"{found.run}, {found.images} images:"), "markdown"))
    return "\n".join(texts)


SHARED = (
    *("classifier: demo/efficientnet_lite0", "weights: default", "layer: bn2", "speed: folded", "data: imagenet"),
    *("mean: [0.4980392, 0.4980392, 0.4980392]", "std: [0.5019608, 0.5019608, 0.5019608]", "input_size: [224, 224]"),
    *(
        "input: 224x224 stretch, bicubic",
        "baseline: black",
        "target: label",
        "precision: 32-true",
        "score: probability",
    ),
)
"""What the page says once of all its tables; where a table differs, it says so."""

LITE0 = "logs/paper/{}/efficientnet_lite0_limit{}"
TABLE6, LAYERS = LITE0.format("table6", 32), LITE0.format("tableA13", 32)
SELECTIVITY, RATES = LITE0.format("figureA4", 64), LITE0.format("figureA5", 64)
SANITY = LITE0.format("figureA6", 16)
METHODS, SLOW, PERTURBATION, SETTINGS = "logs/methods", "logs/slow", "logs/perturbation", "logs/settings"
SPEED = [LITE0.format("table1", 8).replace("paper", run) + "/OptiCAM" for run in ("t1", "t2")]  # plain, folded
_USUAL = ("average_drop", "average_gain", "average_increase")
_HELD_OUT = [key for usual in _USUAL for key in (usual, usual.replace("average", "held_out"))]
_DISTINCT = (
    *("FakeCAM", "RandomCAM", "EigenCAM", "EigenGradCAM", "GradCAM", "GradCAMPlusPlus", "LayerCAM", "saliency"),
    "OptiCAM",
)
"""The methods without those that are Grad-CAM on this network, or nearly so: four times the same vote."""
_SAME = (f"{PERTURBATION}/fast", f"{PERTURBATION}/GradCAM")
_OTHER = ("mean", "predicted")

TABLES: dict[str, Callable[[Path], str]] = {
    "accuracy": lambda root: accuracy(root, METHODS),
    "methods": lambda root: numbers(
        *(root, METHODS), keys=(*_USUAL, "average_drop_deletion"), against=f"{METHODS}/OptiCAM", paired=_USUAL[:2]
    ),
    "held_out": lambda root: numbers(
        *(root, METHODS), keys=_HELD_OUT, against=f"{METHODS}/OptiCAM", paired=("held_out_drop", "held_out_gain")
    ),
    "slow": lambda root: numbers(
        *(root, SLOW), keys=(*_USUAL, *_HELD_OUT[1::2]), against=f"{SLOW}/fast", paired=("average_gain",)
    ),
    "agreement": lambda root: agreeing(root, *(f"{METHODS}/{name}" for name in _DISTINCT)),
    "table6": lambda root: beside_paper(root, TABLE6, "6"),
    "table6_pairs": lambda root: pairs(root, TABLE6, "objective=mask,normalizer=range"),
    "layers": lambda root: numbers(root, LAYERS),
    "layers_pairs": lambda root: pairs(root, LAYERS, "target_layer=bn2"),
    "rates": lambda root: numbers(root, RATES),
    "rates_pairs": lambda root: pairs(root, RATES, "lr=0.1,max_iter=50"),
    "selectivity_gain": lambda root: selectivity(root, SELECTIVITY, "selectivity_gain"),
    "selectivity_drop": lambda root: selectivity(root, SELECTIVITY, "selectivity_drop"),
    "sanity": lambda root: sanity(root, SANITY),
    "perturbation": lambda root: numbers(
        *(root, PERTURBATION), against=f"{PERTURBATION}/GradCAM", paired=("insertion", "deletion", "aopc")
    ),
    "perturbation_agreement": lambda root: agreeing(root, PERTURBATION),
    "settings": lambda root: numbers(root, *_SAME, *(f"{SETTINGS}/{name}" for name in _OTHER), keys=_USUAL),
    "logit": lambda root: numbers(
        *(root, f"{SETTINGS}/logit"), against=f"{SETTINGS}/logit/GradCAM", paired=("insertion", "deletion", "aopc")
    ),
    "speed": lambda root: numbers(root, *SPEED, against=SPEED[0]),
}
"""Name of a place in the page -> what stands there, of the folder into which the archives were unpacked."""

ARCHIVES: dict[str, Sequence[str]] = {
    "methods": [METHODS],
    "slow": [SLOW],
    "table6": [TABLE6],
    "figureA4": [SELECTIVITY],
    "tableA13": [LAYERS],
    "figureA5": [RATES],
    "figureA6": [SANITY],
    "perturbation": [PERTURBATION],
    "settings": [f"{SETTINGS}/{name}" for name in (*_OTHER, "logit")],
    "speed": SPEED,
}
"""Name of an archive -> the folders whose runs it has."""


def page_of(text: str) -> str:
    """The page with the numbers of the archives.

    Raises:
        KeyError: the page has a place for which there is no table.
    """
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        return re.sub(
            r"<!-- rows: (\w+) -->.*?<!-- end -->",
            lambda found: f"<!-- rows: {found[1]} -->\n\n{TABLES[found[1]](Path(folder)).strip()}\n\n<!-- end -->",
            text,
            flags=re.DOTALL,
        )


def main(argv: list[str]) -> int:
    """Write or check the page."""
    if argv[:1] == ["--collect"]:
        for name in argv[1:] or ARCHIVES:
            collect(RESULTS / f"{name}.tar.gz", map(Path, ARCHIVES[name]))
    old = PAGE.read_text(encoding="utf-8")
    new = page_of(old)
    if "--check" in argv:
        changes = difflib.unified_diff(old.splitlines(), new.splitlines(), PAGE.name, "its rows", n=0, lineterm="")
        print("\n".join(changes), file=sys.stderr, end="")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
