"""Finds which tokens the head of a vision transformer reads, and whether all operations that mix tokens were seen.

Names of classes, modules or settings play no role: the network may come from anywhere and be wrapped in anything.

Shape letters: B images, H heads, N tokens, M some of them, D channels, P projections of the scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from optcam_pl.explainers.relevance import AttentionTape
from optcam_pl.maps import normal, uniform
from optcam_pl.network.capture import own_grad_mode
from optcam_pl.network.classifier import Classifier
from optcam_pl.network.layers import fixed_noise
from optcam_pl.private import is_compiled

_SLACK = 1e-4  # share of the largest value that rounding in float32 may leave
_PROJECTIONS = 2
# One vector each for the class token, a distillation token and the patches: more would not be a list of means.
_MOST_GROUPS = 3
_TURNS = {"transpose", "permute", "swapaxes", "movedim", "t", "mT", "T"}
_ADVICE = "Use a method that needs no attention maps, such as GradCAM or OptiCAM."


class Readout(NamedTuple):
    """The tokens that the head reads.

    Attributes:
        weights: (N,) float64, summing to 1. If the network pools tokens by attention: 1 for the tokens that it attends
            to; the map of each image says how much of each token is read.
        pool: which pooling attention of a pass it is, counted from 0; None if there is none.
    """

    weights: Tensor
    pool: int | None = None

    def of(self, pools: Sequence[Tensor], like: Tensor) -> Tensor:
        """(N,), or (B,N) by a pass's pooling attentions `pools`, each (B,1,M); in the type of `like`."""
        weights = self.weights.to(like)
        if self.pool is None:
            return weights
        rows = weights.repeat(len(like), 1)
        rows[:, weights > 0] = pools[self.pool].squeeze(1).to(like)
        return rows


def find_readout(classifier: Classifier, image: Tensor, tokens: int) -> Readout:
    """Find what a network's head reads, by two passes of noise in the shape of `image`; cached for the network.

    The gradient of the scores with respect to the tokens after the last attention shows it:

    - one token gets the whole gradient: the head reads that token (a class token);
    - several tokens get the same gradient, or multiples of it: the head reads their weighted mean;
    - there are two or three such groups: each group counts equally (class and distillation token of a distilled DeiT;
      class token and mean of the patches of DINOv2's classifier);
    - the gradient comes through an attention with one query: attention pooling.

    Args:
        classifier: the network.
        image: (B,3,H,W), for its size, type and device.
        tokens: N, the number of tokens of the network's attention.

    Raises:
        ValueError: none of these holds, or tokens are mixed in another way than by the attention that was seen.
    """
    key = (tuple(image.shape[2:]), image.dtype, image.device, tokens, _signature(classifier.network))
    known = _KNOWN.setdefault(classifier.network, {})
    if key not in known:
        with own_grad_mode(), torch.autocast(image.device.type, enabled=False):
            noise = fixed_noise(1, *image.shape[1:]).to(image)
            _check_mixing(classifier, noise, tokens)
            known.clear()  # keep the result for one size at a time
            known[key] = _read(classifier, noise, tokens)
    return known[key]


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, Readout]] = weakref.WeakKeyDictionary()


def _signature(network: nn.Module) -> int:
    """A value that changes when modules or their plain settings (`global_pool`) change."""
    plain = (bool, int, str, type(None))
    return hash(
        tuple(
            (id(module), *((key, value) for key, value in vars(module).items() if isinstance(value, plain)))
            for module in network.modules()
        )
    )


def check_uncompiled(classifier: Classifier, method: str) -> None:
    """Refuse compiled networks, whose operations are hidden.

    Raises:
        ValueError: the network or a part of it is under `torch.compile`.
    """
    for name, module in classifier.network.named_modules():
        if is_compiled(module):
            raise ValueError(
                f"{method} reads the single operations of a network, but {name or 'all'} of {classifier.name} is under "
                "torch.compile, which hides them. Pass the network as it was before it was compiled."
            )


