"""Opti-CAM by replays: on a CPU the capture is played by a plain call, which shows everything but the graph itself."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from optcam_pl import Classifier, GradCAM, OptiCAM, ScoreCAM
from optcam_pl.explainers import FinerCAM, opticam, replay
from optcam_pl.explainers.batching import Chunks
from optcam_pl.explainers.steps import Step, listening
from optcam_pl.network.speed import FasterNetwork

PARTS = ["_iterate", "_load", "_finish"]


class _Again:
    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on a GPU, with plain calls in place of replays; the names of what is captured."""
    made: list[str] = []

    def capture(work: Callable[[], None], device: torch.device) -> _Again:
        made.append(work.__name__)
        for _ in range(3):
            work()
        return _Again(work)

    monkeypatch.setattr(FasterNetwork, "replays", lambda self, image: True)
    monkeypatch.setattr(replay, "capture", capture)
    monkeypatch.setattr(replay, "_make_capturable", replay.fuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return made


def fast(**settings: Any) -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    return Classifier(network.eval(), target_layer="4", mean=0, std=1, input_size=16, **{"speed": "graph", **settings})


@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "fast"}, {"objective": "io_diff", "normalizer": "sigmoid"}, {"tol": 1e-2}, {"baseline": "blur"}],
)
def test_replays_give_the_digits_of_plain_iterations(captures: list[str], settings: dict[str, Any]) -> None:
    classifier, first, second = fast(), torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    explainer = OptiCAM(**{"max_iter": 12, **settings})
    ours = [explainer(classifier, image, 1) for image in (first, second, first)]
    assert captures == PARTS  # once for all batches of this shape
    assert ours[0].objective is not None
    assert torch.equal(ours[0].objective, ours[2].objective)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opticam, "climb", lambda *given: None)
        right = [explainer(classifier, image, 1) for image in (first, second)]
    for a, b in zip(ours, right, strict=False):
        assert torch.equal(a.objective, b.objective)  # type: ignore[arg-type]
        assert torch.equal(a.weights, b.weights)  # type: ignore[arg-type]
        assert torch.equal(a.saliency, b.saliency)


def test_another_shape_or_setting_is_captured_anew_and_the_watcher_is_called(captures: list[str]) -> None:
    classifier, explainer, seen = fast(), OptiCAM(max_iter=4), []
    explainer.watch = lambda t, F, weights: seen.append((t, F))
    found = explainer(classifier, torch.rand(2, 3, 16, 16), 1)
    assert torch.equal(torch.stack([F for _, F in seen]), found.objective)  # type: ignore[arg-type]
    explainer(classifier, torch.rand(3, 3, 16, 16), 1)
    OptiCAM(max_iter=4, lr=0.2)(classifier, torch.rand(3, 3, 16, 16), 1)
    assert captures == 3 * PARTS


def test_a_replay_that_is_wrong_is_found_and_told(
    captures: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replay, "capture", lambda work, device: (work(), _Again(lambda: None))[1])
    classifier, image = fast(), torch.rand(2, 3, 16, 16)
    with caplog.at_level(logging.WARNING):
        found = OptiCAM(max_iter=4)(classifier, image, 1)
        OptiCAM(max_iter=4)(classifier, image, 1)
    assert (
        len([r for r in caplog.records if "are not replayed: the iteration cannot be a CUDA graph: its" in r.message])
        == 1
    )
    monkeypatch.setattr(opticam, "climb", lambda *given: None)
    assert torch.equal(found.saliency, OptiCAM(max_iter=4)(classifier, image, 1).saliency)


