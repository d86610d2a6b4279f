"""One classifier in many threads: the same maps as one call after the other, and no trace."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from explainer_cases import leaves_no_trace, tiny_cnn, tiny_vit
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from optcam_pl import Classifier, GradCAM, explainers
from optcam_pl.data import Batch
from optcam_pl.evaluate.probes import Probes
from optcam_pl.explainers import LIME, AblationCAM, CallableExplainer, CaptumExplainer, Explainer, ScoreCAM
from optcam_pl.explainers.external import seeded, untouched
from optcam_pl.explainers.upper_part import UpperPart
from optcam_pl.metrics import METRICS
from optcam_pl.network.capture import LayerNotCalledError, capture
from optcam_pl.network.choosing import trace
from optcam_pl.threads import alone, hook_input, hook_output, passing

BLOCKS = sorted((Path(__file__).parent.parent / "configs" / "explainer").glob("*.yaml"))
FITTING: dict[str, dict[str, Any]] = {"aopc": {"regions": 2}, "infidelity": {"patch": 4}}  # to images of 32 pixels
THREADS, CALLS, LONG = 4, 200, 60.0


@pytest.fixture(autouse=True)
def _captum() -> None:
    pytest.importorskip("captum")


@contextmanager
def many_threads() -> Iterator[ThreadPoolExecutor]:
    """Four threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            yield pool
    finally:
        sys.setswitchinterval(before)


def shortened(settings: Any, name: str = "") -> Any:
    """The settings of a config block with fewer steps, samples and masks; rectangles, as SLIC takes long."""
    if isinstance(settings, dict):
        return {key: shortened(value, key) for key, value in settings.items()}
    if isinstance(settings, int) and any(word in name for word in ("iter", "steps", "samples", "masks")):
        return min(settings, 3)
    return "grid" if name == "segments" else settings


def from_block(block: Path) -> Explainer:
    written = yaml.safe_load(block.read_text())
    kind = getattr(explainers, written["class_path"].rpartition(".")[2])
    explainer = kind(**shortened(written.get("init_args", {})))
    assert isinstance(explainer, Explainer)
    return explainer


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def random_state() -> list[object]:
    numbers = np.random.get_state()  # noqa: NPY002 (others draw from it)
    return [torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2]]


# Every explainer and probe -------------------------------------------------------------------------------------------


def jobs() -> list[tuple[str, Callable[[], Tensor]]]:
    """Every config block on a CNN and a transformer, as far as it is made for them, and plain passes."""
    made: list[tuple[str, Callable[[], Tensor]]] = []
    for classifier in (tiny_cnn(), tiny_vit()):
        twin = Classifier(classifier.network, target_layer=list(classifier.target_layers), input_size=16)
        for number, image in enumerate(images()):
            made += [("pass", lambda c=twin, x=image: c(x)), ("layer", lambda c=classifier, x=image: layer_of(c, x))]
            for block in BLOCKS:
                explainer = from_block(block)
                try:
                    explainer.check(classifier)
                except (ValueError, TypeError):
                    continue
                target = number % 5

                def job(
                    e: Explainer = explainer, c: Classifier = classifier, x: Tensor = image, t: int = target
                ) -> Tensor:
                    saliency: Tensor = e(c, x, t).saliency
                    return saliency

                made.append((block.stem, job))
    assert {block.stem for block in BLOCKS} <= {name for name, _ in made}
    return made


def layer_of(classifier: Classifier, image: Tensor) -> Tensor:
    name = classifier.target_layers[0]
    with torch.no_grad(), capture({name: classifier.layer(name)}) as record:
        classifier(image)
    return record[name]


def test_every_explainer_gives_in_four_threads_what_it_gives_in_one() -> None:
    calls = jobs()
    calls = calls * -(-CALLS // len(calls))
    expected = [call() for _, call in calls]
    order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(0)).tolist()
    before = random_state()
    with many_threads() as pool:
        found = {i: pool.submit(calls[i][1]) for i in order}
    assert len(calls) >= CALLS
    for i, (name, _) in enumerate(calls):
        torch.testing.assert_close(found[i].result(), expected[i], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert random_state() == before


def test_nothing_is_left_on_a_network_that_four_threads_explained() -> None:
    classifier, shared = tiny_cnn(), [GradCAM(), AblationCAM(), ScoreCAM(), CaptumExplainer("GuidedBackprop")]
    given = images()
    filters = len(warnings.filters)
    with leaves_no_trace(classifier), many_threads() as pool:
        for explainer in shared * 10:
            list(pool.map(lambda x, e=explainer: e(classifier, x, 1), given))
    assert len(warnings.filters) <= filters + 1  # Captum's own warning about its hooks


def test_one_explainer_object_serves_threads_with_images_of_several_sizes() -> None:
    classifier, explainer = tiny_cnn(), explainers.OptiCAM(max_iter=4)
    given = [torch.rand(1, 3, side, 16) for side in (16, 24, 32, 16) * 4]
    expected = [explainer(classifier, x, 1) for x in given]
    with many_threads() as pool:
        for ours, theirs in zip(pool.map(lambda x: explainer(classifier, x, 1), given), expected, strict=True):
            torch.testing.assert_close(ours.saliency, theirs.saliency, rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.objective, theirs.objective, rtol=0, atol=1e-5)


def test_an_event_loop_may_hand_calls_to_its_executor() -> None:
    classifier, explainer, given = tiny_cnn(), GradCAM(), images(12)

    async def explained() -> list[Tensor]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(None, explainer, classifier, x, 2) for x in given]
        return [e.saliency for e in await asyncio.gather(*calls)]

    for ours, x in zip(asyncio.run(explained()), given, strict=True):
        torch.testing.assert_close(ours, explainer(classifier, x, 2).saliency, rtol=0, atol=1e-6)