def gradients(y: Tensor, of: Sequence[Tensor], classifier: Classifier, weight: Tensor | None = None) -> list[Tensor]:
    """`torch.autograd.grad` with zeros for tensors that y does not depend on; y may be used again.

    Raises:
        ValueError: the network cuts or recomputes its graph.
    """
    if not y.requires_grad or not all(value.requires_grad for value in of):
        raise no_gradient(classifier)
    try:
        return list(torch.autograd.grad(y, of, weight, retain_graph=True, allow_unused=True, materialize_grads=True))
    except CheckpointError as error:
        raise ValueError(
            f"{classifier.name} is under gradient checkpointing, which computes attention again, unobserved, in the "
            "backward pass. Switch it off (timm: network.set_grad_checkpointing(False); transformers: "
            "network.gradient_checkpointing_disable())."
        ) from error


def no_gradient(classifier: Classifier) -> ValueError:
    """The error for a network whose graph is cut."""
    return ValueError(
        f"Expected the scores of {classifier.name} to have a gradient at its tokens, but they have none: a part of it "
        "runs under torch.no_grad, detaches its output, or is under gradient checkpointing. Switch that off "
        "(timm: network.set_grad_checkpointing(False))."
    )


# What mixes tokens ---------------------------------------------------------------------------------------------------


