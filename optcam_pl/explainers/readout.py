"""Which tokens of a vision transformer its head reads, found in a pass, and whether all that mixes tokens was seen.

No name of a class, module or setting is asked: a network may be anybody's, wrapped in anything.

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
from optcam_pl.network.capture import own_grad_mode
from optcam_pl.network.classifier import Classifier
from optcam_pl.private import is_compiled

_SLACK = 1e-4  # of the largest value: what rounding in float32 leaves
_PROJECTIONS = 2
# One vector of the class token, one of a distillation token, one of the patches: more than these is no list of means.
_MOST_GROUPS = 3
_TURNS = {"transpose", "permute", "swapaxes", "movedim", "t", "mT", "T"}
_ADVICE = "Take a method that needs no attention maps, such as GradCAM or OptiCAM."


class Readout(NamedTuple):
    """What the head reads.

    Attributes:
        weights: (N,) float64, summing to 1. Where the network pools tokens by attention, 1 for those that it attends
            to: how much of each is read, says the map of each image.
        pool: which of the pooling attentions of a pass that is, counted from 0; None where there is none.
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
    """What the head of a network reads, from two passes of noise in the shape of `image`; remembered for the network.

    The gradient of the scores with respect to the tokens behind the last attention tells it:

    - one token gets all of it: that token (a class token);
    - some tokens get the same, or multiples of the same: their mean, weighted so;
    - there are two or three such groups: each counts the same (class and distillation token of a distilled DeiT; class
      token and mean of the patches of DINOv2's classifier);
    - it comes through an attention with one query: attention pooling.

    Args:
        classifier: the network.
        image: (B,3,H,W), for its size, type and device.
        tokens: N, of the network's attention.

    Raises:
        ValueError: it is none of these, or tokens are mixed otherwise than by the attention that was seen.
    """
    key = (tuple(image.shape[2:]), image.dtype, image.device, tokens, _signature(classifier.network))
    known = _KNOWN.setdefault(classifier.network, {})
    if key not in known:
        with own_grad_mode(), torch.autocast(image.device.type, enabled=False):
            noise = torch.rand(1, 3, *image.shape[2:], generator=torch.Generator().manual_seed(0)).to(image)
            _check_mixing(classifier, noise, tokens)
            known.clear()  # what a network reads at one size at a time
            known[key] = _read(classifier, noise, tokens)
    return known[key]


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, Readout]] = weakref.WeakKeyDictionary()


def _signature(network: nn.Module) -> int:
    """Changes where modules or their plain settings (`global_pool`) are changed."""
    plain = (bool, int, str, type(None))
    return hash(
        tuple(
            (id(module), *((key, value) for key, value in vars(module).items() if isinstance(value, plain)))
            for module in network.modules()
        )
    )


def check_uncompiled(classifier: Classifier, method: str) -> None:
    """What is compiled cannot be looked into.

    Raises:
        ValueError: the network or a part of it is under `torch.compile`.
    """
    for name, module in classifier.network.named_modules():
        if is_compiled(module):
            raise ValueError(
                f"{method} reads the single operations of a network, but {name or 'all'} of {classifier.name} is under "
                "torch.compile, which hides them. Hand in the network as it was before it was compiled."
            )


def gradients(y: Tensor, of: Sequence[Tensor], classifier: Classifier, weight: Tensor | None = None) -> list[Tensor]:
    """`torch.autograd.grad` with zeros for what y does not depend on; y may be used again.

    Raises:
        ValueError: the network cuts or recomputes its graph.
    """
    if not y.requires_grad or not all(value.requires_grad for value in of):
        raise no_gradient(classifier)
    try:
        return list(torch.autograd.grad(y, of, weight, retain_graph=True, allow_unused=True, materialize_grads=True))
    except CheckpointError as error:
        raise ValueError(
            f"{classifier.name} is under gradient checkpointing, which computes attention again, unseen, in the "
            "backward pass. Switch it off (timm: network.set_grad_checkpointing(False); transformers: "
            "network.gradient_checkpointing_disable())."
        ) from error


def no_gradient(classifier: Classifier) -> ValueError:
    """An error for a network whose graph is cut."""
    return ValueError(
        f"Expected the scores of {classifier.name} to have a gradient at its tokens, but they have none: a part of it "
        "runs under torch.no_grad, detaches what it puts out, or is under gradient checkpointing. Switch that off "
        "(timm: network.set_grad_checkpointing(False))."
    )


# What mixes tokens ---------------------------------------------------------------------------------------------------


