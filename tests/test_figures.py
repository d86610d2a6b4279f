"""Names in any script: drawn with a font that has their characters, escaped or numbered where there is none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from optcam_pl.figures import Tile, card, confusion_figure, contact_sheet, fonts, row, titled, undrawn
from optcam_pl.figures.fonts import drawable, in_one_font, legible

CAT = "猫"


@pytest.fixture(autouse=True)
def _only_matplotlibs_own_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without any other font; warnings are errors, also that of a character that no font has."""
    own = [entry for entry in fontManager.ttflist if entry.name in ("DejaVu Sans", "DejaVu Sans Mono")]
    monkeypatch.setattr(fontManager, "ttflist", own)
    _forget()
    yield
    _forget()


def _forget() -> None:
    for cached in (fonts._font_with, fonts._family_of):
        cached.cache_clear()


@pytest.fixture
def font_of_cats(tmp_path: Path) -> Path:
    """A heavy font whose only character is a filled square for a cat, as the machine's own."""
    pen = TTGlyphPen(None)
    for move, *point in ((pen.moveTo, 100, 0), (pen.lineTo, 100, 700), (pen.lineTo, 800, 700), (pen.lineTo, 800, 0)):
        move(tuple(point))
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "cat": (900, 100)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Black"})
    builder.setupOS2(usWeightClass=900)
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    fontManager.addfont(tmp_path / "cats.ttf")
    return tmp_path / "cats.ttf"


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def tick_words(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_a_confusion_matrix_has_numbers_for_the_names_that_no_font_has() -> None:
    names = [CAT, "naïve Жук", "$5"]
    figure = confusion_figure(np.eye(3, dtype=int).tolist(), names)
    assert tick_words(figure) == ["class 0", "naïve Жук", r"\$5"]
    figure.savefig(io.BytesIO())
    assert undrawn(names) == {0: CAT}
    assert undrawn([CAT] * 21) == {}  # so many classes are not named in the figure


def test_a_font_of_the_machine_is_taken_where_it_has_the_characters(
    font_of_cats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    figure = confusion_figure([[1, 0], [0, 1]], [CAT, f"{CAT} dog"])
    assert tick_words(figure) == [CAT, f"{CAT} dog"]
    named = pixels(figure)
    # Both labels of the first row and column are black squares now.
    assert (named.sum(2) < 30).sum() > (pixels(confusion_figure([[1, 0], [0, 1]], ["", " dog"])).sum(2) < 30).sum() + 50
    assert undrawn([CAT]) == {}
    assert in_one_font(CAT) == (CAT, str(font_of_cats))
    assert in_one_font(f"{CAT} dog") == (r"\u732b dog", None)  # no single font has both
    assert not caplog.records  # as of a weight that the font does not have


def test_every_word_of_a_figure_is_made_legible() -> None:
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.plot([1, 2], [1, 2], label=CAT)
    axes.set(title=f"{CAT} λ", xlabel=CAT, ylabel="plain")
    axes.set_xticks([1, 2], [CAT, "dog"], rotation=45)
    axes.legend()
    figure.suptitle(CAT)
    legible(figure)
    pixels(figure)
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (r"\u732b λ", r"\u732b", "plain")
    assert [label.get_text() for label in axes.get_xticklabels()] == [r"\u732b", "dog"]
    assert axes.get_xticklabels()[0].get_rotation() == 45
    assert axes.get_legend().get_texts()[0].get_text() == r"\u732b"


def test_a_figure_of_plain_words_is_not_touched() -> None:
    def drawn() -> Figure:
        figure = Figure()
        figure.add_subplot(title="naïve Ж").plot([0.001, 1000], [1, 2])
        figure.axes[0].set_xscale("log")
        return figure

    assert np.array_equal(pixels(drawn()), pixels(legible(drawn())))


def test_words_above_pictures_have_a_font_or_an_escape(font_of_cats: Path) -> None:
    tile = np.full((20, 150, 3), 255, np.uint8)
    for make in (lambda word: row([tile], [word]), lambda word: card([tile], [word]), lambda word: titled(tile, word)):
        blank, escaped, cat = (make(word) for word in ("", f"{CAT} dog", CAT))
        assert np.array_equal(escaped, make(r"\u732b dog"))
        dark = (cat.sum(2) < 30).sum()
        assert 60 < dark < 1000  # a square of 9 pixels or more
        assert (blank.sum(2) < 30).sum() == 0
        # Pillow's own font has no accents: two of them would be the same empty box.
        assert not np.array_equal(make("ä"), make("é"))
        assert not np.array_equal(make("Ж"), make("λ"))


def test_a_sheet_of_a_notebook_has_legible_words() -> None:
    tile = np.zeros((8, 8, 3), np.uint8)
    sheet = contact_sheet([[Tile(tile, CAT, f"{CAT} 0.5")]])
    pixels(sheet)
    assert sheet.axes[0].get_title() == drawable(CAT) == r"\u732b"