def evidence(key: str, classifier: Classifier, explainer: Explainer, image: Tensor) -> dict[str, Any]:
    target = torch.tensor([1])
    batch = Batch(image=image, target=target, id=["a.png"], index=torch.tensor([0]), error=[""])
    with torch.no_grad():
        measured = Probes(classifier, explainer, batch, classifier(image), explainer(classifier, image, target))
        return measured.evidence(METRICS[key](**FITTING.get(key, {})).needs())


@pytest.mark.parametrize("make", [GradCAM, AblationCAM])
def test_every_probe_measures_in_four_threads_what_it_measures_in_one(make: Callable[[], Explainer]) -> None:
    classifier, explainer = tiny_cnn(size=32), make()
    given = torch.rand(3, 1, 3, 32, 32)
    keys = [key for key, kind in METRICS.items() if not {"boxes", "mask"} & set(kind.evidence())]
    asked = [(key, x) for key in keys for x in given]
    expected = [evidence(key, classifier, explainer, x) for key, x in asked]
    with many_threads() as pool:
        for ours, theirs in zip(
            pool.map(lambda one: evidence(one[0], classifier, explainer, one[1]), asked), expected, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ask", [lambda c: c.target_layers, lambda c: c.num_classes, lambda c: c.prefix_tokens,
                                 lambda c: c.weight_hash()])  # fmt: skip
def test_what_a_classifier_finds_out_when_first_asked_four_threads_may_ask_at_once(ask: Callable[..., object]) -> None:
    network = tiny_cnn().network
    expected = ask(Classifier(network, input_size=16))
    for _ in range(10):
        classifier = Classifier(network, input_size=16)
        with many_threads() as pool:
            assert [f.result() for f in [pool.submit(ask, classifier) for _ in range(8)]] == [expected] * 8


# Whose hooks are called ----------------------------------------------------------------------------------------------