def test_a_network_that_cannot_be_captured_and_an_optimizer_without_it_are_told(
    captures: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(work: Callable[[], None], device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replay, "capture", failing)
    with caplog.at_level(logging.WARNING):
        OptiCAM(max_iter=2)(fast(), torch.rand(2, 3, 16, 16), 1)
    assert caplog.records[-1].message.endswith("CUDA graph: operation not permitted when stream is capturing")
    monkeypatch.undo()
    monkeypatch.setattr(FasterNetwork, "replays", lambda self, image: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with caplog.at_level(logging.WARNING):
        OptiCAM(max_iter=2, optimizer=lambda u: torch.optim.SGD(u, lr=0.1))(fast(), torch.rand(2, 3, 16, 16), 1)
    assert caplog.records[-1].message.endswith("SGD has no `capturable`.")


@pytest.mark.parametrize("enough", [False, True])
def test_memory_of_captures_is_given_back_before_passes_are_halved(captures: list[str], enough: bool) -> None:
    classifier, image = fast(), torch.rand(2, 3, 16, 16)
    OptiCAM(max_iter=2)(classifier, image, 1)
    sizes: list[int] = []

    def step(part: slice) -> Tensor:
        sizes.append(part.stop - part.start)
        if sizes[-1] > 1 and not (enough and len(sizes) > 1):
            raise torch.OutOfMemoryError
        return torch.zeros(1, sizes[-1])

    assert Chunks(2).cat(step, 3).shape == (1, 3)
    assert sizes == ([2, 2, 1] if enough else [2, 2, 1, 1, 1])
    OptiCAM(max_iter=2)(classifier, image, 1)
    assert captures == 2 * PARTS
    ScoreCAM()(classifier, image, 1)


def test_an_explainer_that_runs_out_of_memory_gets_that_of_captures_once(
    captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, image, calls = fast(), torch.rand(2, 3, 16, 16), []
    right, explain = GradCAM()(classifier, image, 1), GradCAM.explain

    def hungry(self: GradCAM, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        assert not classifier.fast.forget()  # it is given back already
        return explain(self, *given)

    monkeypatch.setattr(GradCAM, "explain", hungry)
    OptiCAM(max_iter=2)(classifier, image, 1)
    assert torch.equal(GradCAM()(classifier, image, 1).saliency, right.saliency)
    calls.clear()
    with pytest.raises(torch.OutOfMemoryError):  # nothing is captured any more
        GradCAM()(classifier, image, 1)


def test_whoever_shows_progress_hears_of_replays_as_of_plain_iterations(captures: list[str]) -> None:
    classifier, image = fast(), torch.rand(2, 3, 16, 16)
    heard: list[Step] = []
    with listening(heard.append):
        found = OptiCAM(max_iter=3)(classifier, image, 1)
    assert [(step.what, step.done, step.total) for step in heard] == [("iteration", t, 3) for t in range(3)]
    assert torch.equal(torch.stack([step.objective for step in heard]), found.objective[:-1])  # type: ignore[index,misc]


def test_results_do_not_depend_on_what_was_captured_before(captures: list[str]) -> None:
    """A run that goes on computes its last block, which is smaller, as the first of its process."""
    images, target = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    explainer, classifier = OptiCAM(max_iter=5), fast(speed="auto")
    for _ in range(3):
        explainer(classifier, images, target)
    assert captures == PARTS
    last = explainer(classifier, images[1:3], target[1:3])
    assert captures == PARTS
    alone = explainer(copy.deepcopy(classifier), images[1:3], target[1:3])
    for name in ("saliency", "weights", "objective"):
        assert torch.equal(getattr(last, name), getattr(alone, name))


def test_plain_and_captured_iterations_step_by_the_same_kernels(
    captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[bool | None, bool | None]] = []

    class Noted(Adam):
        def step(self, closure: Any = None) -> Any:
            steps.append((self.defaults["fused"], self.param_groups[0]["fused"]))
            return super().step(closure)

    monkeypatch.setattr(opticam, "Adam", Noted)
    monkeypatch.setattr(replay, "Adam", Noted)
    explainer, classifier, image = OptiCAM(max_iter=3), fast(speed="auto"), torch.rand(2, 3, 16, 16)
    for _ in range(2):  # plain, then captured
        steps.clear()
        explainer(classifier, image, 1)
        assert set(steps) == {(None, True)}
    assert captures == PARTS
    steps.clear()
    explainer(fast(speed="plain"), image, 1)
    assert set(steps) == {(None, None)}


def test_results_are_not_overwritten_by_the_next_batch(captures: list[str]) -> None:
    classifier, explainer = fast(), OptiCAM(max_iter=3)
    first = explainer(classifier, torch.rand(2, 3, 16, 16), 1)
    kept = [t.clone() for t in (first.saliency, first.weights, first.objective, first.target)]  # type: ignore[union-attr]
    explainer(classifier, torch.rand(2, 3, 16, 16), 2)
    for ours, right in zip((first.saliency, first.weights, first.objective, first.target), kept, strict=True):
        assert torch.equal(ours, right)  # type: ignore[arg-type]


def test_scores_that_are_bound_for_a_while_are_not_captured(captures: list[str]) -> None:
    classifier, image = fast(), torch.rand(2, 3, 16, 16)
    OptiCAM(max_iter=4)(classifier, image, 1)
    ours = FinerCAM(OptiCAM(max_iter=4))(classifier, image, 1)
    assert captures == PARTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opticam, "climb", lambda *given: None)
        assert torch.equal(ours.saliency, FinerCAM(OptiCAM(max_iter=4))(classifier, image, 1).saliency)


def test_what_surrounds_the_iterations_is_plain_where_it_cannot_be_captured(
    captures: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = replay.capture

    def capture(work: Callable[[], None], device: torch.device) -> Any:
        if work.__name__ == "_load":
            raise RuntimeError("operation not permitted when stream is capturing")
        return _Again(lambda: None) if work.__name__ == "_finish" else good(work, device)

    monkeypatch.setattr(replay, "capture", capture)
    classifier, image = fast(), torch.rand(2, 3, 16, 16)
    with caplog.at_level(logging.INFO):
        found = [OptiCAM(max_iter=4)(classifier, image, 1) for _ in range(2)]
    told = [record.message for record in caplog.records if "surrounds" in record.message]
    assert len(told) == 2
    assert told[0].endswith("not replayed: operation not permitted when stream is capturing")
    assert told[1].endswith("not replayed: its result differs from a plain one by more than rounding.")
    monkeypatch.setattr(opticam, "climb", lambda *given: None)
    right = OptiCAM(max_iter=4)(classifier, image, 1)
    assert all(torch.equal(one.saliency, right.saliency) for one in found)


def test_several_sizes_of_a_batch_stay_captured(captures: list[str]) -> None:
    classifier, explainer = fast(), OptiCAM(max_iter=2)
    for count in (2, 3, 4, 2, 3, 4):
        explainer(classifier, torch.rand(count, 3, 16, 16), 1)
    assert captures == 3 * PARTS
    for count in (5, 3, 2):  # the one that was used least recently makes room
        explainer(classifier, torch.rand(count, 3, 16, 16), 1)
    assert captures == 5 * PARTS


def test_several_explainers_that_take_turns_stay_captured(captures: list[str]) -> None:
    classifier, image = fast(), torch.rand(2, 3, 16, 16)
    for _ in range(3):
        for rate in (0.1, 0.2, 0.3):
            OptiCAM(max_iter=2, lr=rate)(classifier, image, 1)
    assert captures == 3 * PARTS
    OptiCAM(max_iter=2, lr=0.4)(classifier, image, 1)  # more than are kept
    OptiCAM(max_iter=2, lr=0.1)(classifier, image, 1)
    assert captures == 5 * PARTS


def test_auto_captures_a_size_when_it_comes_again(captures: list[str]) -> None:
    classifier, explainer, image = fast(speed="auto"), OptiCAM(max_iter=4), torch.rand(2, 3, 16, 16)
    first = explainer(classifier, image, 1)
    assert not captures
    again = explainer(classifier, image, 1)
    assert captures == PARTS
    assert torch.equal(first.saliency, again.saliency)


def test_a_capture_that_runs_out_of_memory_is_tried_again_without_the_others(
    captures: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    classifier, explainer, failing = fast(), OptiCAM(max_iter=2), [True, False, True, True]
    good = replay.capture

    def capture(work: Callable[[], None], device: torch.device) -> Any:
        if work.__name__ == "_iterate" and failing.pop(0):
            raise torch.OutOfMemoryError
        return good(work, device)

    monkeypatch.setattr(replay, "capture", capture)
    with caplog.at_level(logging.WARNING):
        explainer(classifier, torch.rand(2, 3, 16, 16), 1)
        assert captures == PARTS
        assert not caplog.records
        for _ in range(2):
            explainer(classifier, torch.rand(9, 3, 16, 16), 1)
    assert not failing
    assert [record.message for record in caplog.records] == [
        "Opti-CAM's iterations on Sequential are not replayed: there is not enough memory for a CUDA graph."
    ]
