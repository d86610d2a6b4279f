"""Reports errors that a network itself raises: what was being done, what the error said, and what may help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optcam_pl.checks import ToldError

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

_OWN = __name__.partition(".")[0]
# Part of an error's text -> what to do about it.
_HINTS = {
    "Inference tensors cannot": "Its weights were made inside torch.inference_mode, so autograd cannot use them: "
    "build the network outside of it.",
    "doesn't match model": "If it wants images of another size, give `input_size`, and images of that size.",
    "use_reentrant": "Switch its gradient checkpointing off (gradient_checkpointing_disable() of transformers, "
    "set_grad_checkpointing(False) of timm): maps need gradients of inner layers, which it does not keep.",
    "cannot register a hook on a tensor": "No gradient flows there. A forward hook of your own that calls "
    "`register_hook` has to leave tensors alone that require none. If the network cuts its graph (torch.no_grad, "
    "detach), use a method that needs no gradient (ScoreCAM, EigenCAM, RISE).",
    "same dtype": "Its parts have different dtypes: convert it as a whole, with network.float().",
    "same type": "Its parts have different dtypes or devices: convert it as a whole, with network.float() or .to().",
}


class NetworkError(ToldError):
    """An error that the explained network itself raised; the original exception is the `__cause__`."""


def is_own(error: BaseException) -> bool:
    """Whether code of this package raised an exception, for example a hook that ran inside the network."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    raised_in = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, NetworkError) or raised_in.partition(".")[0] == _OWN


def forward_error(error: Exception, name: str, network: nn.Module, image: Tensor) -> NetworkError:
    """The exception that replaces an error of the network's forward pass.

    Args:
        error: the network's own error.
        name: name of the network.
        network: used to find the number of channels that it takes.
        image: (B,3,H,W) its input.
    """
    count, height, width = image.shape[0], image.shape[2], image.shape[3]
    what = f"{count} image{'s' * (count != 1)} of {height} x {width}"
    return NetworkError(
        f"{name} raised {type(error).__name__} while it computed scores of {what}: {error}{ended(error)}"
        f"{hint(error, network)}"
    )


def size_error(error: NetworkError, name: str, network: nn.Module, size: tuple[int, int]) -> NetworkError:
    """The exception that replaces a failure on a black image of the network's own `size` (H,W)."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    advice = hint(cause, network) or " If it wants images of another size, give `input_size`."
    return NetworkError(
        f"{name} fails on a black image of {size[0]} x {size[1]} pixels ({type(cause).__name__}: {cause}).{advice}"
    )


def hint(error: Exception, network: nn.Module) -> str:
    """Advice, as a sentence with a space before it; empty if nothing is known."""
    wanted = input_channels(network)
    if wanted is not None and "channel" in str(error):
        return (
            f" The network wants images of {wanted} channel{'s' * (wanted != 1)}: give the classifier `channels`"
            f" {wanted} (or `mean` and `std` of {wanted} numbers) and images of that many. For RGB images, a layer in "
            f"front makes them, torch.nn.Sequential(torch.nn.Conv2d(3, {wanted}, 1), network) for example, with "
            "weights of your choice."
        )
    return next((f" {advice}" for text, advice in _HINTS.items() if text in str(error)), "")


def input_channels(network: nn.Module) -> int | None:
    """Channels that the network's first convolution takes; None if it has none.

    Example:
        >>> input_channels(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)))
        4
    """
    return next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), None)


@contextmanager
def backward_errors(classifier: Classifier, names: Sequence[str] = ()) -> Iterator[None]:
    """Wraps a backward pass through the network and explains its errors.

    Args:
        classifier: the network.
        names: the layers where the gradient is taken; empty for the gradient at the image.

    Raises:
        ValueError: no gradient reaches them.
        NetworkError: the network's backward pass fails otherwise.
    """
    try:
        yield
    except (torch.OutOfMemoryError, NetworkError):
        raise
    except RuntimeError as error:
        if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
            raise ValueError(_without_gradient(classifier.name, names)) from error
        raise backward_error(error, classifier.name, classifier.network) from error


def backward_error(error: Exception, name: str, network: nn.Module) -> NetworkError:
    """The exception that replaces an error of the network's backward pass."""
    return NetworkError(
        f"{name} raised {type(error).__name__} in its backward pass: {error}{ended(error)}{hint(error, network)}"
    )


def check_differentiable(scores: Tensor, of: Tensor, classifier: Classifier) -> None:
    """Check that the scores have a gradient, which other terms with a gradient in a sum would hide.

    Args:
        scores: (n,).
        of: what they are to have a gradient at.
        classifier: the network.

    Raises:
        ValueError: the scores do not depend on it in a way that autograd knows.
    """
    found: Tensor | None = None
    if scores.requires_grad:
        with backward_errors(classifier):
            (found,) = torch.autograd.grad(scores.sum(), [of], retain_graph=True, allow_unused=True)
    if found is None:
        raise ValueError(_without_gradient(classifier.name, ()))


def _without_gradient(name: str, layers: Sequence[str]) -> str:
    where = f"the layer{'s' * (len(layers) != 1)} {', '.join(layers)}" if layers else "the image"
    return (
        f"Expected the scores of {name} to have a gradient at {where}, but there is none. Its forward runs under "
        "torch.no_grad, inference_mode or gradient checkpointing, detaches a tensor, has quantized layers, which have "
        "no gradient, or makes its scores of something else. Remove this, choose another `layer`, or use a method that "
        "needs no gradient (ScoreCAM, EigenCAM, RISE)."
    )


def ended(error: Exception) -> str:
    """A period if the message has none."""
    return "" if str(error).rstrip().endswith((".", "!", "?")) else "."
