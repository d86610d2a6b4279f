"""What the head of a vision transformer reads: found in a pass, whatever the network is called or wrapped in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optcam_pl.explainers import TIBAV, AttentionRollout, FullGrad, RawAttention
from optcam_pl.explainers.attention import AttentionExplainer
from optcam_pl.explainers.readout import find_readout
from optcam_pl.explainers.relevance import AttentionTape
from optcam_pl.network.classifier import Classifier

METHODS = [RawAttention(), AttentionRollout(), TIBAV()]
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CLASS = [1.0] + 16 * [0.0]
MEAN = [0.0] + 16 * [1 / 16]
BOTH = [0.5] + 16 * [1 / 32]
FIXED = torch.arange(1.0, 17)


def vit(**options: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return spread(VisionTransformer(**{**SIZES, **options}))


def spread(network: nn.Module) -> nn.Module:
    """Weights that make tokens differ."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return network.eval()


class Own(nn.Module):
    """A class token and 16 patches of 24 channels, two blocks, and a head by hand."""

    def __init__(self, read: Callable[[Own, Tensor], Tensor], mixes: bool = False, width: int = 24) -> None:
        super().__init__()
        self.read, self.mixes = read, mixes
        self.patches, self.token = nn.Conv2d(3, 24, 8, stride=8), nn.Parameter(torch.randn(1, 1, 24))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(24, 2, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head, self.gate = nn.LayerNorm(24), nn.Linear(width, 5), nn.Linear(24, 1)
        self.pool, self.along = nn.MultiheadAttention(24, 2, batch_first=True), nn.Conv1d(24, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.blocks[0](torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))
        if self.mixes:
            tokens = tokens + self.along(tokens.transpose(1, 2)).transpose(1, 2)
        return self.head(self.read(self, self.blocks[1](tokens)))


def weights_of(network: nn.Module, size: int = 32) -> tuple[list[float], int | None]:
    found = find_readout(Classifier(network, input_size=size), torch.rand(1, 3, size, size), 17)
    return found.weights.tolist(), found.pool


@pytest.mark.parametrize(
    ("read", "width", "expected"),
    [
        (lambda m, t: m.norm(t[:, 0]), 24, CLASS),
        (lambda m, t: m.norm(t)[:, 0], 24, CLASS),
        (lambda m, t: m.norm(t[:, 1:]).mean(1), 24, MEAN),
        (lambda m, t: m.norm(t)[:, 1:].mean(1), 24, MEAN),
        (lambda m, t: m.norm(t[:, 1:].mean(1)), 24, MEAN),
        (lambda m, t: F.adaptive_avg_pool1d(m.norm(t)[:, 1:].transpose(1, 2), 1).flatten(1), 24, MEAN),
        (lambda m, t: F.adaptive_avg_pool2d(t[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), 1).flatten(1), 24, MEAN),
        (lambda m, t: m.norm(t).mean(1), 24, 17 * [1 / 17]),
        (lambda m, t: torch.cat([m.norm(t[:, 0]), m.norm(t[:, 1:]).mean(1)], 1), 48, BOTH),
        (lambda m, t: t[:, 0] + m.norm(t)[:, 1:].mean(1), 24, BOTH),
        (lambda m, t: (m.norm(t[:, 1:]) * FIXED.unsqueeze(1)).sum(1), 24, [0.0, *(FIXED / FIXED.sum()).tolist()]),
        (lambda m, t: torch.einsum("n,bnd->bd", FIXED, t[:, 1:]), 24, [0.0, *(FIXED / FIXED.sum()).tolist()]),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_head_by_hand_reads_is_found(read, width, expected, wrapped):
    network = Own(read, width=width).eval()
    found, pool = weights_of(nn.Sequential(nn.Identity(), network) if wrapped else network)
    assert found == pytest.approx(expected, abs=1e-5)
    assert pool is None


@pytest.mark.parametrize(
    ("read", "width", "why"),
    [
        (lambda m, t: t.amax(1), 24, "differ from token to token"),
        (lambda m, t: t[:, 1:].amax(1) + t[:, 1:].mean(1), 24, "differ from token to token"),
        (lambda m, t: t.flatten(1), 17 * 24, "differ from token to token"),
        (lambda m, t: t[:, 1:].std(1), 24, "differ from token to token"),
        (lambda m, t: (t * m.gate(t).softmax(1)).sum(1), 24, "mixes them in another way too"),
        (lambda m, t: t[:, 0] + m.pool(t[:, :1], t, t)[0][:, 0], 24, "an attention pooling and in another way too"),
        (lambda m, t: m.norm(t[:, 0]).detach(), 24, "have none: a part of it runs under torch.no_grad"),
    ],
)
@pytest.mark.parametrize("explainer", METHODS[:2], ids=lambda explainer: type(explainer).__name__)
def test_a_readout_that_cannot_be_told_is_refused_in_words(explainer, read, width, why):
    classifier = Classifier(Own(read, width=width).eval(), input_size=32, target_layer="norm")
    with pytest.raises(ValueError, match=why):
        explainer(classifier, torch.rand(1, 3, 32, 32), 0)
    with pytest.raises(ValueError, match=why):
        explainer.check(classifier)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, CLASS),
        ({"global_pool": "avg"}, MEAN),
        ({"global_pool": "avg", "fc_norm": False}, MEAN),
        ({"global_pool": "avg", "pool_include_prefix": True}, 17 * [1 / 17]),
        ({"global_pool": "max"}, "differ from token to token"),
        ({"global_pool": "avgmax"}, "differ from token to token"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_timms_pools(options, expected, wrapped):
    network = vit(**options)
    network = nn.Sequential(nn.Identity(), network) if wrapped else network
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            weights_of(network)
    else:
        assert weights_of(network)[0] == pytest.approx(expected)


def test_a_changed_head_is_read_again():
    network = vit()
    assert weights_of(network)[0] == CLASS
    network.global_pool = "avg"
    assert weights_of(network)[0] == pytest.approx(MEAN)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ViTForImageClassification", CLASS),
        ("BeitForImageClassification", MEAN),
        ("Dinov2ForImageClassification", BOTH),
        ("DeiTForImageClassification", [1.0] + 17 * [0.0]),
        ("DeiTForImageClassificationWithTeacher", [0.5, 0.5] + 16 * [0.0]),
        ("SiglipForImageClassification", 16 * [1 / 16]),
    ],
)
@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_heads_of_transformers(kind, expected, how):
    transformers = pytest.importorskip("transformers")
    tokens = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    tokens |= {"image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{kind.partition('For')[0]}Config")
    if kind.startswith("Siglip"):
        text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
        config = config(vision_config=tokens, text_config=text | {"bos_token_id": 1, "eos_token_id": 2})
    else:
        config = config(**tokens)
    config.num_labels, config.initializer_range, config._attn_implementation = 5, 0.3, how
    classifier, image = Classifier(getattr(transformers, kind)(config).eval(), input_size=32), torch.rand(2, 3, 32, 32)
    maps, _ = AttentionExplainer.attention(classifier, image)
    assert len(maps) == 2
    readout = AttentionExplainer.readout(classifier, image, maps[-1].shape[-1])
    assert readout.tolist() == pytest.approx(expected)
    ours = RawAttention().raw_map(classifier, image, torch.zeros(2, dtype=torch.int64)).flatten(1)
    torch.testing.assert_close(ours, (torch.tensor(expected) @ maps[-1])[:, -16:])
    for explainer in METHODS:
        assert not explainer(classifier, image, 1).degenerate.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: vit(class_token=False, global_pool="map"),
        lambda: vit(global_pool="map"),  # of the patches, beside a class token
        lambda: Own(lambda m, t: m.pool(m.token.expand(len(t), -1, -1), t, t)[0][:, 0]).eval(),
    ],
)
def test_pooled_by_attention_its_map_says_how_much_of_each_token_is_read(make):
    classifier, image = Classifier(make(), input_size=32), torch.rand(2, 3, 32, 32)
    target = torch.tensor([0, 3])
    with torch.no_grad(), AttentionTape() as tape:
        classifier(image)
    first, last = (A.mean(1) for A in tape.attention(2, "vit"))
    pool = F.pad(tape.pools[0].mean(1), (first.shape[-1] - tape.pools[0].shape[-1], 0))
    raw = RawAttention().raw_map(classifier, image, target).flatten(1)
    torch.testing.assert_close(raw, (pool @ last)[:, 0, -16:])
    mixed = (last + torch.eye(len(last[0]))) @ (first + torch.eye(len(last[0]))) / 4
    ours = AttentionRollout().raw_map(classifier, image, target).flatten(1)
    torch.testing.assert_close(ours, (pool @ mixed)[:, 0, -16:])
    assert not TIBAV()(classifier, image, target).degenerate.any()


