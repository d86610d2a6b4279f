"""The same frozen network, faster: folded, in channels-last layout, in less precision, compiled or replayed."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from optcam_pl import kernels
from optcam_pl.checks import check_choice
from optcam_pl.network.copies import shell_of
from optcam_pl.network.folding import Folded, Run
from optcam_pl.network.onednn import use_onednn
from optcam_pl.private import forward_hooks, forward_pre_hooks

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

Speed: TypeAlias = Literal["plain", "folded", "onednn", "graph", "compile", "auto"]
WeightsDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Result = TypeVar("Result")
Function: TypeAlias = Callable[[Tensor], tuple[Any, ...]]
"""Of images, without a gradient; what it returns has to be tensors if it is to be replayed."""

_logger = logging.getLogger(__name__)
_GRAPHS = 4  # shapes of which a graph is kept; each keeps the memory of a pass
_WARM = 3  # passes before a capture, as torch.cuda.graph asks for
_KEPT = 3  # kinds of borrowed work, such as Opti-CAM with some settings; each keeps the memory of an iteration
_PROBES = 3  # timed passes of each candidate
_CAPTURED_AT = 2  # how often a kind of pass is seen before it is captured: a run's last block is seen once


_ALL: WeakSet[FasterNetwork] = WeakSet()


class FasterNetwork:
    """A faster copy of a network, and how its passes run.

    ===========  ====================================================================================================
    folded       batch norms folded into convolutions (see `Folded`), channels-last memory layout
    onednn       the same; on a CPU, layers whose gradient to their input alone is faster (see `use_onednn`)
    graph        as folded; on a GPU, passes without a gradient are captured at the second of a shape and replayed, and
                 images are masked by one kernel (see `optcam_pl.kernels`)
    compile      as folded, by torch.compile, which takes its time at the first pass of each shape
    auto         on a GPU, "graph" or "folded", whichever a short probe finds faster; elsewhere "onednn"
    ===========  ====================================================================================================

    Passes in which a layer is recorded or changed run the folded network itself, because neither graphs nor compiled
    code run hooks.

    Args:
        network: it stays as it is.
        speed: one of the above.
        dtype: the type of the copy's weights; None keeps the network's.
        size: (H,W) of the images, for the proof that the copy gives the same outputs.
        keep: names of layers whose outputs are explained.
        run: calls a network with images; see `Folded`.

    Attributes:
        original: the network that was given.
        network: the copy.
    """

    def __init__(
        self,
        network: nn.Module,
        speed: Speed,
        dtype: WeightsDtype | None,
        size: tuple[int, int],
        keep: Iterable[str],
        run: Run = nn.Module.__call__,
    ) -> None:
        self.original, self.speed, self.dtype = network, speed, dtype
        self._folded = Folded(network, size, keep, run)
        if speed in ("onednn", "auto"):
            use_onednn(self._folded.network)
        self.network = self._folded.network.to(memory_format=torch.channels_last)
        if dtype is not None:
            self.network.to(getattr(torch, dtype))
        self._compiled: Any = None
        self._shapes: set[object] = set()
        self._graphs = Graphs(only_if_faster=speed == "auto")
        self._kept: dict[object, list[Any]] = {}
        self._attributes: tuple[list[Mapping[int, Any]], list[Mapping[str, Any]]] | None = None
        _ALL.add(self)

    @property
    def pairs(self) -> int:
        """How many batch norms are folded."""
        return len(self._folded.pairs)

    def describe(self) -> dict[str, str]:
        """The settings that are printed with results and are part of a run's identity."""
        return {"speed": self.speed} | ({} if self.dtype is None else {"weights_dtype": self.dtype})

    def unfold(self, layer: str) -> None:
        """See `Folded.unfold`; called for every layer that is recorded."""
        if self._folded.unfold(layer):
            self.forget()
            self._compiled = self._attributes = None

    def forget(self) -> bool:
        """Give back the memory of what is captured and not borrowed now; it is captured again when it is needed.

        Returns:
            Whether there was any.
        """
        held = self._graphs.clear() or bool(self._kept)
        self._kept.clear()
        return held

    def replays(self, image: Tensor) -> bool:
        """Whether work on such images is to be captured and replayed."""
        return self.speed in ("graph", "auto") and kernels.current(image.device) and not self.hooked()

    def hooked(self) -> bool:
        """Whether any module has a hook or a replaced forward, which compiled code and graphs would leave out."""
        if self._attributes is None:  # walking through the modules takes longer than a pass of few images
            modules = list(self.network.modules())
            found: list[Mapping[int, Any]] = [forward_hooks(module) for module in modules]
            found += [forward_pre_hooks(module) for module in modules]
            self._attributes = found, [vars(module) for module in modules]
        hooks, attributes = self._attributes
        return any(hooks) or any("forward" in each for each in attributes)

    @contextmanager
    def borrowed(self, key: object) -> Iterator[list[Any]]:
        """What is kept for a key, empty at first, for this thread alone; another thread starts with an empty list.

        The last few keys that were used are kept.
        """
        kept = self._kept.pop(key, [])
        yield kept
        self._kept[key] = kept
        for oldest in [*self._kept][:-_KEPT]:
            self._kept.pop(oldest, None)

    def run(self, run: Run, image: Tensor) -> Any:
        """A pass.

        Args:
            run: calls a network with an image.
            image: (B,3,H,W), normalized and in the copy's dtype.
        """
        image = image.contiguous(memory_format=torch.channels_last)
        if self.speed in ("folded", "onednn") or self.hooked() or torch.compiler.is_compiling():
            return run(self.network, image)
        if self.speed == "compile":
            return self._by_compiler(run, image)
        if torch.is_grad_enabled() or not kernels.current(image.device) or torch.cuda.is_current_stream_capturing():
            return run(self.network, image)
        return self._graphs.run(lambda given: (run(self.network, given),), image)[0]

    def replayed(self, what: object, function: Function, image: Tensor) -> tuple[Tensor, ...]:
        """A function of images that runs the network without a gradient, replayed where passes are.

        Args:
            what: names the function; another one has another name.
            function: returns tensors. It may put hooks on the network for its own pass.
            image: (B,3,H,W).
        """
        if not (image.is_cuda and self.replays(image)) or torch.cuda.is_current_stream_capturing():
            return function(image)
        return self._graphs.run(function, image, (what, self.dtype))

    def _by_compiler(self, run: Run, image: Tensor) -> Any:
        if self._compiled is None:
            self._compiled = torch.compile(self.network)
        if self._compiled is False:
            return run(self.network, image)
        key = (image.shape, image.dtype, image.device, torch.is_grad_enabled(), image.requires_grad)
        start = time.perf_counter()
        try:
            output = run(self._compiled, image)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch.compile may fail in any way
            if key in self._shapes:
                raise
            self._compiled = False
            warnings.warn(f"torch.compile fails, so passes run uncompiled: {first_line(error)}", stacklevel=2)
            return run(self.network, image)
        if key not in self._shapes:
            self._shapes.add(key)
            seconds = time.perf_counter() - start
            _logger.info("torch.compile took %.1f s for images of %s.", seconds, tuple(image.shape))
        return output

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code cannot be copied: a copy makes its own.
        return {**self.__dict__, "_compiled": None, "_shapes": set(), "_kept": {}, "_attributes": None}


