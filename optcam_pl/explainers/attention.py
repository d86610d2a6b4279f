"""Methods that read the attention of a vision transformer: raw attention, rollout, TIBAV.

Shape letters: B images, L blocks, H heads, N tokens, h x w patch grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from optcam_pl.checks import check_choice, check_count
from optcam_pl.explainers.base import Explainer, Explanation
from optcam_pl.explainers.readout import check_uncompiled, find_readout, gradients
from optcam_pl.explainers.relevance import AttentionTape, RelevanceTape
from optcam_pl.maps import of_class
from optcam_pl.network.classifier import Classifier

HeadFusion: TypeAlias = Literal["mean", "max", "min"]


def rollout(maps: Sequence[Tensor], readout: Tensor) -> Tensor:
    """``readout . M_L ... M_2 M_1``, where M is ``A + I`` with rows that sum to 1: how much each token counts.

    Args:
        maps: L tensors (B,N,N), the A of each block, first block first.
        readout: (N,) or, for each image, (B,N) weights of the tokens that the head reads.

    Returns:
        (B,N) the share of each token of the first block.

    >>> A, B = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    >>> rollout([A, B], torch.tensor([1.0, 0.0]))
    tensor([[0.3750, 0.6250]])
    """
    rows = readout.unsqueeze(-2).expand(maps[-1].shape[0], 1, -1)
    for A in reversed(maps):  # from the left: only products of a row and a matrix
        rows = rows / (A.sum(-1).unsqueeze(1) + 1)
        rows = torch.bmm(rows, A) + rows
    return rows.squeeze(1)


def accumulate(maps: Sequence[Tensor], readout: Tensor) -> Tensor:
    """``readout . ((A_L + I) ... (A_1 + I) - I)``: without normalization, minus each token's own share.

    The tokens' own share, `readout`, is the same for all patches, so it cancels when the map is normalized. Relevance
    may be so much smaller that adding the share would drown it.

    >>> A, B = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    >>> accumulate([A, B], torch.tensor([1.0, 0.0]))
    tensor([[0.5000, 2.5000]])
    """
    own = readout.unsqueeze(-2).expand(maps[-1].shape[0], 1, -1)
    gained = torch.zeros_like(own)
    for A in reversed(maps):
        gained = torch.bmm(own, A) + torch.bmm(gained, A) + gained
    return gained.squeeze(1)


def fuse_heads(attention: Tensor, how: HeadFusion = "mean") -> Tensor:
    """(B,H,N,N) -> (B,N,N): the mean, largest or smallest attention over the heads."""
    return attention.mean(1) if how == "mean" else attention.amax(1) if how == "max" else attention.amin(1)


class AttentionExplainer(Explainer):
    """The shared part of all explainers of vision transformers: from one number per token to a map.

    1. `token_scores`: the method itself.
    2. The tokens are laid on their grid; class, distillation and register tokens are dropped.
    3. The map is upsampled to the image, then range-normalized.

    A token's score says how much it contributes to the tokens that the classification head reads. A pass of noise finds
    out which ones these are (see `optcam_pl.explainers.readout.find_readout`), not the network's name: the class token;
    the mean of class and distillation token where the head averages both; the mean of all patches where the head pools
    them; half the class token and half the patches where the head gets both. Where an attention pools the tokens, its
    map says, for each image separately, how much of each token is read. The pooling counts as one more block, whose
    only token is the query.

    Raises:
        ValueError: the network has no attention over the tokens of a whole image (a CNN, a Swin transformer), also
            mixes its tokens in other ways, is compiled, or reads its tokens in a way that cannot be determined.
    """

    needs_original = True  # it watches single operations, which compiled code and graphs hide

    def __init__(self, **shared: Any) -> None:
        super().__init__(None, "black", **shared)

    @abstractmethod
    def token_scores(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        """(B,N): one number for each token, prefix tokens first."""

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor) -> Explanation:
        """Steps 1 to 3; see the class."""
        return self.finish(self.raw_map(classifier, image, target), image, target)

    def raw_map(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        """Steps 1 and 2: (B,1,h,w) before upsampling and normalization."""
        scores = self.token_scores(classifier, image, target).detach().to(image.dtype)
        return classifier.to_grid(scores.unsqueeze(2), (image.shape[2], image.shape[3]), "attention")

    @staticmethod
    def attention(
        classifier: Classifier, image: Tensor, keep: Callable[[Tensor], Tensor] = fuse_heads
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The attention of each block, heads fused, L times (B,N,N), and of pooling queries, each (B,1,N).

        From one pass without gradients.
        """
        check_uncompiled(classifier, "Attention")
        with torch.no_grad(), AttentionTape(keep) as tape:
            classifier(image)
        maps, pools = tape.attention(image.shape[0], classifier.name), tape.pools
        return [kept.to(image.dtype) for kept in maps], [kept.to(image.dtype) for kept in pools]

    @staticmethod
    def readout(classifier: Classifier, image: Tensor, tokens: int, pools: Sequence[Tensor] = ()) -> Tensor:
        """(N,) weights, summing to 1, of the tokens that the head reads; (B,N) where `pools` (B,1,N) define them."""
        return find_readout(classifier, image, tokens).of(pools, image)


