"""Recording what flows through a network's layers, leaving no trace behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optcam_pl.threads import hook_output


class LayerError(ValueError):
    """What a layer put out cannot be explained."""


class LayerNotCalledError(LayerError, RuntimeError):
    """A layer was to be recorded, but the network did not call it."""


class Record(dict[str, Tensor]):
    """Layer name -> what the layer put out in its last call; asking for one that was not called is an error.

    Attributes:
        names: the layers that were asked for.
        calls: how often each was called.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        super().__init__()
        self.names = tuple(names)
        self.calls = dict.fromkeys(self.names, 0)

    def __missing__(self, name: str) -> Tensor:
        raise LayerNotCalledError(
            f"Layer {name!r} was not called in the network's forward pass, so it has no activations to show. Name"
            " another with `layer` or `target_layer`. (What a network calls in threads of its own, as nn.DataParallel"
            " does on several GPUs, is not seen.)"
        )

    def of_images(self, count: int) -> list[Tensor]:
        """What every layer that was asked for put out in the one pass of `count` images, in the order of asking.

        Raises:
            LayerNotCalledError: one was not called.
            LayerError: one was called several times, or the first dimension of what it put out is not that of the
                images: windows, patches or tokens may lie there.
        """
        for name in self.names:
            shape = tuple(self[name].shape)
            if self.calls[name] != 1:
                raise LayerError(
                    f"Expected layer {name!r} to be called once in the network's forward pass, but it was called"
                    f" {self.calls[name]} times, so it has no single activation. Name another with `layer` or"
                    " `target_layer`."
                )
            if not shape or shape[0] != count:
                raise LayerError(
                    f"Expected layer {name!r} to put out one activation for each of {count} images, but got the shape"
                    f" {shape}: windows, patches or tokens lie in its batch dimension. Name another with `layer` or"
                    " `target_layer`."
                )
        return [self[name] for name in self.names]


def tensor_of(output: object) -> Tensor:
    """The tensor of a layer's output: itself, or the first of a tuple.

    Raises:
        TypeError: the layer puts out something else.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(f"Expected the layer to put out a tensor (or a tuple with one first), but got {type(output)}.")
    return first


def _hook(record: Record, name: str, cut: bool) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        value = tensor_of(output)
        record.calls[name] += 1
        if not cut:
            # A copy: a later layer may work in place on what this one put out.
            record[name] = value.detach().clone()
            return None
        # At the first recorded layer the graph begins, so that no backward pass goes below it. A later one may hand on
        # what others get, too: the gradient of the view is that of its own output alone.
        value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        record[name] = value
        passed = value.clone()  # in-place layers after this one then work on a tensor that is not a leaf
        if isinstance(output, list):  # the network may go on to write into it
            return [passed, *output[1:]]
        return (passed, *output[1:]) if isinstance(output, tuple) else passed

    return hook


@contextmanager
def capture(layers: Mapping[str, nn.Module], *, cut: bool = False) -> Iterator[Record]:
    """Record the activations of layers while the context is open.

    Args:
        layers: name -> module.
        cut: let the graph of the first recorded layer begin at its output, so that ``torch.autograd.grad`` of
            something computed later, with respect to the recorded tensors, goes down to the layers and no further.
            Without it the recorded tensors are detached copies.

    Yields:
        A `Record`, filled by each forward pass of this thread with the layer's own shape; other threads' passes through
        the same layers are neither recorded nor cut. Hooks are removed on the way out, also after an exception.

    >>> network = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with capture({"1": network[1]}) as record:
    ...     _ = network(torch.tensor([-1.0, 2.0]))
    >>> record["1"]
    tensor([0., 2.])
    """
    record = Record(layers)
    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(hook_output(module, _hook(record, name, cut)))
        yield record


@contextmanager
def own_grad_mode() -> Iterator[None]:
    """Gradients on, whatever mode the caller is in.

    `torch.enable_grad` alone does nothing inside `torch.inference_mode`; tensors made outside stay inference tensors
    and have to be cloned in here before autograd may save them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