class Graphs:
    """Passes of a network that are captured as CUDA graphs, one for each kind of input, and replayed.

    Each graph is proved when it is made: replayed on the images and on their mirror images, it has to give what a plain
    pass gives. If it does not, or if the capture fails, all passes of this kind are plain, and one line says why.

    Where there are more kinds than graphs are kept, those that were dropped come back less and less often: a capture
    takes longer than many passes.

    Args:
        only_if_faster: also time both, and replay only where that is faster.
    """

    def __init__(self, only_if_faster: bool = False) -> None:
        self._only_if_faster = only_if_faster
        self._known: dict[tuple[Any, ...], _Graph | None] = {}
        self._seen: Counter[object] = Counter()
        self._dropped: Counter[object] = Counter()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Graphs], tuple[bool]]:
        # A graph cannot be copied: a copy makes its own.
        return Graphs, (self._only_if_faster,)

    def clear(self) -> bool:
        """Forget all graphs and give their memory back; whether there were any."""
        with self._lock:
            held = any(graph is not None for graph in self._known.values())
            self._known.clear()
        return held

    def run(self, function: Function, image: Tensor, what: object = None) -> tuple[Any, ...]:
        """The function of an image (B,3,H,W) on a GPU, without a gradient; `what` tells functions apart."""
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        key = (what, tuple(image.shape), image.dtype, image.device, autocast)
        with self._lock:
            self._seen[key] += 1
            if key not in self._known:
                if self._seen[key] < _CAPTURED_AT << self._dropped[key]:
                    return function(image)
                self._known[key] = self._capture(function, image)
                self._drop()
            graph = self._known[key]
            return function(image) if graph is None else graph(image)

    def _drop(self) -> None:
        """Forget the oldest graphs of more than are kept."""
        made = [key for key, graph in self._known.items() if graph is not None]
        for oldest in made[:-_GRAPHS]:
            del self._known[oldest]
            self._seen[oldest] = 0
            self._dropped[oldest] += 1

    def _capture(self, function: Function, image: Tensor) -> _Graph | None:
        try:
            with torch.inference_mode(False), torch.no_grad(), uncached_autocast(image.device):
                graph = _Graph(function, image)
                graph.prove(function, image)
                if self._only_if_faster and _seconds(graph, image) > _seconds(function, image):
                    return None
        except torch.OutOfMemoryError:
            _logger.warning("Passes of %s are plain: no memory for a CUDA graph.", tuple(image.shape))
        except Exception as error:  # a capture may fail in any way
            _logger.warning("Passes of %s are plain: no CUDA graph, as %s", tuple(image.shape), first_line(error))
        else:
            return graph
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return None


