"""Checks whether a network suits explanations: it outputs logits, and it is a function of the image.

There are two checks, both with synthetic images: `output_faults` costs one pass of three images and runs once, at the
first explanation; `function_faults` costs somewhat more and runs before a run.

Shape letters: B images, C classes, H x W image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from optcam_pl.network.capture import own_grad_mode
from optcam_pl.network.errors import NetworkError
from optcam_pl.network.layers import fixed_noise
from optcam_pl.network.scores import Binary
from optcam_pl.private import written_to
from optcam_pl.threads import hook_input, hook_output

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

_LOUD = 100.0  # pixels of the loud image reach from -100 to 100; a sigmoid still gives [0,1] there
_SUM_SLACK = {torch.float16: 1e-2, torch.bfloat16: 3e-2}  # allowed distance of a sum of probabilities from 1
_SIGMOIDS = ("SigmoidBackward", "HardsigmoidBackward")
# Operations that may follow a sigmoid without changing a value (but for the sign, in the scores Binary).
_RESHAPES = (
    *("View", "Reshape", "Squeeze", "Unsqueeze", "Cat", "Stack", "Clone", "ToCopy", "Transpose", "T", "Alias"),
    *("Neg", "Slice", "Select"),
)


class Fault(NamedTuple):
    """A fault of a network.

    Attributes:
        text: what was found, and what to do.
        fatal: whether results would be wrong; otherwise the fault only gives a warning.
    """

    text: str
    fatal: bool = True


class _Outputs(NamedTuple):
    """Logits (C,) of one image each; None for an image that the network does not accept alone."""

    noise: Tensor | None
    black: Tensor | None
    loud: Tensor | None

    def known(self) -> Tensor:
        """(n,C): the logits that are finite."""
        rows = [row for row in self if row is not None and bool(torch.isfinite(row).all())]
        return torch.stack(rows) if rows else torch.empty(0, 0)


def noise(classifier: Classifier, count: int, size: tuple[int, int]) -> Tensor:
    """Fixed images (count,3,H,W) of random pixels in [0,1], in the classifier's dtype and on its device."""
    return fixed_noise(count, classifier.channels, *size).to(classifier.mean)


# What comes out -------------------------------------------------------------------------------------------------------


def output_faults(classifier: Classifier, size: tuple[int, int]) -> list[Fault]:
    """Check the network's outputs for an image of noise, a black image, and an image far outside of [0,1].

    A network that fails on these images is not judged: the user's own images will show what it raises.

    Args:
        classifier: the network.
        size: (H,W) of the images.

    Returns:
        The faults: probabilities instead of logits, a single logit, values that are not finite, the same values for
        every image.
    """
    with own_grad_mode(), torch.no_grad():
        outputs = _look(classifier, size)
    rows = outputs.known()
    found = _not_finite(classifier.name, outputs)
    if not len(rows) or classifier.scores.per_image:  # an image of noise has no box, and no region
        return found
    if rows.shape[1] == 1 and classifier.link == "softmax":
        return [*found, _one_logit(classifier, rows, size)]
    found += _constant(classifier.name, rows)
    if classifier.link not in ("softmax", "sigmoid"):
        return found
    if isinstance(classifier.scores, Binary):  # the other answer is this one with its sign changed
        rows = rows[:, 1:]
    squashed = _probabilities(classifier, rows, size)
    if squashed or classifier.link == "sigmoid":
        return found + squashed
    return found + _log_probabilities(classifier, rows)


def _look(classifier: Classifier, size: tuple[int, int]) -> _Outputs:
    first = noise(classifier, 1, size)
    images = torch.cat([first, torch.zeros_like(first), (2 * first - 1) * _LOUD])
    try:
        logits = classifier(images)
    except NetworkError:  # a network that takes single images, or checks its pixels
        return _Outputs(*(_row(classifier, image.unsqueeze(0)) for image in images))
    if len(logits) != len(images):
        raise ValueError(
            f"Expected {classifier.name} to return logits (B, C), but for {len(images)} images it returns the shape "
            f"{tuple(logits.shape)}: the first dimension has to be the images'."
        )
    return _Outputs(*logits)


