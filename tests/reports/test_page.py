"""The report page: its content, from rows and thumbnails."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from page_cases import pictured_run
from PIL import Image
from test_report import a_row, a_run

from optcam_pl.cli.report import report_command
from optcam_pl.reports.page import write_page
from optcam_pl.reports.report import report
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.thumbnails import MOST, chosen, read_thumbnails, save_thumbnails

vl_convert = pytest.importorskip("vl_convert")

NASTY = '"></script><script>alert(1)</script>\n<img onerror=x>.png'


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def pairs_of(summary: dict) -> list[dict]:
    return [metric["against"] for metric in summary["metrics"].values() if "against" in metric]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [pictured_run(folder / name, shift=shift) for shift, name in enumerate(("OptiCAM", "GradCAM", "FakeCAM"))]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(runs, tmp_path_factory.mktemp("page") / "out")


def test_the_table_has_the_numbers_of_the_report(page, runs):
    text = page.read_text("utf-8")
    cells = [float(cell) for cell in re.findall(r'data-sort="([\d.e-]+)"', text)]
    for summary in json.loads(report(runs, "json", intervals="bca")):
        metrics = summary["metrics"]["average_drop"]
        assert metrics["value"] in cells
        assert f"<small>{metrics['low']:.2f} to {metrics['high']:.2f}</small>" in text


def test_images_of_one_name_in_two_datasets_are_two_and_have_the_names_of_their_own_network(tmp_path):
    cats = pictured_run(tmp_path / "OptiCAM", images=3)
    fish = pictured_run(tmp_path / "GradCAM", images=3, data="fish", class_names=["tench", "crane", "crane"])
    page = write_page([cats, fish], tmp_path / "page")
    data = data_of(page)
    assert [image["id"] for image in data["images"]] == ["0.png", "1.png", "2.png"] * 2
    assert [[entry is not None for entry in image["runs"]] for image in data["images"]] == [[True, False]] * 3 + [
        [False, True]
    ] * 3
    assert [image["named"] for image in data["images"]] == [0, 0, 0, 1, 1, 1]
    assert data["classes"][1] == {"0": "tench", "1": "crane (1)", "2": "crane (2)"}
    (bars,) = [chart for chart in data["charts"] if "yOffset" in chart.get("encoding", {})]
    values = [(value["run"], value["class"]) for value in bars["data"]["values"] if value["metric"] == "AD"]
    assert values == [
        *(("OptiCAM", name) for name in ("tabby", "tiger cat", "<b>lynx</b>")),
        *(("GradCAM", name) for name in ("tench", "crane (1)", "crane (2)")),
    ]


def test_a_difference_on_one_image_has_no_interval(tmp_path):
    runs = [a_run(tmp_path / "OptiCAM", [a_row(0, 3.0)]), a_run(tmp_path / "GradCAM", [a_row(0, 1.0)])]
    text = write_page(runs, tmp_path / "page").read_text("utf-8")
    assert '<td class="number">-2.00</td><td class="number">- to -</td>' in text


def test_two_metrics_of_one_key_have_a_column_each(tmp_path):
    described = {"digits": 1, "path": "", "aggregate": "mean", "label": "Own"}
    for name, unit in (("OptiCAM", "%"), ("GradCAM", "px")):
        own = {"metrics": ["own"], "metric_info": {"own": {**described, "unit": unit, "higher_is_better": True}}}
        a_run(tmp_path / name, [a_row(0, scores={"own": 3.0})], **own)
    text = write_page([tmp_path / "OptiCAM", tmp_path / "GradCAM"], tmp_path / "page").read_text("utf-8")
    heads = re.findall(r'<button type="button" title="[^"]*">(.*?)</button>', text)
    assert heads[:2] == ["Own (%) ↑", "Own (px) ↑"]
    assert "number best" not in text  # there is nothing to compare


def test_the_gallery_knows_each_image_and_has_its_pictures(page):
    data = data_of(page)
    assert data["runs"] == ["OptiCAM", "GradCAM", "FakeCAM"]
    assert data["classes"] == [{"0": "tabby", "1": "tiger cat", "2": "<b>lynx</b>"}]
    assert {image["named"] for image in data["images"]} == {0}
    assert len(data["images"]) == 12
    image = data["images"][4]
    assert (image["id"], image["photo"]) == ("4.png", "images/0004.jpg")
    assert [(run["target"], run["predicted"], run["p"], run["o"]) for run in image["runs"]][1] == (1, 0, 0.5, 0.35)
    assert image["runs"][0]["scores"]["average_drop"] == pytest.approx(40)
    assert 0.5 < image["disagreement"] < 1.5  # maps of noise are not correlated
    for file in [image["photo"], *(run["map"] for run in image["runs"])]:
        with Image.open(page.parent / file) as picture:
            assert picture.size == (32, 24)


def test_every_chart_is_a_specification_that_vega_lite_draws(page):
    charts = data_of(page)["charts"]
    assert len(charts) == 1 + 1 + 1 + 3  # drop against gain, curves, classes, differences of three metrics
    for chart in charts:
        chart |= {"width": 300}  # a number where the page gives a container
        svg = vl_convert.vegalite_to_svg(chart, vl_version="6.4")
        assert svg.startswith("<svg")
        assert "NaN" not in svg


def test_differences_and_settings_stand_on_the_page(page, runs):
    text = page.read_text("utf-8")
    assert "Differences from OptiCAM" in text
    summaries = json.loads(report(runs, "json", against=runs[0]))
    sure = [pair["p"] < 0.05 for summary in summaries for pair in pairs_of(summary)]
    assert [bool(found) for found in re.findall(r'<td class="number( best)?">[+-][\d.]+</td>', text)] == sure
    row = re.search(r'<th scope="row">layer</th>(.*?)</tr>', text)
    assert row is not None
    assert re.findall("<td>(.*?)</td>", row[1]) == ["layer0", "layer1", "layer2"]
    assert "<dt>baseline</dt><dd>black</dd>" in text


def test_no_name_becomes_markup_or_ends_the_data(tmp_path):
    changes = {"explainer": NASTY, "run": NASTY, "data": NASTY, "class_names": [NASTY, NASTY], "classifier": NASTY}
    rows = [a_row(0, id=NASTY, status="degenerate", reason=NASTY), a_row(1)]
    run = a_run(tmp_path / "run", rows, settings={NASTY: NASTY}, **changes)
    save_thumbnails(run, 0, [0], torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))
    page = write_page([run], tmp_path / "out")
    scripts = [attributes for tag, attributes in Tags(page.read_text("utf-8")).tags if tag == "script"]
    assert len(scripts) == 3
    assert not [tag for tag, _ in Tags(page.read_text("utf-8")).tags if tag == "img"]
    assert data_of(page)["images"][0]["id"] == NASTY


def test_the_page_names_no_address_but_that_of_the_schema(page):
    head = page.read_text("utf-8").partition("<script>")[0]
    assert set(re.findall(r"https?://[^\s\"'<]+", head)) <= {"https://vega.github.io/schema/vega-lite/v6.json"}
    assert not re.search(r'(src|href)="(?!#)', head)


def test_runs_without_pictures_are_told_and_older_ones_show_their_panels(tmp_path, runs):
    bare = a_run(tmp_path / "bare", [a_row(i) for i in range(3)])
    text = write_page([bare], tmp_path / "one").read_text("utf-8")
    assert "The runs have stored no pictures" in text
    assert "None: There is one run only." in text
    old = a_run(tmp_path / "old", [a_row(i) for i in range(3)])
    (old / "overlays").mkdir()
    Image.new("RGB", (900, 200), "red").save(old / "overlays" / "0-red.png")
    index = {"0.png": "0-red.png", "1.png": "../../outside.png", "2.png": "gone.png"}
    (old / "overlays" / "index.json").write_text(json.dumps(index))
    page = write_page([old, bare], tmp_path / "two")
    (image,) = data_of(page)["images"]
    assert image["photo"] is None
    assert [run.get("map") for run in image["runs"]] == ["images/0000-0.jpg", None]
    assert "Without pictures: bare." in page.read_text("utf-8")
    with Image.open(page.parent / "images" / "0000-0.jpg") as picture:
        assert picture.size == (792, 176)


def test_a_limit_takes_images_evenly(runs, tmp_path):
    page = write_page(runs[:1], tmp_path / "out", limit=3)
    assert [image["id"] for image in data_of(page)["images"]] == ["0.png", "4.png", "8.png"]
    assert "3 of 12 images." in page.read_text("utf-8")
    with pytest.raises(ValueError, match="Expected `limit` to be a positive integer, but got 0"):
        write_page(runs, tmp_path / "out", limit=0)


def test_runs_that_cannot_be_compared_say_why(runs, tmp_path):
    other = pictured_run(tmp_path / "other", data="cats")
    text = write_page([runs[0], other], tmp_path / "out").read_text("utf-8")
    assert "cannot be compared image by image: their data are" in text
    with pytest.raises(RunFolderError, match="their data are"):
        write_page([other], tmp_path / "out", against=runs[0])


def test_broken_pictures_are_errors_in_words(tmp_path):
    run = pictured_run(tmp_path / "run")
    file = run / "thumbnails" / "b000000.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunFolderError, match=r"b000000.safetensors: its checksum does not match"):
        write_page([run], tmp_path / "out")
    old = a_run(tmp_path / "old", [a_row(0)])
    (old / "overlays").mkdir()
    (old / "overlays" / "0.png").write_text("no picture")
    (old / "overlays" / "index.json").write_text('{"0.png": "0.png"}')
    with pytest.raises(RunFolderError, match=r"Cannot read .*0.png"):
        write_page([old], tmp_path / "out")
    (old / "overlays" / "index.json").write_text("[1")
    with pytest.raises(RunFolderError, match=r"Cannot read .*index.json"):
        write_page([old], tmp_path / "out")


def test_a_page_of_one_file_holds_its_pictures(runs, page, tmp_path, capsys):
    assert report_command([*map(str, runs), "--html", str(tmp_path / "page.html")]) == 0
    file = tmp_path / "page.html"
    assert capsys.readouterr().out == f"{file}: open it in a browser, or send it\n"
    assert list(tmp_path.iterdir()) == [file]
    content = [data_of(file), data_of(page)]
    for inside, beside in zip(content[0].pop("images"), content[1].pop("images"), strict=True):
        assert base64.b64decode(inside["photo"].partition("base64,")[2]) == (page.parent / beside["photo"]).read_bytes()
        for one, other in zip(inside["runs"], beside["runs"], strict=True):
            assert base64.b64decode(one["map"].partition("base64,")[2]) == (page.parent / other["map"]).read_bytes()
    assert content[0] == content[1]


def test_the_command_writes_the_page_and_says_where(runs, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    assert report_command([*map(str, runs), "--html", str(folder), "--limit", "2", "--against", str(runs[2])]) == 0
    said = capsys.readouterr().out
    assert said == f"{folder / 'index.html'}: open it in a browser; to send it, send its folder {folder}\n"
    assert "Differences from FakeCAM" in (folder / "index.html").read_text("utf-8")
    assert report_command([str(runs[0]), "--html", str(folder), "--limit", "0"]) == 1
    assert "Expected `limit`" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert report_command([str(runs[0]), "--html", str(folder)]) == 1
    assert 'pip install "optcam_pl[page]"' in capsys.readouterr().err


# Thumbnails -----------------------------------------------------------------------------------------------------------


def test_thumbnails_come_back_as_they_were_stored(tmp_path):
    images = torch.zeros(2, 3, 300, 150)
    images[1] = 1
    maps = torch.rand(2, 1, 40, 20)
    save_thumbnails(tmp_path, 3, [30, 31], images, maps)
    found = read_thumbnails(tmp_path)
    assert list(found) == [30, 31]
    with Image.open(io.BytesIO(found[31].jpeg)) as picture:
        assert (picture.size, picture.getpixel((5, 5))) == ((88, 176), (255, 255, 255))
    np.testing.assert_array_equal(found[30].saliency, maps[0, 0].mul(255).round().byte())
    assert read_thumbnails(tmp_path / "none") == {}


@pytest.mark.parametrize("images", [1, 499, 500, 501, 997, 50_000])
def test_at_most_500_images_have_thumbnails_spread_evenly(images):
    indices = [index for index in range(images) if chosen(index, images)]
    assert len(indices) == min(images, MOST)
    gaps = {later - earlier for earlier, later in pairwise(indices)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_scores_without_a_probability_are_called_scores(tmp_path: Path) -> None:
    settings = {"baseline": "black", "scores": "Regression(direction=up)", "link": "identity"}
    write_page([pictured_run(tmp_path / "a", settings=settings), pictured_run(tmp_path / "b", 4)], tmp_path / "page")
    page = tmp_path / "page" / "index.html"
    assert data_of(page)["quantities"] == ["score", "p"]
    assert "p is the class's probability, and score is the number that is explained" in page.read_text("utf-8")
    write_page([tmp_path / "b"], tmp_path / "usual")
    text = (tmp_path / "usual" / "index.html").read_text("utf-8")
    assert "p is the class's probability for the photograph" in text
    assert "score is the number" not in text