class _Apart(AttentionTape):
    """Two equal images; each token attends to itself alone; the second image's even tokens are changed on the way.

    Then its odd tokens have to stay what they are in the first image. `culprit` is the first operation after which
    they are not.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._count, self._changed = tokens, False
        self.culprit: str | None = None

    def mix(self, attention: Tensor) -> Tensor:
        """Each token attends to itself alone; a pooling query to all."""
        if attention.shape[-2] != attention.shape[-1]:
            return attention
        return torch.eye(attention.shape[-1]).to(attention).expand_as(attention)

    def run(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """See `AttentionTape.run`."""
        if name == "linear" and not self._changed and self._of_tokens(args[0]) is not None:
            self._changed = True
            args = (args[0].clone(), *args[1:])
            even = _images_first(args[0], 2)[1, ::2]
            even += torch.rand(even.shape, generator=torch.Generator().manual_seed(1)).to(even)
        out = func(*args, **kwargs)
        if self._changed and self.culprit is None and name not in _TURNS:
            tokens = self._of_tokens(out)
            # With as many channels as tokens a transposed tensor looks the same.
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
    """Whether the attention that the tape sees is all that mixes tokens."""
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
    """Keeps what comes behind the last attention map: `tokens`, tensors of three dimensions; and `pooled`, pairs of a
    pooling attention's map and what it puts out.
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
    ways = [torch.randn(scores.shape, generator=generator).to(scores) for _ in range(_PROJECTIONS)]
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
        values: tensors (1,M,D) or (M,1,D), in the order in which they came to be.
        tokens: N.
    """

    def __init__(self, classifier: Classifier, values: Sequence[Tensor], tokens: int) -> None:
        width = [value.shape[2] for value in values if _images_first(value, 1).shape[1] == tokens][:1]
        # All tokens, or some of them, as wide as they were.
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
        """Of the sums of y times each of the P `ways`."""
        if not self.values:
            raise self.refusal("reads no tensor of tokens (images x tokens x channels) behind its last attention")
        each = [gradients(y, self.values, self.classifier, way.view_as(y)) for way in ways]
        return [torch.cat([_images_first(G, 1) for G in ofs]).double() for ofs in zip(*each, strict=True)]

    def refusal(self, why: str) -> ValueError:
        """An error that says what is seen and what would work."""
        return ValueError(
            f"Expected the head of {self.classifier.name} to read a class token, means of tokens, or an attention "
            f"pooling with one query, so that it is known whose attention counts, but it {why}. {_ADVICE}"
        )


def _means(behind: _Gradients, direct: Sequence[Tensor]) -> Tensor:
    """(N,) the weights of tokens that are read one by one or as means.

    From the last tensor to the first: what of its gradient does not come through tensors that were already taken is
    read from it.
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
                "gives its tokens gradients that differ from token to token, as where they are flattened, pooled by "
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
    """The weights (M,) of the mean that is taken of the i-th tensor, with what its tokens were multiplied by before."""
    for j in reversed([j for j in range(i) if behind.sizes[j] == behind.sizes[i] and _any(direct[j])]):
        earlier = list(_groups(direct[j]))
        if len(earlier) > 1 or not torch.equal(earlier[0] > 0, weights > 0):
            break
        weights = earlier[0]
    return weights


def _on_tokens(behind: _Gradients, direct: Sequence[Tensor], i: int, weights: Tensor) -> Tensor:
    """The weights (M,) of the i-th tensor's rows as weights (N,) of all tokens."""
    if behind.sizes[i] == behind.tokens:
        return weights
    # Some of the tokens, read alike: which ones, say the tokens before them that get their gradient.
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
    """The readout of a network whose head reads a pooling attention, and nothing else."""
    (pool, (attention, out)), *others = used.items()
    if others:
        raise behind.refusal("pools its tokens by attention more than once")
    toward = [gradients(scores, [out], behind.classifier, way)[0] for way in ways]
    through = behind.of(out, toward)
    for i, G in enumerate(direct):
        if behind.sizes[i] == behind.tokens and not _equal(through[i], G, float(G.abs().max())):
            raise behind.refusal("reads its tokens by an attention pooling and in another way too")
    reached = direct[behind.sizes.index(behind.tokens)].abs().amax((0, 2))  # a key for each, in their order
    if int((reached > 0).sum()) != attention.shape[-1]:
        raise behind.refusal("pools its tokens by an attention to others than them")
    return Readout((reached > 0).double(), pool)


def _images_first(value: Tensor, images: int) -> Tensor:
    """(B,M,D) of (B,M,D) or (M,B,D)."""
    return value if value.shape[0] == images else value.transpose(0, 1)


def _any(G: Tensor, scale: float = 0.0) -> bool:
    return bool(G.abs().max() > _SLACK * scale)


def _equal(a: Tensor, b: Tensor, scale: float) -> bool:
    return bool((a - b).abs().max() <= _SLACK * scale)
