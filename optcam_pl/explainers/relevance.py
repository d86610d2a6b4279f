"""Reads the attention maps of a vision transformer, and the relevance that flows through it, while its code runs.

Nothing is attached to the network: a `torch.overrides.TorchFunctionMode` sees the operations that the network's modules
call while the mode is open. It ends with its context, also after an exception. Thus the same few rules serve the
transformers of timm and torchvision, with or without fused attention.

Shape letters: B images, H heads, N tokens (class, distillation and register tokens first), D channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Rule: TypeAlias = Callable[..., tuple[Tensor, ...]]

_EPS = 1e-9
# Operations that pass an attention map on unchanged: dropout does nothing in eval mode.
_KEEPS_MAP = {"dropout", "to", "type_as", "float", "contiguous"}
# Operations that only move values: their gradient moves relevance back to where the values came from.
_ROUTES = {
    *("reshape", "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze"),
    *("unbind", "chunk", "split", "getitem", "select", "narrow", "cat", "stack", "expand", "expand_as", "get"),
    *("contiguous", "clone", "to", "type_as", "float", "dropout"),
}
# Operations on one tensor, value by value or token by token, that pass relevance on unchanged.
_PASSES = {"layer_norm", "rms_norm", "softmax", "relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "neg"}
# Operations with a constant of the network (a bias, a scale), which gets no relevance.
_WITH_CONSTANT = {"add", "radd", "iadd", "mul", "rmul", "imul"}
_BY_CONSTANT = {"sub", "div", "truediv"}


class AttentionTape(TorchFunctionMode):
    """Collects the softmax attention maps of everything that runs while it is open, in `maps`, first block first.

    The maps of pooling attention, which has one query (B,H,1,N), are collected separately, in `pools`.

    Fused attention and torch's multi-head attention are computed step by step instead, so that the map exists. The
    network's output stays the same up to rounding.

    Args:
        keep: what to store of each map (B,H,N,N): by default the map itself, with its graph.

    >>> q = torch.tensor([[[[0.0], [0.0]]]])
    >>> with AttentionTape() as tape:
    ...     out = F.scaled_dot_product_attention(q, q, torch.tensor([[[[1.0], [3.0]]]]))
    >>> out.flatten().tolist(), tape.maps[0].tolist()
    ([2.0, 2.0], [[[[0.5, 0.5], [0.5, 0.5]]]])
    """

    def __init__(self, keep: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.maps: list[Tensor] = []
        self.pools: list[Tensor] = []
        self._keep = keep
        self._shapes: set[tuple[int, ...]] = set()
        self._open: dict[int, Tensor] = {}  # softmax outputs not yet multiplied with values
        self._pooling: dict[int, Tensor] = {}  # the same for one query, that of a pooling head
        self._sizes: set[tuple[int, int]] = set()  # (images, tokens), or reversed, of linear layers

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Receives every torch operation. The mode is off inside, so calls in here are ordinary ones."""
        name, kwargs = func.__name__, kwargs or {}
        name = name.strip("_") if name.startswith("__") else name
        first = id(args[0]) if args else 0
        if name == "scaled_dot_product_attention":
            with self:
                return _attend(*args, **kwargs)
        if name == "multi_head_attention_forward":
            with self:
                return _multi_head(*args, **kwargs)
        if name == "matmul" and first in self._open:
            attention = self._open.pop(first)
            self._shapes.add(tuple(attention.shape))
            self.maps.append(attention if self._keep is None else self._keep(attention))
            args = (self.mix(attention), *args[1:])
        if name == "matmul" and first in self._pooling:
            attention = self._pooling.pop(first)
            self.pools.append(attention if self._keep is None else self._keep(attention))
        out = self.run(name, func, args, kwargs)
        if name == "linear" and out.ndim == 3:
            self._sizes.add((out.shape[0], out.shape[1]))
        if name == "softmax" and out.ndim >= 4:
            waiting = self._open if out.shape[-2] > 1 else self._pooling
            waiting[id(out)] = out  # the dict holds the tensor, so its id stays its own
        for waiting in (self._open, self._pooling):
            if name in _KEEPS_MAP and first in waiting:
                del waiting[first]
                waiting[id(out)] = out
        return out

    def mix(self, attention: Tensor) -> Tensor:
        """The factor of the values: the attention map (B,H,N,N), unless a subclass replaces it."""
        return attention

    def run(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one operation; a subclass may replace its gradient."""
        del name
        return func(*args, **kwargs)

    def attention(self, batch: int, network: str) -> list[Tensor]:
        """`maps` after a pass over `batch` images, one per block, checked.

        Raises:
            ValueError: the network has no attention over the tokens of a whole image.
        """
        shape = next(iter(self._shapes), ())
        why = None
        if self._open:
            why = "attends in another way than by softmax(q k^T) v"
        elif not shape:
            why = "calls no self-attention"
        elif len(self._shapes) > 1 or len(shape) != 4 or shape[0] != batch or shape[-1] != shape[-2]:
            why = "attends within windows, or at several resolutions"
        elif not {(batch, shape[-1]), (shape[-1], batch)} & self._sizes:
            why = "attends over channels, not over tokens"
        if why is not None:
            raise ValueError(
                f"Expected a vision transformer in which every token attends to all tokens of the image, but {network} "
                f"{why}. Use a method that needs no attention maps, such as GradCAM or OptiCAM."
            )
        return self.maps


class RelevanceTape(AttentionTape):
    """An `AttentionTape` with relevance in place of gradients from the first attention map upwards.

    If y_c was computed while the tape was open, ``torch.autograd.grad(y_c.sum(), maps)`` is the relevance of each
    attention map for y_c (layer-wise relevance propagation as in Chefer, Gur, Wolf, CVPR 2021), separately for each
    image. Inside `plain` the same call gives the gradients of the network itself, so that both need one forward pass.

    ===================================  ===================================================
    linear layer                         `linear_rule`: shares of the positive contributions
    residual addition                    `add_rule`
    product of two tensors               `matmul_rule`, `product_rule`: half to each factor
    mean over the tokens                 `mean_rule`
    normalization, activation, softmax   unchanged
    sum or product with a constant       unchanged; the constant gets none
    moving, selecting, joining           back to where the values came from
    ===================================  ===================================================

    The image must require a gradient: this is how the tape tells values that depend on it from constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self._way = _Way()
        self._without_rule: str | None = None  # the first operation without a rule, in words

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Gradients in place of relevance, for the backward passes in this context."""
        self._way.plain = True
        try:
            yield
        finally:
            self._way.plain = False

    def attention(self, batch: int, network: str) -> list[Tensor]:
        """See `AttentionTape.attention`.

        Raises:
            ValueError: also where the network calls an operation for which no rule is known.
        """
        maps = super().attention(batch, network)
        if self._without_rule is not None:
            raise ValueError(
                f"There is no relevance rule for {self._without_rule}. Use a method without relevance, such as "
                "AttentionRollout or GradCAM."
            )
        return maps

    def run(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `AttentionTape.run`."""
        out = func(*args, **kwargs)
        if not self.maps:  # below the first attention map no relevance is needed
            return out
        rule, inputs = _rule_of(name, args, kwargs)
        if rule is None:
            if name not in _ROUTES and _requires_grad(out):
                self._without_rule = self._without_rule or f"the operation {name!r}, which the network calls"
            return out
        if rule in (pass_rule, add_rule, product_rule) and any(value.shape != out.shape for value in inputs):
            self._without_rule = self._without_rule or f"{name!r} of tensors that are broadcast to one another"
            return out
        return _WithRule.apply(self._way, rule, out, *inputs)


def _rule_of(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Rule | None, list[Tensor]]:
    """The rule of an operation and the tensors that it needs; None if nothing in it depends on the image."""
    live = [value for value in args[:2] if isinstance(value, Tensor) and value.requires_grad]
    if not live:
        return None, []
    if name == "linear":
        return linear_rule, [live[0], kwargs["weight"] if "weight" in kwargs else args[1]]
    if name == "mean" and live[0].ndim == 3 and (args[1] if len(args) > 1 else kwargs.get("dim")) in (1, (1,), [1]):
        return mean_rule, live
    if name in ("matmul", "bmm"):
        return functools.partial(matmul_rule, factors=len(live)), list(args[:2])
    alone = len(live) == 1 and (name in _WITH_CONSTANT or (name in _BY_CONSTANT and live[0] is args[0]))
    if alone or name in _PASSES:
        return pass_rule, live[:1]
    return (None if kwargs else _OF_TWO.get(name)), live


@dataclass
class _Way:
    """Which way back a backward pass takes. The graph holds this and not the tape, which holds the graph."""

    plain: bool = False


class _WithRule(torch.autograd.Function):
    """A value with two ways back: by a rule to the inputs, or to the operation that it was computed by."""

    @staticmethod
    def forward(ctx: Any, way: _Way, rule: Rule, value: Tensor, *inputs: Tensor) -> Tensor:
        ctx.way, ctx.rule = way, rule
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(value, *inputs)
        return value

    @staticmethod
    def backward(ctx: Any, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        value, *inputs = ctx.saved_tensors
        nothing = [None] * len(inputs)
        if relevance is None or ctx.way.plain:
            return (None, None, relevance, *nothing)
        shares: tuple[Tensor | None, ...] = ctx.rule(relevance, value, *inputs)
        return (None, None, None, *shares, *nothing[len(shares) :])


def divide(a: Tensor, b: Tensor) -> Tensor:
    """``a / (b + 1e-9)``, and 0 where b is 0.

    >>> divide(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 0.0]))
    tensor([0.2500, 0.0000])
    """
    below = b + _EPS
    return torch.where(b == 0, 0, a / torch.where(below == 0, _EPS, below))


def pass_rule(R: Tensor, Z: Tensor, x: Tensor) -> tuple[Tensor]:
    """The relevance of ``Z = f(x)`` is that of x."""
    del Z, x
    return (R,)


def linear_rule(R: Tensor, Z: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor]:
    """``R_i = sum_j (x_i w_ij)+ / sum_i (x_i w_ij)+ R_j``: only positive x_i w_ij count, biases never do.

    Args:
        R: (...,J) relevance of the outputs.
        Z: the outputs; not needed.
        x: (...,I) inputs.
        weight: (J,I).

    Returns:
        (...,I) relevance of the inputs.

    >>> x, weight = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.5, -1.0]])
    >>> linear_rule(torch.tensor([[8.0]]), torch.zeros(1, 1), x, weight)[0]
    tensor([[2., 6., 0.]])
    """
    del Z
    w_up, w_down, x_up, x_down = weight.clamp(min=0), weight.clamp(max=0), x.clamp(min=0), x.clamp(max=0)
    S = divide(R, F.linear(x_up, w_up) + F.linear(x_down, w_down))
    return (x_up * (S @ w_up) + x_down * (S @ w_down),)


def add_rule(R: Tensor, Z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``Z = a + b``: each value's share; both branches are then scaled, with sums in proportion to their size.

    With ``A = a R / Z`` and ``B = b R / Z``, A becomes ``A |sum A| / (|sum A| + |sum B|) sum R / sum A``, and B alike:
    otherwise terms of unequal sign could grow without bound. The sums run over all values of one image (the first
    dimension).

    >>> [share.tolist() for share in add_rule(*torch.tensor([[[4.0, 4.0]], [[4.0, 4.0]], [[1.0, 1.0]], [[3.0, 3.0]]]))]
    [[[1.0, 1.0]], [[3.0, 3.0]]]
    """
    S = divide(R, Z)
    shares = (a * S, b * S)
    dims = tuple(range(1, R.ndim))
    sums = [share.sum(dims, keepdim=True) for share in shares]
    size, total = sums[0].abs() + sums[1].abs(), R.sum(dims, keepdim=True)
    first, second = (share * divide(divide(s.abs(), size) * total, s) for share, s in zip(shares, sums, strict=True))
    return first, second


def matmul_rule(R: Tensor, Z: Tensor, a: Tensor, b: Tensor, factors: int = 2) -> tuple[Tensor, Tensor]:
    """``Z = a b``: shares of the contributions ``a_ik b_kj``, half of them to each factor.

    If one factor is a constant of the network (the query of a pooling head), `factors` is 1 and the other factor gets
    all.

    >>> a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0], [2.0]])
    >>> [share.flatten().tolist() for share in matmul_rule(torch.tensor([[8.0]]), a @ b, a, b)]
    [[1.0, 3.0], [1.0, 3.0]]
    """
    S = divide(R, Z)
    return a * (S @ b.transpose(-2, -1)) / factors, b * (a.transpose(-2, -1) @ S) / factors


def product_rule(R: Tensor, Z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``Z = a . b`` (a gate): half of the relevance to each factor."""
    del Z, a, b
    return R / 2, R / 2