class Replay(Protocol):
    """What a capture returns: `torch.cuda.CUDAGraph`, or anything that repeats the captured work."""

    def replay(self) -> None:
        """Repeat it, in the same memory."""


def capture(work: Callable[[], None], device: torch.device) -> Replay:
    """A CUDA graph of some work on tensors that stay where they are, after a few plain calls."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders of data work in threads meanwhile
        work()
    return graph


class _Graph:
    """One captured pass."""

    def __init__(self, function: Function, image: Tensor) -> None:
        self._input = torch.empty_like(image.detach(), memory_format=torch.preserve_format).copy_(image)
        self._output: tuple[Any, ...] = ()
        self._graph = capture(partial(self._work, function), image.device)
        self._check(len(image))

    def _work(self, function: Function) -> None:
        self._output = function(self._input)

    def _check(self, count: int) -> None:
        for each in self._output:
            if not isinstance(each, Tensor):
                raise TypeError(f"the network returns {type(each).__name__}, not a tensor.")
            if not each.ndim or len(each) != count:
                raise ValueError(f"the network returns {tuple(each.shape)}, not something for each image.")

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        self._input.copy_(image)
        self._graph.replay()
        return tuple(each.clone() for each in self._output)

    def prove(self, function: Function, image: Tensor) -> None:
        """Compare replays with plain passes.

        Raises:
            ValueError: they differ by more than rounding.
        """
        for images in (image, image.flip(3)):
            for ours, right in zip(self(images), function(images), strict=True):
                bound = 8 * torch.finfo(ours.dtype).eps * float(right.abs().max())
                largest = float((ours.double() - right.double()).abs().max())
                if not largest <= bound:
                    found = f"a replay differs from a plain pass by {largest:.2g}"
                    raise ValueError(f"{found}, where {bound:.2g} is rounding.")


def _seconds(function: Function, image: Tensor) -> float:
    """The fastest of a few passes on a GPU."""
    found = []
    for _ in range(_PROBES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function(image)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


@contextmanager
def uncached_autocast(device: torch.device) -> Iterator[None]:
    """Autocast as it is, but without its cache of converted weights: a graph would go on to read it after its end."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, dtype=torch.get_autocast_dtype(device.type), cache_enabled=False):
        yield


def forget_captured() -> bool:
    """Give back the memory of everything that is captured in this process, where memory runs out.

    Returns:
        Whether there was any.
    """
    held = [network.forget() for network in list(_ALL)]
    return any(held)


def without_captures(work: Callable[[], Result]) -> Result:
    """Do some work; if memory runs out, do it again with the memory of what is captured.

    Raises:
        torch.OutOfMemoryError: there is still not enough, or nothing was captured.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        if not forget_captured():
            raise
    # Outside of the except block the exception is gone, and so is the memory that its frames held.
    torch.cuda.empty_cache()
    return work()


def check_speed(speed: Speed, dtype: WeightsDtype | None) -> None:
    """Check the two settings.

    Raises:
        ValueError: unknown, or a dtype for the plain network.
    """
    check_choice("speed", speed, Speed)
    if dtype is not None:
        check_choice("weights_dtype", dtype, WeightsDtype)
        if speed == "plain":
            raise ValueError(
                f"Expected `speed` to be folded, onednn, graph, compile or auto for `weights_dtype` {dtype}, because "
                "the plain network keeps its own weights, but got plain."
            )


def original_of(classifier: Classifier) -> Classifier:
    """The classifier with the network that it was given, for methods that need its modules as they were.

    Returns:
        The classifier itself if its `speed` is "plain", otherwise a second one that shares everything but the network.
    """
    if classifier.fast is None:
        return classifier
    twin = shell_of(classifier)
    twin.network, twin.fast = classifier.fast.original.to(classifier.mean.device), None
    return twin


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