def _row(classifier: Classifier, image: Tensor) -> Tensor | None:
    try:
        return classifier(image)[0]  # type: ignore[no-any-return]
    except NetworkError:
        return None


def _not_finite(name: str, outputs: _Outputs) -> list[Fault]:
    """NaN and +inf count; -inf marks a class that is switched off, as long as another class remains."""

    def broken(row: Tensor | None) -> bool:
        return row is not None and not math.isfinite(float(row.max()))  # the maximum of NaN and numbers is NaN

    if broken(outputs.noise):
        text = f"Expected {name} to output finite logits, but for an image of noise it outputs NaN or infinity."
        return [Fault(f"{text} Look at its weights, or run it in float32 (network.float()).")]
    if broken(outputs.black):
        text = f"{name} outputs NaN or infinity for a black image, which is the result of a mask that keeps nothing."
        return [Fault(f'{text} Choose another `baseline` ("mean", "blur") for masking.', fatal=False)]
    return []


def _one_logit(classifier: Classifier, rows: Tensor, size: tuple[int, int]) -> Fault:
    squashed = _within_0_1(rows) and _is_squashed(classifier, rows, size)
    return Fault(
        f"Expected the scores of at least two classes, but {classifier.name} outputs one number per image, whose "
        "softmax is always 1. "
        + (
            "It ends in a sigmoid: pass the network without it, and "
            if squashed
            else "If it is the logit of a sigmoid, "
        )
        + "give `scores`: Classifier(network, scores=Binary(), ...), whose classes are no and yes. "
        + "If it is an estimate, scores=Regression()."
    )


def _probabilities(classifier: Classifier, rows: Tensor, size: tuple[int, int]) -> list[Fault]:
    if len(rows) < 2 or not _within_0_1(rows):
        return []
    slack = _SUM_SLACK.get(_compute_dtype(classifier), 1e-3)
    if bool(((rows.sum(1) - 1).abs() < slack).all()):
        kind = "softmax"
    elif _is_squashed(classifier, rows, size):
        kind = "sigmoid"
    else:
        return []
    found = "its outputs lie in [0, 1]" + (" and sum to 1" if kind == "softmax" else "")
    return [
        Fault(
            f"Expected {classifier.name} to output logits, but it outputs probabilities: {found} for every image. "
            f"The {classifier.link} would be applied twice. Pass the network without its last {kind}. (`trust_network` "
            "treats them as logits anyway.)"
        )
    ]


def _within_0_1(rows: Tensor) -> bool:
    return bool(((rows >= 0) & (rows <= 1)).all()) and bool((rows > 0).any())


def _is_squashed(classifier: Classifier, rows: Tensor, size: tuple[int, int]) -> bool:
    """Whether values in [0,1] come from a sigmoid: it is in the graph, or the loud image saturates it.

    Logits may lie in [0,1] by chance; those of a network that ends in a norm do so for any image.
    """
    spread = bool((rows.amax(0) - rows.amin(0) > 0.5).any())
    driven = len(rows) == 3 and bool(((rows[-1] < 1e-3) | (rows[-1] > 1 - 1e-3)).all())
    return (spread and driven) or _graph_ends_in(classifier, size, _SIGMOIDS)


def _graph_ends_in(classifier: Classifier, size: tuple[int, int], kinds: tuple[str, ...]) -> bool:
    """Whether the network's last operation is one of these autograd nodes; False without a graph."""
    with own_grad_mode():
        try:
            node = classifier(noise(classifier, 1, size).requires_grad_()).grad_fn
        except NetworkError:
            return False
    while node is not None and node.name().startswith(_RESHAPES):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith(kinds)