class _Apart(AttentionTape):
    """Runs two equal images, in which each token attends only to itself, and changes the second one's even tokens.

    Then its odd tokens must stay equal to those of the first image. `culprit` is the first operation after which they
    differ.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._count, self._changed = tokens, False
        self.culprit: str | None = None

    def mix(self, attention: Tensor) -> Tensor:
        """Each token attends only to itself; a pooling query attends to all."""
        if attention.shape[-2] != attention.shape[-1]:
            return attention
        return torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device).expand_as(attention)

    def run(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `AttentionTape.run`."""
        if name == "linear" and not self._changed and self._of_tokens(args[0]) is not None:
            self._changed = True
            args = (args[0].clone(), *args[1:])
            even = _images_first(args[0], 2)[1, ::2]
            even += uniform(even.shape, torch.Generator().manual_seed(1)).to(even)
        out = func(*args, **kwargs)
        if self._changed and self.culprit is None and name not in _TURNS:
            tokens = self._of_tokens(out)
            # With as many channels as tokens, a transposed tensor has the same shape.
            if tokens is not None and (name == "linear" or tokens.shape[2] != self._count):
                odd = tokens[:, 1::2]
                if not _equal(odd[0], odd[1], float(tokens.abs().max())):
                    self.culprit = name
        return out

    def _of_tokens(self, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.ndim != 3 or not value.is_floating_point():
            return None
        value = _images_first(value, 2)
        return value if value.shape[:2] == (2, self._count) else None


def _check_mixing(classifier: Classifier, noise: Tensor, tokens: int) -> None:
    """Whether nothing but the attention that the tape sees mixes tokens."""
    with torch.no_grad(), _Apart(tokens) as tape:
        classifier(noise.repeat(2, 1, 1, 1))
    if tape.culprit is not None:
        raise ValueError(
            f"Expected a vision transformer whose tokens are mixed by its attention alone, but {classifier.name} mixes "
            f"them in another way too (seen after the operation {tape.culprit!r}), which an attention map does not "
            f"show. {_ADVICE}"
        )


# What is read --------------------------------------------------------------------------------------------------------


class _Behind(AttentionTape):
    """Keeps what follows the last attention map: `tokens`, tensors of three dimensions; and `pooled`, pairs of a
    pooling attention's map and its output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[Tensor] = []
        self.pooled: list[tuple[Tensor, Tensor]] = []
        self._seen = 0

    def run(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `AttentionTape.run`."""
        out = func(*args, **kwargs)
        if len(self.maps) > self._seen:
            self._seen = len(self.maps)
            self.tokens.clear()
        elif len(self.pools) > len(self.pooled):
            self.pooled.append((self.pools[-1], out))
        if isinstance(out, Tensor) and out.ndim == 3 and out.requires_grad and self.maps and name not in _TURNS:
            self.tokens.append(out)
        return out


def _read(classifier: Classifier, noise: Tensor, tokens: int) -> Readout:
    with _Behind() as tape:
        scores = classifier(noise.requires_grad_())
    if not tape.tokens:
        raise no_gradient(classifier)
    generator = torch.Generator().manual_seed(2)
    ways = [normal(scores.shape, generator).to(scores) for _ in range(_PROJECTIONS)]
    behind = _Gradients(classifier, tape.tokens, tokens)
    direct = behind.of(scores, ways)
    used = {
        i: pair
        for i, pair in enumerate(tape.pooled)
        if pair[0].requires_grad and _any(gradients(scores, [pair[0]], classifier, ways[0])[0])
    }
    if used:
        return _pooled(behind, scores, ways, direct, used)
    return Readout(_means(behind, direct))


class _Gradients:
    """Gradients with respect to tensors of tokens, each as (P,M,D).

    Args:
        classifier: for messages.
        values: tensors (1,M,D) or (M,1,D), in the order in which they were computed.
        tokens: N.
    """

    def __init__(self, classifier: Classifier, values: Sequence[Tensor], tokens: int) -> None:
        width = [value.shape[2] for value in values if _images_first(value, 1).shape[1] == tokens][:1]
        # All tokens, or some of them, with their original width.
        kept = [
            (value, _images_first(value, 1).shape[1])
            for value in values
            if 1 in value.shape[:2]
            and (_images_first(value, 1).shape[1] == tokens or [value.shape[2]] == width)
            and 1 < _images_first(value, 1).shape[1] <= tokens
        ]
        self.values, self.sizes = [value for value, _ in kept], [size for _, size in kept]
        self.classifier, self.tokens = classifier, tokens

    def of(self, y: Tensor, ways: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the sums of y times each of the P `ways`."""
        if not self.values:
            raise self.refusal("reads no tensor of tokens (images x tokens x channels) behind its last attention")
        each = [gradients(y, self.values, self.classifier, way.view_as(y)) for way in ways]
        return [torch.cat([_images_first(G, 1) for G in ofs]).double() for ofs in zip(*each, strict=True)]

    def refusal(self, why: str) -> ValueError:
        """The error that says what was seen and what would work."""
        return ValueError(
            f"Expected the head of {self.classifier.name} to read a class token, means of tokens, or an attention "
            f"pooling with one query, so that it is known whose attention counts, but it {why}. {_ADVICE}"
        )


def _means(behind: _Gradients, direct: Sequence[Tensor]) -> Tensor:
    """(N,) the weights of tokens that are read individually or as means.

    It goes from the last tensor to the first: the head reads a tensor directly as far as its gradient does not come
    through tensors that were already processed.
    """
    left = [G.clone() for G in direct]
    groups: list[Tensor] = []
    for i in reversed(range(len(left))):
        if not _any(left[i], float(direct[i].abs().max())):
            continue
        of_rows = list(_groups(left[i]))
        some = behind.sizes[i] < behind.tokens and len(of_rows) > 1
        if some or len(groups) + len(of_rows) > _MOST_GROUPS:
            raise behind.refusal(
                "gives its tokens gradients that differ from token to token, as if they were flattened, pooled by "
                "their maximum, or weighted by something that depends on them"
            )
        if len(of_rows) == 1:
            of_rows = [_before(behind, direct, i, of_rows[0])]
        groups += [_on_tokens(behind, direct, i, weights) for weights in of_rows]
        through = behind.of(behind.values[i], list(left[i].to(behind.values[i].dtype)))
        left = [rest - G if j <= i else rest for j, (rest, G) in enumerate(zip(left, through, strict=True))]
    if not groups:
        raise behind.refusal("gives none of its tokens a gradient, as where its weights are zero")
    return torch.stack(groups).sum(0) / len(groups)


def _groups(G: Tensor) -> Iterator[Tensor]:
    """(P,M,D) -> for each set of tokens whose gradients point the same way, (M,) weights that sum to 1."""
    rows = G.transpose(0, 1).flatten(1)
    size = rows.norm(dim=1)
    ways = rows / size.clamp(min=torch.finfo(rows.dtype).tiny).unsqueeze(1)
    left = size > _SLACK * size.max()
    while left.any():
        first = ways[left][0]
        same = left & ((ways - first).abs().amax(1) <= _SLACK * float(first.abs().max()))
        weights = size * same / size[same].sum()
        even = same.double() / same.sum()
        yield even if _equal(weights, even, float(even.max())) else weights
        left = left & ~same


def _before(behind: _Gradients, direct: Sequence[Tensor], i: int, weights: Tensor) -> Tensor:
    """The weights (M,) in the mean over the i-th tensor, including earlier factors of its tokens."""
    for j in reversed([j for j in range(i) if behind.sizes[j] == behind.sizes[i] and _any(direct[j])]):
        earlier = list(_groups(direct[j]))
        if len(earlier) > 1 or not torch.equal(earlier[0] > 0, weights > 0):
            break
        weights = earlier[0]
    return weights


def _on_tokens(behind: _Gradients, direct: Sequence[Tensor], i: int, weights: Tensor) -> Tensor:
    """Turn the weights (M,) of the i-th tensor's rows into weights (N,) of all tokens."""
    if behind.sizes[i] == behind.tokens:
        return weights
    # Some of the tokens, read alike. The earlier tokens that get their gradient show which ones.
    source = [j for j in range(i) if behind.sizes[j] == behind.tokens and _any(direct[j])][-1:]
    if source:
        way = direct[i][0].to(behind.values[i].dtype)
        reached = behind.of(behind.values[i], [way])[source[0]].abs().amax((0, 2))
        chosen = reached > _SLACK * reached.max()
        if int(chosen.sum()) == behind.sizes[i]:
            return chosen.double().masked_scatter(chosen, weights)
    raise behind.refusal("reads some of its tokens in a way that cannot be traced back to them")


def _pooled(
    behind: _Gradients,
    scores: Tensor,
    ways: Sequence[Tensor],
    direct: Sequence[Tensor],
    used: dict[int, tuple[Tensor, Tensor]],
) -> Readout:
    """The readout of a network whose head reads only a pooling attention."""
    (pool, (attention, out)), *others = used.items()
    if others:
        raise behind.refusal("pools its tokens by attention more than once")
    toward = [gradients(scores, [out], behind.classifier, way)[0] for way in ways]
    through = behind.of(out, toward)
    for i, G in enumerate(direct):
        if behind.sizes[i] == behind.tokens and not _equal(through[i], G, float(G.abs().max())):
            raise behind.refusal("reads its tokens by an attention pooling and in another way too")
    reached = direct[behind.sizes.index(behind.tokens)].abs().amax((0, 2))  # one key per token, in the same order
    if int((reached > 0).sum()) != attention.shape[-1]:
        raise behind.refusal("pools its tokens by an attention to something else")
    return Readout((reached > 0).double(), pool)


def _images_first(value: Tensor, images: int) -> Tensor:
    """(B,M,D) from (B,M,D) or (M,B,D)."""
    return value if value.shape[0] == images else value.transpose(0, 1)


def _any(G: Tensor, scale: float = 0.0) -> bool:
    return bool(G.abs().max() > _SLACK * scale)


def _equal(a: Tensor, b: Tensor, scale: float) -> bool:
    return bool((a - b).abs().max() <= _SLACK * scale)
