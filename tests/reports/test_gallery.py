from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from test_report import a_row, a_run

from optcam_pl.cli.gallery import gallery_command
from optcam_pl.reports.page import gallery
from optcam_pl.runs.files import RunFolderError

NASTY = '"><script>alert(1)</script>\n<img onerror=x>.png'


def overlays(run: Path, ids: list[str], index: str = "index.json", color: str = "red") -> None:
    folder = run / "overlays"
    folder.mkdir(exist_ok=True)
    for i in range(len(ids)):
        Image.new("RGB", (8, 4), color).save(folder / f"{i}-{color}.png")
    (folder / index).write_text(json.dumps({name: f"{i}-{color}.png" for i, name in enumerate(ids)}))


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_shows_every_runs_overlay_of_an_image_side_by_side(tmp_path):
    for name, color in (("OptiCAM", "red"), ("GradCAM", "blue")):
        run = a_run(tmp_path / name, [a_row(0, 12.0), a_row(1, predicted=7)])
        overlays(run, ["0.png", "1.png"], color=color)
    a_run(tmp_path / "without", [a_row(0)])
    text = gallery(
        [tmp_path / "OptiCAM", tmp_path / "GradCAM", tmp_path / "without"], tmp_path / "page.html"
    ).read_text()
    first, second = text.split("<h2>")[1:]
    assert re.findall(r'alt="(\w+)"', first) == ["OptiCAM", "GradCAM"]
    assert "OptiCAM: class 1, p 0.500 → 0.500, AD 12.00" in first
    assert "class 1, seen as 7" in second
    assert "2 of 2 images." in text
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', first)
    colors = [Image.open(io.BytesIO(base64.b64decode(source))).getpixel((1, 1)) for source in sources]
    assert [color.index(max(color)) for color in colors] == [0, 2]


def test_no_name_becomes_markup(tmp_path):
    run = a_run(tmp_path / "run", [a_row(0, id=NASTY, status="degenerate", reason=NASTY)], explainer=NASTY, run=NASTY)
    overlays(run, [NASTY])
    tags = Tags(gallery([run], tmp_path / "page.html").read_text("utf-8")).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script"})
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 1
    assert images[0].keys() == {"alt", "loading", "src"}


def test_several_indices_are_merged_and_files_elsewhere_are_left_out(tmp_path):
    run = a_run(tmp_path / "run", [a_row(i) for i in range(4)])
    overlays(run, ["0.png"], "index-0.json", "red")
    overlays(run, ["1.png"], "index-1.json", "blue")
    Image.new("RGB", (8, 4)).save(tmp_path / "outside.png")
    (run / "overlays" / "index-2.json").write_text(json.dumps({"2.png": "../../outside.png", "3.png": "gone.png"}))
    text = gallery([run], tmp_path / "page.html").read_text()
    assert re.findall("<h2>(.*)</h2>", text) == ["0.png", "1.png"]


def test_a_limit_takes_images_evenly(tmp_path):
    run = a_run(tmp_path / "run", [a_row(i) for i in range(10)])
    overlays(run, [f"{i}.png" for i in range(10)])
    text = gallery([run], tmp_path / "page.html", limit=3).read_text()
    assert re.findall("<h2>(.*)</h2>", text) == ["0.png", "3.png", "6.png"]
    assert "3 of 10 images." in text
    with pytest.raises(ValueError, match="Expected `limit` to be a positive integer, but got 0"):
        gallery([run], tmp_path / "page.html", limit=0)


def test_nothing_to_show_and_broken_files_are_errors_in_words(tmp_path):
    run = a_run(tmp_path / "run", [a_row(0)])
    with pytest.raises(RunFolderError, match="None of the runs has overlays"):
        gallery([run], tmp_path / "page.html")
    overlays(run, ["0.png"])
    (run / "overlays" / "0-red.png").write_text("no picture")
    with pytest.raises(RunFolderError, match=r"Cannot read .*0-red.png"):
        gallery([run], tmp_path / "page.html")
    (run / "overlays" / "index.json").write_text("[1")
    with pytest.raises(RunFolderError, match=r"Cannot read .*index.json"):
        gallery([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_the_page_and_prints_where(tmp_path, capsys):
    run = a_run(tmp_path / "run", [a_row(0)])
    page = tmp_path / "out" / "page.html"
    assert gallery_command([str(run), "--output", str(page)]) == 1
    assert "None of the runs has overlays" in capsys.readouterr().err
    overlays(run, ["0.png"])
    assert gallery_command([str(run), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.is_file()