def _log_probabilities(classifier: Classifier, rows: Tensor) -> list[Fault]:
    slack = _SUM_SLACK.get(_compute_dtype(classifier), 1e-4)
    if len(rows) < 2 or not bool((torch.logsumexp(rows, 1).abs() < slack).all()):
        return []
    return [
        Fault(
            f"{classifier.name} outputs log-probabilities, not logits. Probabilities are right, but methods that "
            "explain a logit (Grad-CAM, Opti-CAM and others) explain the class's log-probability, which depends on the "
            "other classes, too. To explain the logit, pass the network without its last log-softmax.",
            fatal=False,
        )
    ]


def _constant(name: str, rows: Tensor) -> list[Fault]:
    if len(rows) < 2 or not bool((rows == rows[0]).all()):
        return []
    text = f"{name} outputs the same scores for noise, a black image and another one: there is nothing to explain"
    return [Fault(f"{text} if it does so for photographs, too. Are its weights and its head trained?", fatal=False)]


# Whether it is a function ---------------------------------------------------------------------------------------------


def function_faults(classifier: Classifier, size: tuple[int, int]) -> list[Fault]:
    """Check that the network's scores for an image depend on nothing but the image.

    Two images of noise are passed twice, and the first of them alone. Differences up to rounding are no fault.

    Args:
        classifier: the network.
        size: (H,W) of the images.

    Raises:
        NetworkError: it fails on these images.
    """
    images = noise(classifier, 2, size)
    with own_grad_mode(), torch.no_grad():
        try:
            first = classifier(images)
        except NetworkError:
            classifier(images[:1])
            return [Fault(f"{classifier.name} takes one image at a time only: give `batch_size` 1.", fatal=False)]
        before = _state(classifier.network)
        second, alone = classifier(images), classifier(images[:1])
        changed = [name for name, kept in _state(classifier.network).items() if _differs(kept, before.get(name))]
        if _apart(classifier, first, second, alone=False):
            return [_random(classifier, images)]
        if _apart(classifier, second[:1], alone, alone=True):
            return [_batched(classifier, images)]
    return [_stateful(classifier, changed)] if changed else []


def _random(classifier: Classifier, images: Tensor) -> Fault:
    where = _culprit(classifier, images, images)
    return Fault(
        f"Expected {classifier.name} to give the same scores for the same images, but two equal passes differ. {where} "
        "Random layers must be off in eval mode, as in F.dropout(x, training=self.training). `trust_network` continues "
        "anyway, with random maps."
    )


def _batched(classifier: Classifier, images: Tensor) -> Fault:
    where = _culprit(classifier, images[:1], images)
    return Fault(
        f"Expected {classifier.name}'s scores of an image to be its own, but alone they differ from those beside "
        f"another image. {where} Batch norm without running statistics (track_running_stats=False) is one cause. "
        "`trust_network` continues anyway, with maps that depend on the batch."
    )


def _stateful(classifier: Classifier, changed: list[str]) -> Fault:
    module = changed[0].rpartition(".")[0]
    return Fault(
        f"Expected {classifier.name} to stay as it is, but each pass changes its state: {', '.join(changed[:3])}"
        f"{', ...' if len(changed) > 3 else ''} (of {_named(classifier, module)}). A run could not be resumed or "
        "compared, because its weights change. Register counters with persistent=False, or "
        "switch them off in eval mode. `trust_network` continues anyway."
    )


class _Saved(NamedTuple):
    """One tensor of the state dict: its address, how often it was written to, and a copy if it is a buffer."""

    written: tuple[int, int]
    value: Tensor


def _state(network: nn.Module) -> dict[str, _Saved]:
    buffers = {name for name, _ in network.named_buffers()}
    found = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and not value.is_inference():
            kept = value.detach().clone() if name in buffers else value.detach()  # parameters are large
            found[name] = _Saved((value.data_ptr(), written_to(value)), kept)
    return found


def _differs(after: _Saved, before: _Saved | None) -> bool:
    if before is None or after.written == before.written:
        return False
    return after.value is before.value or not torch.equal(after.value, before.value)