class RawAttention(AttentionExplainer):
    """The attention of the class token in one block, averaged over the heads; the same for every class.

    Args:
        block: which block, counted from 0, or from the end if negative. The paper's table 2 reads the last one.
    """

    def __init__(self, block: int = -1, **shared: Any) -> None:
        super().__init__(**shared)
        if not isinstance(block, int) or isinstance(block, bool):
            raise TypeError(f"Expected `block` to be an integer, but got {block!r}.")
        self.block = block

    def token_scores(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        del target
        maps, pools = self.attention(classifier, image)
        if not -len(maps) <= self.block < len(maps):
            raise ValueError(f"Expected `block` to be one of {classifier.name}'s {len(maps)}, but got {self.block}.")
        A = maps[self.block]
        readout = self.readout(classifier, image, A.shape[-1], pools)
        return torch.matmul(readout.unsqueeze(-2), A).squeeze(-2)


class AttentionRollout(AttentionExplainer):
    """Attention rollout (Abnar and Zuidema, ACL 2020): ``prod_l (A_l + I) / 2``, the class token's row.

    The attention of all blocks is multiplied, where half of each block's output is its residual. The map is the same
    for every class. Row-normalizing ``A + I`` (as the paper writes it) means halving it, because attention sums to 1.
    Attention that is fused by "max" or "min" does not sum to 1; its rows are normalized by their sums.

    Args:
        start_block: the first block that counts.
        head_fusion: how the heads become one map; the paper's is the mean.
    """

    def __init__(self, start_block: int = 0, head_fusion: HeadFusion = "mean", **shared: Any) -> None:
        super().__init__(**shared)
        self.start_block = check_count("start_block", start_block)
        self.head_fusion: HeadFusion = check_choice("head_fusion", head_fusion, HeadFusion)

    def token_scores(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        del target
        maps, pools = self.attention(classifier, image, lambda A: fuse_heads(A, self.head_fusion))
        readout = self.readout(classifier, image, maps[-1].shape[-1], pools)
        return rollout(_from_block(maps, self.start_block), readout)


class TIBAV(AttentionExplainer):
    """Transformer interpretability beyond attention visualization (Chefer, Gur, Wolf, CVPR 2021).

    ``prod_l (I + mean_heads ReLU(G_l . R_l))``, the class token's row. G is the gradient of the class's logit with
    respect to the attention of a block, R is the attention's relevance for the logit (see `RelevanceTape` for the
    rules). The rows are not normalized, as in the authors' program and unlike in rollout. If the head has a pooling
    attention, the row that is read comes from it in the same way: ``mean_heads ReLU(G . R)`` of its own map.

    1. A forward pass.
    2. G: a backward pass with the network's own gradients.
    3. R: a backward pass with relevance in place of the gradients.

    The method runs in the image's precision, also under autocast, because relevance is divided by sums that may nearly
    cancel. For the same reason two float32 computations may differ by 2e-4 of the map's maximum.

    Args:
        start_block: the first block that counts.
    """

    def __init__(self, start_block: int = 0, **shared: Any) -> None:
        super().__init__(**shared)
        self.start_block = check_count("start_block", start_block)

    def token_scores(self, classifier: Classifier, image: Tensor, target: Tensor) -> Tensor:
        """Steps 1 to 3; see the class."""
        check_uncompiled(classifier, self.title)
        image = image.detach().requires_grad_()
        with torch.autocast(image.device.type, enabled=False):
            with RelevanceTape() as tape:
                logits = classifier(image)
            attention = [*tape.attention(image.shape[0], classifier.name), *tape.pools]
            y_c = of_class(logits, target).sum()
            with tape.plain():
                G = gradients(y_c, attention, classifier)
            R = gradients(y_c, attention, classifier)
            found = [(g * r).clamp(min=0).mean(1) for g, r in zip(G, R, strict=True)]
            maps, pools = found[: len(tape.maps)], found[len(tape.maps) :]
            readout = self.readout(classifier, image.detach(), maps[-1].shape[-1], pools)
            gained = accumulate(_from_block(maps, self.start_block), readout)
            # The patches' own share, where it is not the same for all of them.
            return gained + (readout - readout.median(-1, keepdim=True).values)


def _from_block(maps: list[Tensor], start: int) -> list[Tensor]:
    if start >= len(maps):
        raise ValueError(f"Expected `start_block` to be one of the network's {len(maps)} blocks, but got {start}.")
    return maps[start:]