_OF_TWO: dict[str, Rule] = {"add": add_rule, "iadd": add_rule, "mul": product_rule, "imul": product_rule}


def mean_rule(R: Tensor, Z: Tensor, x: Tensor) -> tuple[Tensor]:
    """``Z = mean of x`` (B,N,D) over the tokens: shares of the contributions.

    >>> x = torch.tensor([[[1.0], [3.0]]])
    >>> mean_rule(torch.tensor([[4.0]]), x.mean(1), x)[0].flatten().tolist()
    [1.0, 3.0]
    """
    S = divide(R, Z * x.shape[1])
    return (x * (S if S.ndim == x.ndim else S.unsqueeze(1)),)


def _requires_grad(out: Any) -> bool:
    parts = out if isinstance(out, (tuple, list)) else (out,)
    return any(isinstance(part, Tensor) and part.requires_grad for part in parts)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, in steps: (B,H,N,d) -> (B,H,N,d)."""
    if dropout_p or is_causal or enable_gqa:
        raise ValueError("Expected attention of a network in eval mode, without causal mask or grouped queries.")
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=logits.dtype).masked_fill(~attn_mask, float("-inf"))
        logits = logits + attn_mask
    return logits.softmax(-1) @ value


def _multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero: bool,
    dropout_p: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`F.multi_head_attention_forward` as vision transformers call it, in steps: (N,B,D) -> (N,B,D).

    The query may be one vector that pools the tokens: (1,B,D) -> (1,B,D).
    """
    del width, dropout_p  # dropout does nothing in eval mode
    masked = any(options.get(name) is not None for name in ("attn_mask", "key_padding_mask", "static_k", "static_v"))
    extended = add_zero or bias_k is not None or bias_v is not None
    pools = key is value and query.shape[0] == 1
    if masked or extended or in_weight is None or not (query is key is value or pools):
        raise ValueError(
            "Expected nn.MultiheadAttention to be plain self-attention, or to pool by one query: no mask, no added "
            "keys, no other tokens to attend to."
        )
    # (N,B,3D) -> three times (B,H,N,d)
    if query is key:
        parts = F.linear(query, in_weight, in_bias).chunk(3, dim=-1)
    else:
        D = query.shape[-1]
        of_query, of_rest = (None, None) if in_bias is None else (in_bias[:D], in_bias[D:])
        of_keys = F.linear(key, in_weight[D:], of_rest).chunk(2, dim=-1)
        parts = (F.linear(query, in_weight[:D], of_query), *of_keys)
    q, k, v = (part.reshape(*part.shape[:2], heads, -1).permute(1, 2, 0, 3) for part in parts)
    out = F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2)
    return F.linear(out, out_weight, out_bias), None