# What is not seen ---------------------------------------------------------------------------------------------------


def test_tokens_that_are_mixed_otherwise_are_noticed():
    classifier = Classifier(Own(lambda m, t: t[:, 0], mixes=True).eval(), input_size=32)
    for explainer in METHODS:  # TIBAV asks for its rule first
        with pytest.raises(
            ValueError, match="mixes them in another way too|no relevance rule for the operation 'conv1d'"
        ):
            explainer(classifier, torch.rand(1, 3, 32, 32), 0)


class Unseen(nn.Module):
    """Attention without a map of four dimensions."""

    def forward(self, x: Tensor, **_kwargs: object) -> Tensor:
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


def test_a_block_whose_attention_is_not_seen_is_noticed():
    network = vit()
    network.blocks[1].attn = Unseen().eval()
    for explainer in METHODS:
        with pytest.raises(ValueError, match="mixes them in another way too"):
            explainer(Classifier(network, input_size=32), torch.rand(1, 3, 32, 32), 0)


def test_gradient_checkpointing_is_refused_in_words():
    network = vit()
    network.set_grad_checkpointing(True)
    for explainer in METHODS:
        # Before torch 2.7, checkpoints also call operations of their own.
        with pytest.raises(ValueError, match=r"set_grad_checkpointing\(False\)|no relevance rule"):
            explainer(Classifier(network, input_size=32), torch.rand(1, 3, 32, 32), 0)


