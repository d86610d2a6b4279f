"""Records what flows through a network's layers, and leaves no trace behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optcam_pl.threads import hook_output


class LayerError(ValueError):
    """A layer's output cannot be explained."""


class LayerNotCalledError(LayerError, RuntimeError):
    """A layer should have been recorded, but the network did not call it."""


class Record(dict[str, Tensor]):
    """Layer name -> the layer's output in its last call; asking for a layer that was not called is an error.

    Attributes:
        names: the layers to record.
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
            " does on several GPUs, or within TorchScript, is not seen.)"
        )

    def of_images(self, count: int) -> list[Tensor]:
        """The outputs of all layers in `names`, in this order, in the one pass of `count` images.

        Raises:
            LayerNotCalledError: a layer was not called.
            LayerError: a layer was called several times, or the first dimension of its output is not that of the images
                (it may hold windows, patches or tokens).
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
                    f"Expected layer {name!r} to output one activation for each of {count} images, but got the shape"
                    f" {shape}: windows, patches or tokens lie in its batch dimension. Name another with `layer` or"
                    " `target_layer`."
                )
        return [self[name] for name in self.names]


def tensor_of(output: object) -> Tensor:
    """The tensor in a layer's output: the output itself, or the first item of a tuple.

    Raises:
        TypeError: the output is something else.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(f"Expected the layer to output a tensor (or a tuple with one first), but got {type(output)}.")
    return first


def _hook(record: Record, name: str, cut: bool) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        value = tensor_of(output)
        record.calls[name] += 1
        if not cut:
            # A copy, because a later layer may modify this output in place.
            record[name] = value.detach().clone()
            return None
        # The graph begins at the first recorded layer, so that no backward pass goes below it. A later layer's output
        # may also reach other layers: the gradient of the view is that of its own output alone.
        value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        record[name] = value
        passed = value.clone()  # later in-place layers then modify a tensor that is not a leaf
        if isinstance(output, list):  # the network may still write into it
            return [passed, *output[1:]]
        return (passed, *output[1:]) if isinstance(output, tuple) else passed

    return hook


@contextmanager
def capture(layers: Mapping[str, nn.Module], *, cut: bool = False) -> Iterator[Record]:
    """Record the activations of layers while the context is open.

    Args:
        layers: name -> module.
        cut: let the graph begin at the output of the first recorded layer, so that ``torch.autograd.grad`` of a later
            result with respect to the recorded tensors goes down to the layers and no further. Without `cut`, the
            recorded tensors are detached copies.

    Yields:
        A `Record`. Each forward pass of this thread fills it, in the layer's own shape. Passes of other threads through
        the same layers are neither recorded nor cut. The hooks are removed on exit, also after an exception.

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
    """Enable gradients, whatever mode the caller is in.

    `torch.enable_grad` alone does nothing inside `torch.inference_mode`. Tensors that were created outside stay
    inference tensors and must be cloned in here before autograd may save them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
