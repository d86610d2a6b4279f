"""Messages of jsonargparse, shortened."""

from __future__ import annotations

import pytest

from optcam_pl.cli.errors import plain

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'optcam_pl.tasks.SaliencyTask':
        Parser key "metrics":
          Does not validate against any of the Union subtypes
          Subtypes: [list[ImageMetric], typing.Literal['all'], <class 'NoneType'>]
          Errors:
            - Expected an instantiatable class, but ImageMetric is abstract
            - Expected a typing.Literal['all']
            - Expected a <class 'NoneType'>
          Given value type: <class 'NestedArg'>
          Given value: NestedArg(key='foo', val='3')
    - Expected a <class 'NoneType'>
  Given value type: <class 'NestedArg'>
  Given value: NestedArg(key='metrics.foo', val='3')
and more"""


def test_blocks_within_blocks_leave_their_faults() -> None:
    assert (
        plain(NESTED)
        == """Parser key "model":
  Problem with given class_path 'optcam_pl.tasks.SaliencyTask':
    Parser key "metrics":
      - Expected an instantiatable class, but ImageMetric is abstract
      - Expected a typing.Literal['all']
and more"""
    )


@pytest.mark.parametrize("text", ["", "There is no folder 'x'.\n", NESTED.partition("  Given")[0], " a\n\n  b"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_a_fault_of_a_class_is_told_once_and_not_the_types_that_it_is_not() -> None:
    text = """Does not validate against any of the Union subtypes
Subtypes: [<class 'Scores'>, collections.abc.Callable, collections.abc.Sequence, <class 'NoneType'>]
Errors:
  - Expected `threshold` to be in (0, 1], but got 2.0.
  - Expected `threshold` to be in (0, 1], but got 2.0.
  - Expected a <class 'collections.abc.Sequence'>
  - Expected a <class 'NoneType'>
Given value type: <class 'Namespace'>
Given value: Namespace(threshold=2.0)"""
    assert plain(text) == "Expected `threshold` to be in (0, 1], but got 2.0."