@pytest.mark.parametrize("explainer", [*METHODS, FullGrad()], ids=lambda explainer: type(explainer).__name__)
def test_a_compiled_part_is_looked_into_all_the_same(explainer):
    network, image = vit(), torch.rand(1, 3, 32, 32)
    expected = explainer(Classifier(network, input_size=32), image, 0).saliency
    network.blocks[1].compile(backend="eager")  # nothing is compiled before the first call
    torch.testing.assert_close(explainer(Classifier(network, input_size=32), image, 0).saliency, expected)


@pytest.mark.parametrize("explainer", [*METHODS, FullGrad()], ids=lambda explainer: type(explainer).__name__)
def test_what_is_compiled_later_is_refused_in_words(explainer):
    network = vit()
    classifier = Classifier(network, input_size=32)
    network.blocks[1].compile(backend="eager")
    with pytest.raises(ValueError, match=r"blocks\.1 of VisionTransformer is under torch\.compile"):
        explainer(classifier, torch.rand(1, 3, 32, 32), 0)


def test_tokens_before_images():
    class Turned(Own):
        def __init__(self) -> None:
            super().__init__(lambda m, t: m.norm(t).mean(0))
            for block in self.blocks:
                block.self_attn.batch_first = False

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).permute(2, 0, 1)
            return self.head(self.read(self, self.blocks[1](self.blocks[0](tokens))))

    classifier, image = Classifier(Turned().eval(), input_size=32), torch.rand(3, 3, 32, 32)
    maps, _ = AttentionExplainer.attention(classifier, image)
    assert maps[-1].shape == (3, 16, 16)
    assert AttentionExplainer.readout(classifier, image, 16).tolist() == pytest.approx(16 * [1 / 16])
