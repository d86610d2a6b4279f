"""Recording leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optcam_pl.network.capture import LayerNotCalledError, capture, own_grad_mode, tensor_of


def _hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in network.modules())


def test_hooks_are_gone_also_after_an_exception() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    layers = {"0": network[0], "1": network[1]}
    with capture(layers):
        assert _hooks(network) == 2
    with pytest.raises(ValueError, match="in the middle"), capture(layers):
        raise ValueError("in the middle")
    assert _hooks(network) == 0


def test_a_copy_is_recorded_before_a_later_layer_works_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    with capture({"0": network[0]}) as record:
        network(torch.randn(2, 3, 5, 5))
    assert (record["0"] < 0).any()


def test_a_cut_graph_begins_at_the_layer_and_passes_in_place_layers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)).requires_grad_(False)
    with capture({"0": network[0]}, cut=True) as record:
        out = network(torch.randn(2, 3, 5, 5)).sum()
    assert record["0"].is_leaf
    (gradient,) = torch.autograd.grad(out, [record["0"]])
    expected = network[2].weight.sum(0).flatten().view(1, 4, 1, 1) * (record["0"] > 0)
    torch.testing.assert_close(gradient, expected)


def test_a_layer_that_was_not_called_is_named() -> None:
    network = nn.Sequential(nn.Identity(), nn.Identity())
    with capture({"1": network[1]}) as record:
        network[0](torch.zeros(1))
    with pytest.raises(LayerNotCalledError, match="'1' was not called"):
        record["1"]


def test_outputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="output a tensor"):
        tensor_of({"x": 1})


def test_own_grad_mode_works_inside_inference_mode() -> None:
    outside = torch.ones(2)
    with torch.inference_mode():
        inside = torch.ones(2)
        with own_grad_mode():
            for x in (outside, inside):
                y = x.clone().requires_grad_()
                assert torch.autograd.grad((y * y).sum(), y)[0].tolist() == [2.0, 2.0]