def elsewhere(call: Callable[[], Any]) -> Any:
    """What the call gives in another thread, which has to get through."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(LONG)


@pytest.mark.parametrize("cut", [False, True])
def test_another_threads_pass_is_neither_recorded_nor_cut(cut: bool) -> None:
    classifier, (mine, other) = tiny_cnn(), images(2)
    with capture({"4": classifier.network[4]}, cut=cut) as record:
        classifier(mine)
        recorded = record["4"]
        assert not elsewhere(lambda: classifier(other)).requires_grad
        assert not elsewhere(lambda: classifier.network(other)).requires_grad
        assert record["4"] is recorded


def test_a_layer_that_only_another_thread_called_counts_as_not_called() -> None:
    classifier, (x,) = tiny_cnn(), images(1)
    with capture({"4": classifier.network[4]}) as record:
        elsewhere(lambda: classifier(x))
    with pytest.raises(LayerNotCalledError, match="in threads of its own"):
        record["4"]


def test_a_trace_lists_the_own_pass_alone() -> None:
    classifier, (x,) = tiny_cnn(), images(1)
    alone_traced = trace(classifier.network, lambda: classifier(x))
    assert trace(classifier.network, lambda: (classifier(x), elsewhere(lambda: classifier(x)))) == alone_traced


def test_while_one_thread_runs_the_upper_part_others_run_the_whole() -> None:
    classifier, (mine, other) = tiny_cnn(), images(2)
    upper = UpperPart(classifier, "4", mine)
    assert upper.partial
    expected, seen = classifier(other), []

    def look(_module: nn.Module, _args: object, _output: object) -> None:
        undo()  # once
        seen.extend(elsewhere(lambda run=run: run(other)) for run in (classifier, twin))

    twin = Classifier(classifier.network, target_layer="4", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    undo = hook_output(classifier.network[7], look)
    torch.testing.assert_close(upper(upper.activation), upper.logits)
    for logits in seen:
        torch.testing.assert_close(logits, expected)
    assert len(seen) == 2


def test_hooks_of_many_threads_on_one_layer_have_numbers_of_their_own() -> None:
    layer = nn.Identity()
    with many_threads() as pool:
        undo = [f.result() for f in [pool.submit(hook_input, layer, print) for _ in range(2000)]]
    layer.register_forward_pre_hook(lambda *_: None).remove()
    assert len(layer._forward_pre_hooks) == 2000
    for take_off in undo:
        take_off()
        take_off()  # twice does no harm
    assert not layer._forward_pre_hooks


def test_a_hook_of_others_that_gets_a_number_twice_does_not_take_the_place_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, seen = nn.Identity(), []
    monkeypatch.setattr(RemovableHandle, "next_id", RemovableHandle.next_id)
    for _ in range(2):  # as when two threads read torch's counter before one of them has moved it on
        number = RemovableHandle.next_id
        undo = hook_output(layer, lambda *_: seen.append("ours"))
        RemovableHandle.next_id = number
        layer.register_forward_hook(lambda *_: seen.append("theirs"))
    layer(torch.zeros(1))
    assert seen == ["ours", "theirs"] * 2
    undo()


def test_putting_back_what_others_changed_leaves_other_threads_hooks_alone() -> None:
    layer = nn.Sequential(nn.Identity())[0]
    early: Callable[[], object] = elsewhere(lambda: hook_output(layer, print))
    with untouched(layer):
        late = elsewhere(lambda: hook_output(layer, print))
        elsewhere(early)
        layer.register_forward_hook(lambda *_: None)
    assert len(layer._forward_hooks) == 1  # not the early one, which is off, and not the foreign one
    late()
    assert not layer._forward_hooks


def test_putting_back_keeps_the_order_of_modules() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    with untouched(network):
        network._modules["0"] = network._modules.pop("0")
        del network._modules["1"]
    assert [type(module) for module in network] == [nn.ReLU, nn.Tanh, nn.Sigmoid]


# Who waits for whom --------------------------------------------------------------------------------------------------


def test_borrowed_random_generators_have_one_user_at_a_time() -> None:
    def drawn(seed: int) -> list[float]:
        numbers = []
        with seeded(seed, torch.device("cpu")):
            for _ in range(5):
                numbers += [float(torch.rand(1)), random.random(), np.random.rand()]  # noqa: NPY002
                time.sleep(0.002)
        return numbers

    expected = [drawn(seed) for seed in range(THREADS)]
    before = random_state()
    with many_threads() as pool:
        assert list(pool.map(drawn, range(THREADS))) == expected
    assert random_state() == before


class Slow:
    """A saliency function that stays in the middle, with a hook on the network, until it may go on."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()

    def __call__(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        classifier.network[4].register_forward_hook(lambda _module, _args, output: output * 0)
        self.inside.set()
        assert self.go_on.wait(LONG)
        return image.mean(1)


def test_while_code_of_others_has_hooks_on_the_network_passes_wait() -> None:
    classifier, (mine, other) = tiny_cnn(), images(2)
    expected, slow = classifier(other), Slow()
    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(CallableExplainer(slow), classifier, mine, 1)
        assert slow.inside.wait(LONG)
        twin = Classifier(classifier.network, target_layer="4", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        waiting = [pool.submit(run, other) for run in (classifier, twin)]
        copied = copy.deepcopy(classifier)  # a network of its own: does not wait
        assert copied(other).shape == (1, 5)
        time.sleep(0.05)
        assert not any(call.done() for call in waiting)
        slow.go_on.set()
        assert first.result(LONG).saliency.shape == (1, 1, 16, 16)
        for call in waiting:
            torch.testing.assert_close(call.result(LONG), expected)


def test_who_wants_the_network_alone_waits_for_passes_that_have_begun() -> None:
    network, begun, finish = nn.Identity(), threading.Event(), threading.Event()

    def long_pass() -> None:
        with passing(network), passing(network):
            begun.set()
            assert finish.wait(LONG)

    def take() -> bool:
        with alone(network), alone(network), passing(network):
            return finish.is_set()

    with ThreadPoolExecutor(THREADS) as pool:
        pool.submit(long_pass)
        assert begun.wait(LONG)
        taking = pool.submit(take)
        time.sleep(0.05)
        assert not taking.done()
        finish.set()
        assert taking.result(LONG)


def test_two_threads_that_want_the_network_alone_in_the_middle_of_a_pass_both_get_it() -> None:
    network, meet = nn.Identity(), threading.Barrier(2, timeout=LONG)
    events: list[str] = []

    def explain_in_a_pass() -> None:
        with passing(network):
            meet.wait()
            with alone(network):
                events.append("in")
                time.sleep(0.02)
                events.append("out")

    with ThreadPoolExecutor(THREADS) as pool:
        calls: list[Future[None]] = [pool.submit(explain_in_a_pass) for _ in range(2)]
        for call in calls:
            call.result(LONG)
    assert events == ["in", "out"] * 2


def test_explainers_inside_of_own_functions_do_not_lock_each_other_out() -> None:
    classifier = tiny_cnn()
    lime, ablation = LIME("grid", 4, n_samples=4), AblationCAM()

    def both(classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        return lime(classifier, image, target).saliency + ablation(classifier, image, target).saliency

    nested, given = CallableExplainer(both), images(8)
    expected = [[e(classifier, x, 1).saliency for x in given] for e in (nested, lime, ablation)]
    with many_threads() as pool:
        calls = [[pool.submit(e, classifier, x, 1) for x in given] for e in (nested, lime, ablation)]
        found = [[call.result(LONG).saliency for call in row] for row in calls]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_an_exception_in_one_thread_leaves_the_others_right(fault: type[BaseException]) -> None:
    classifier, given = tiny_cnn(), images(8)

    def broken(classifier: Classifier, image: Tensor, _target: Tensor) -> Tensor:
        classifier.network[4].register_forward_hook(lambda *_: 1 / 0)
        classifier.network[0].forward = lambda x: x
        with seeded(0, image.device):
            raise fault

    def stopped(_classifier: Classifier, image: Tensor, _target: int) -> None:
        with capture({"4": classifier.network[4]}, cut=True), hooked(classifier.network[7]):
            classifier(image)

    @contextmanager
    def hooked(layer: nn.Module) -> Iterator[None]:
        undo = hook_output(layer, lambda *_: fail(fault))
        try:
            yield
        finally:
            undo()

    expected = [AblationCAM()(classifier, x, 1).saliency for x in given]
    with leaves_no_trace(classifier), many_threads() as pool:
        calls = [[pool.submit(call, classifier, x, 1) for call in (CallableExplainer(broken), AblationCAM(), stopped)]
                 for x in given]  # fmt: skip
        for (first, right, second), saliency in zip(calls, expected, strict=True):
            for wrong in (first, second):
                raised = wrong.exception(LONG)
                assert isinstance(raised, fault) or isinstance(raised.__cause__, fault)
            torch.testing.assert_close(right.result(LONG).saliency, saliency, rtol=0, atol=1e-6)


def fail(fault: type[BaseException]) -> None:
    raise fault


def test_backward_passes_that_repeat_a_forward_pass_do_not_wait_for_the_thread_that_waits_for_them() -> None:
    classifier, (x,) = tiny_cnn(), images(1)
    repeated: list[Tensor] = []

    class Repeat(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            with torch.no_grad():
                repeated.append(classifier(x))
            return gradient

    def explain() -> None:
        value = torch.ones(1, requires_grad=True)
        torch.autograd.grad(Repeat.apply(value), value)

    with alone(classifier.network):
        elsewhere(explain)
    torch.testing.assert_close(repeated, [classifier(x)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # what is tried here
def test_a_forked_process_does_not_wait_for_threads_that_it_does_not_have() -> None:
    classifier, (x,) = tiny_cnn(), images(1)
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(CallableExplainer(slow), classifier, x, 1)
        assert slow.inside.wait(LONG)
        child = os.fork()
        if child == 0:
            with passing(classifier.network), seeded(0, x.device):
                os._exit(7)
        until = time.monotonic() + LONG
        while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        slow.go_on.set()
    if status[0] == 0:  # it waits for ever: not to be left behind
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status[1]) == 7


def test_locks_belong_to_the_network_and_go_with_it() -> None:
    classifier, (x,) = tiny_cnn(), images(1)
    saliency = AblationCAM()(classifier, x, 1).saliency
    for again in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        torch.testing.assert_close(AblationCAM()(again, x, 1).saliency, saliency)
    gone = weakref.ref(classifier.network)
    del classifier, again
    gc.collect()
    assert gone() is None


def test_hooks_of_others_are_not_put_on_the_classifier_that_threads_share() -> None:
    class Watched(nn.Sequential):
        def forward(self, image: Tensor) -> Any:
            seen.append(len(classifier._forward_pre_hooks))
            return super().forward(image)

    seen: list[int] = []
    network = Watched(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    classifier = Classifier(network, mean=0, std=1, input_size=8)
    CaptumExplainer("DeepLift")(classifier, torch.rand(1, 3, 8, 8))
    assert len(seen) > 2
    assert not any(seen)
