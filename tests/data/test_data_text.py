"""Text files and labels as people have them: the right number, a word, nothing, or a refusal."""

import numpy as np
import pytest

from optcam_pl.data.labels import LabelReader
from optcam_pl.data.text import check_encoding, class_names_of, class_number, decode_text


@pytest.mark.parametrize("label", [3, "3", " 3 ", "3.0", "3.", "+3", "003", "3e0", "3.000e+00", 3.0, np.int64(3)])
def test_a_number_is_read_however_it_is_written(label: object) -> None:
    assert class_number(label) == 3
    assert LabelReader("abcd")(label) == 3


@pytest.mark.parametrize("label", ["", " ", "nan", "NaN", "None", "NA", "N/A", "<NA>", "null", "-1", "-1.0", "-1e0"])
def test_what_says_that_there_is_nothing_is_no_label(label: str) -> None:
    assert class_number(label) == LabelReader("abcd")(label) == -1


@pytest.mark.parametrize("label", [None, float("nan"), np.float32("nan"), -1, -1.0, np.int8(-1)])
def test_nothing_is_no_label(label: object) -> None:
    assert class_number(label) == -1


@pytest.mark.parametrize(
    "label",
    ["2.5", "-2", "-1.5", "1,0", "1,000", "1.000.000", "1e9", "9" * 400, "1e999", 2.5, -2, float("inf"), 10**400],
)
def test_a_number_that_is_none_of_a_class_is_refused(label: object) -> None:
    with pytest.raises(ValueError, match="Expected a label to be a class's name or its number"):
        class_number(label)


def test_other_things_are_words_or_no_labels() -> None:
    assert [class_number(label) for label in ("cat", "none", "3rd", "1/2", "3 4", "1_000", "e5", "-")] == [None] * 8
    with pytest.raises(TypeError, match="a number or text, but got list"):
        class_number([1])


def test_a_name_of_a_class_goes_before_what_it_looks_like() -> None:
    read = LabelReader(["None", "007", "NA"])
    assert [read(label) for label in ("None", "007", "7.0", 7, "NA", "")] == [0, 1, 1, 1, 2, -1]
    with pytest.raises(ValueError, match="Expected a label of 3 classes, one of the names .*, but got '0'"):
        read("0")
    both = LabelReader(["7", "07"])
    assert (both("07"), both("7")) == (1, 0)
    with pytest.raises(ValueError, match="one of the names"):
        both("7.0")


def test_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 classes, in 0\.\.1 \(-1 or empty: none\), but got '2\.0'"):
        LabelReader(["a", "b"])("2.0")


def test_words_and_numbers_in_one_table_are_refused_with_their_rows() -> None:
    with pytest.raises(ValueError, match=r"of the table to be all numbers or all words, but row 3 has 'cat' and row 2"):
        class_names_of([(2, "1.0"), (3, " cat")], "the table")
    with pytest.raises(ValueError, match=r"Row 4 of the table is wrong: .* got '2\.5'"):
        class_names_of([(2, "1.0"), (4, "2.5")], "the table")
    assert class_names_of([(2, ""), (3, "-1")], "the table") is None


def test_text_in_another_encoding_is_named() -> None:
    assert decode_text("\ufeffä\n".encode(), "x") == "ä\n"
    assert decode_text("ä".encode("utf-16"), "x", "utf-16") == "ä"
    assert decode_text("ä".encode("latin-1"), "x", "latin-1") == "ä"
    for data in ("a\nä".encode("latin-1"), "a\nb".encode("utf-16"), "a\nb".encode("utf-16-le")):
        with pytest.raises(ValueError, match=r"Expected the text file 'x\.csv' to be written in utf-8, but it is not"):
            decode_text(data, "x.csv")
    with pytest.raises(ValueError, match="byte 0xE4 in line 2"):
        decode_text("a\nä".encode("latin-1"), "x.csv")
    with pytest.raises(ValueError, match="`encoding` to name one"):
        check_encoding("utf-7000")