def _apart(classifier: Classifier, ours: Tensor, theirs: Tensor, *, alone: bool) -> bool:
    """Whether two outputs differ by more than rounding, which depends on the number of images and on the device."""
    ours, theirs = ours.double().nan_to_num(), theirs.double().nan_to_num()
    eps = torch.finfo(_compute_dtype(classifier)).eps
    base = {False: (1e-5, 2e-3), True: (1e-3, 1e-2)}[alone][ours.is_cuda]  # a GPU may compute in TF32
    tolerance = max(base, 16 * eps) * float(ours.max() - ours.min()) + 32 * eps * float(ours.abs().max())
    return float((ours - theirs).abs().max()) > tolerance


def _compute_dtype(classifier: Classifier) -> torch.dtype:
    """The dtype in which the network computes."""
    kind = classifier.mean.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return classifier.network_dtype or torch.float32


# Where ----------------------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """One call of a module: its input and its output, first tensors only."""

    name: str
    given: Tensor | None
    made: Tensor


def _culprit(classifier: Classifier, ours: Tensor, theirs: Tensor) -> str:
    """A sentence that names the innermost module whose outputs differ between two passes with equal inputs."""
    share = (len(ours), len(theirs))
    for a, b in zip(_calls(classifier, ours), _calls(classifier, theirs), strict=False):
        if a.name != b.name:
            break
        if not _equal(a.made, b.made, share) and (
            a.given is None or b.given is None or _equal(a.given, b.given, share)
        ):
            return f"It comes from {_named(classifier, a.name)}."
    return "Its source could not be determined."


def _calls(classifier: Classifier, images: Tensor) -> list[_Call]:
    calls: list[_Call] = []

    def record(name: str, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        made = _first_tensor(output)
        if made is not None:
            calls.append(_Call(name, given.pop(), made.clone()))
        else:
            given.pop()

    given: list[Tensor | None] = []

    def begin(_module: nn.Module, args: tuple[Any, ...]) -> None:
        value = _first_tensor(args)
        given.append(None if value is None else value.clone())

    with _hooked(classifier.network, begin, record):
        classifier(images)
    return calls


@contextmanager
def _hooked(network: nn.Module, begin: Callable[..., None], end: Callable[..., None]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in network.named_modules():
            stack.callback(hook_input(module, begin))
            stack.callback(hook_output(module, functools.partial(end, name)))
        yield


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, (tuple, list)):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return value.detach() if isinstance(value, Tensor) else None


def _equal(ours: Tensor, theirs: Tensor, share: tuple[int, int]) -> bool:
    """Whether the first image's parts are equal to a thousandth; values without such a part count as equal."""
    if not ours.is_floating_point() or not ours.ndim or ours.shape[0] % share[0] or theirs.shape[0] % share[1]:
        return True
    parts = ours[: ours.shape[0] // share[0]].double(), theirs[: theirs.shape[0] // share[1]].double()
    if parts[0].shape != parts[1].shape or not parts[0].numel():
        return True
    span = float(parts[0].max() - parts[0].min())
    return float((parts[0] - parts[1]).abs().max()) <= 1e-3 * span + 1e-6 * float(parts[0].abs().max())


def _named(classifier: Classifier, name: str) -> str:
    kind = type(classifier.network.get_submodule(name)).__name__
    return f"module {name!r} ({kind})" if name else f"{kind}'s own forward, outside of its modules"


def check_eval(name: str, network: nn.Module) -> None:
    """Check that all parts of a network are in eval mode.

    Raises:
        ValueError: a part is not; the message names the first one.
    """
    thawed = [part or "all of it" for part, module in network.named_modules() if module.training]
    if thawed:
        raise ValueError(
            f"Expected {name} in eval mode, but {len(thawed)} of its modules are in training mode (the first: "
            f"{thawed[0]}). Call classifier.eval() first."
        )
