"""Attention methods: parity with stored values, every kind of vision transformer, relevance rules, no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from explainer_cases import MEAN, STD, VIT_LAYER, leaves_no_trace, stored_case, stored_values, tiny_cnn, tiny_vit
from torch import Tensor, nn

from optcam_pl.explainers import TIBAV, AttentionRollout, RawAttention
from optcam_pl.explainers.attention import AttentionExplainer, accumulate, rollout
from optcam_pl.explainers.relevance import AttentionTape, RelevanceTape, add_rule, linear_rule, matmul_rule, mean_rule
from optcam_pl.network.classifier import Classifier

METHODS = [RawAttention(), AttentionRollout(), TIBAV()]
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def timm_vit(fused: bool = True, **options: object) -> Classifier:
    from timm.models.vision_transformer import VisionTransformer

    return tiny(VisionTransformer(**{**SIZES, **options}), fused)


def distilled_deit() -> Classifier:
    from timm.models.deit import VisionTransformerDistilled

    return tiny(VisionTransformerDistilled(**SIZES))


def torchvision_vit() -> Classifier:
    from torchvision.models import VisionTransformer

    return tiny(VisionTransformer(32, 8, 2, 3, 24, 96, num_classes=5))


def swin() -> Classifier:
    from timm.models.swin_transformer import SwinTransformer

    network = SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
    return Classifier(network, input_size=32)


def xcit() -> Classifier:
    from timm.models.xcit import Xcit

    return Classifier(Xcit(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2), input_size=32)


def convit() -> Classifier:
    from timm.models.convit import ConVit

    network = ConVit(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, local_up_to_layer=1)
    return Classifier(network, input_size=32)


def tiny(network: nn.Module, fused: bool = True) -> Classifier:
    """Weights that make attention and answers differ; fused attention on or off."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
        if type(module).__name__ == "Attention":
            module.fused_attn = fused
    return Classifier(network, mean=MEAN, std=STD, input_size=32)


TRANSFORMERS: dict[str, Callable[[], Classifier]] = {
    "timm": timm_vit,
    "timm unfused": lambda: timm_vit(fused=False),
    "torchvision": torchvision_vit,
    "distilled": distilled_deit,
    "registers": lambda: timm_vit(reg_tokens=4),
    "no class token": lambda: timm_vit(class_token=False, global_pool="avg"),
    "pooled": lambda: timm_vit(global_pool="avg"),
    "pooled by attention": lambda: timm_vit(class_token=False, global_pool="map"),
    "layer scale and qk norm": lambda: timm_vit(init_values=0.5, qk_norm=True),
}


# Parity -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("explainer", "key"),
    [
        (RawAttention(), "last_attn_cls_mean"),
        (AttentionRollout(), "rollout_start0"),
        (AttentionRollout(), "rollout_abnar_zuidema"),
        (AttentionRollout(start_block=2), "rollout_start2"),
    ],
)
def test_attention_and_rollout_are_those_of_the_authors(golden, explainer, key, fused):
    classifier, image, target = stored_case(golden, "vit", VIT_LAYER)
    for block in classifier.network.blocks:
        block.attn.fused_attn = fused
    ours = explainer.raw_map(classifier, image, target).flatten(1)
    torch.testing.assert_close(ours, stored_values(golden("vit_attention.npz"))[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("start", "key"), [(0, "ta"), (1, "ta_start1")])
def test_tibav_is_that_of_its_authors(golden, start, key):
    classifier, image, target = stored_case(golden, "vit", VIT_LAYER)
    ours = TIBAV(start).raw_map(classifier, image, target).flatten(1)
    theirs = stored_values(golden("vit_attention.npz"))[key]
    scale = theirs.amax(1, keepdim=True)
    torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-4, rtol=0)


def test_tibav_in_float64_is_that_of_its_authors(golden):
    classifier, image, target = stored_case(golden, "vit", VIT_LAYER)
    classifier.double()
    ours = TIBAV().raw_map(classifier, image.double(), target).flatten(1)
    theirs = stored_values(golden("vit_attention.npz"))["ta_f64"]
    scale = theirs.amax(1, keepdim=True)
    torch.testing.assert_close(ours / scale, theirs / scale, atol=2e-4, rtol=0)


def test_attention_its_gradient_and_its_relevance_are_those_of_the_authors(golden):
    classifier, image, target = stored_case(golden, "vit", VIT_LAYER)
    stored = stored_values(golden("vit_attention.npz"))
    image = image[:1].requires_grad_()
    found = {}
    for name, tape in (("grad", AttentionTape()), ("relevance", RelevanceTape())):
        with tape:
            y_c = classifier(image)[0, target[0]]
        maps = tape.attention(1, "vit")
        torch.testing.assert_close(torch.cat(maps), stored["attn_image0"], atol=1e-5, rtol=0)
        found[name] = torch.cat(torch.autograd.grad(y_c, maps))
    for name, ours in found.items():
        theirs = stored[f"attn_{name}_image0"]
        torch.testing.assert_close(ours, theirs, atol=2e-4 * float(theirs.abs().max()), rtol=0)


# Every kind of transformer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: type(explainer).__name__)
def test_a_map_says_something_alone_or_in_company(explainer, name):
    classifier, image, target = TRANSFORMERS[name](), torch.rand(3, 3, 32, 32), torch.tensor([0, 4, 2])
    with leaves_no_trace(classifier):
        explanation = explainer(classifier, image, target)
    assert not explanation.degenerate.any()
    assert explainer.raw_map(classifier, image, target).shape == (3, 1, 4, 4)
    others = torch.cat([image[:1], torch.rand(2, 3, 32, 32)])
    assert torch.equal(explainer(classifier, others, target).saliency[0], explanation.saliency[0])
    # Relevance is divided by sums that nearly cancel, which tells in float32 (the authors' own values: 2e-4).
    alone = explainer(classifier, image[:1], target[:1])
    atol = 2e-4 if isinstance(explainer, TIBAV) else 1e-5
    torch.testing.assert_close(alone.saliency, explanation.saliency[:1], atol=atol, rtol=0)
    wide, exact = classifier.double(), image.double()
    torch.testing.assert_close(
        explainer(wide, exact[:1], target[:1]).saliency, explainer(wide, exact, target).saliency[:1], atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("name", ["timm", "timm unfused", "torchvision", "distilled", "registers"])
def test_recorded_attention_is_softmax_of_q_k_and_the_answer_stays_the_same(name):
    classifier, image = TRANSFORMERS[name](), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = classifier(image)
        with AttentionTape() as tape:
            logits = classifier(image)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        # Independently: from the input of the last attention module.
        if name == "torchvision":
            block = classifier.network.encoder.layers[-1]
            hooked = hook_input(classifier, image, block.self_attention)
            _, last = block.self_attention(hooked, hooked, hooked, need_weights=True, average_attn_weights=False)
        else:
            attention = classifier.network.blocks[-1].attn
            qkv = attention.qkv(hook_input(classifier, image, attention))
            q, k, _ = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
            last = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
    torch.testing.assert_close(tape.attention(2, name)[-1], last, atol=1e-6, rtol=1e-5)


def hook_input(classifier: Classifier, image: Tensor, module: nn.Module) -> Tensor:
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    classifier(image)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: type(explainer).__name__)
def test_fused_attention_makes_no_difference(explainer):
    image, target = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 2])
    classifier = timm_vit().double()
    fused = explainer(classifier, image, target).saliency
    for block in classifier.network.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(explainer(classifier, image, target).saliency, fused, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("name", "readers"),
    [("timm", [0]), ("registers", [0]), ("distilled", [0, 1]), ("torchvision", [0]), ("pooled", list(range(1, 17)))],
)
def test_raw_attention_is_that_of_the_tokens_that_the_head_reads(name, readers):
    classifier, image = TRANSFORMERS[name](), torch.rand(2, 3, 32, 32)
    with torch.no_grad(), AttentionTape() as tape:
        classifier(image)
    last = tape.attention(2, name)[-1].mean(1)
    expected = last[:, readers].mean(1)[:, classifier.prefix_tokens :]
    ours = RawAttention().raw_map(classifier, image, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(ours.flatten(1), expected)


@pytest.mark.parametrize("name", ["timm", "registers", "distilled", "torchvision", "pooled"])
def test_the_head_reads_the_tokens_whose_attention_the_answer_depends_on(name):
    classifier, image = TRANSFORMERS[name](), torch.rand(1, 3, 32, 32, requires_grad=True)
    with AttentionTape() as tape:
        y_c = classifier(image)[0, 1]
    last = tape.attention(1, name)[-1]
    rows = torch.autograd.grad(y_c, last)[0].abs().amax((0, 1, 3)) > 0
    assert torch.equal(rows, AttentionExplainer.readout(classifier, image, last.shape[-1]) > 0)


def test_an_own_transformer_without_a_known_family_is_explained():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.layer, self.head = nn.Conv2d(3, 16, 4, stride=4), layer, nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.layer(tokens).mean(1))

    classifier = Classifier(Own(), target_layer="layer.norm1", input_size=16)
    for explainer in METHODS:
        assert not explainer(classifier, torch.rand(2, 3, 16, 16), 1).degenerate.any()


def test_rotary_positions_and_gates_have_relevance():
    from timm.models.eva import Eva

    network = Eva(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, swiglu_mlp=True,
        use_rot_pos_emb=True, use_abs_pos_emb=False,
    )  # fmt: skip
    for explainer in METHODS:
        assert not explainer(tiny(network), torch.rand(2, 3, 32, 32), 1).degenerate.any()


# Behavior ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: type(explainer).__name__)
def test_the_callers_grad_mode_makes_no_difference(explainer, mode):
    classifier, image = timm_vit(), torch.rand(2, 3, 32, 32)
    expected = explainer(classifier, image, 1).saliency
    with mode():
        assert torch.equal(explainer(classifier, image.clone(), 1).saliency, expected)


@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: type(explainer).__name__)
def test_under_autocast_a_map_is_float32_and_close(explainer):
    classifier, image = timm_vit(), torch.rand(2, 3, 32, 32)
    expected = explainer(classifier, image, 1).saliency
    with torch.autocast("cpu", torch.bfloat16):
        saliency = explainer(classifier, image, 1).saliency
    assert saliency.dtype == torch.float32
    torch.testing.assert_close(saliency, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: type(explainer).__name__)
def test_nothing_is_left_when_the_network_fails_in_the_middle(explainer):
    classifier, image = timm_vit(), torch.rand(1, 3, 32, 32)
    expected = explainer(classifier, image, 1).saliency

    def fail(_module: nn.Module, _args: object) -> None:
        raise RuntimeError("in the middle")

    handle = classifier.network.blocks[1].register_forward_pre_hook(fail)
    with leaves_no_trace(classifier), pytest.raises(RuntimeError, match="in the middle"):
        explainer(classifier, image, 1)
    handle.remove()
    assert torch.overrides._get_current_function_mode() is None
    assert torch.equal(explainer(classifier, image, 1).saliency, expected)


def test_tibav_explains_the_class_and_the_others_do_not_ask_for_it():
    classifier, image = timm_vit(), torch.rand(1, 3, 32, 32)
    maps = {type(e): [e(classifier, image, c).saliency for c in (0, 1)] for e in METHODS}
    assert torch.equal(*maps[RawAttention])
    assert torch.equal(*maps[AttentionRollout])
    assert not torch.allclose(*maps[TIBAV])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (tiny_cnn, "calls no self-attention"),
        (swin, "attends within windows"),
        (xcit, "attends over channels"),
        (convit, "in another way than by softmax"),
    ],
)
@pytest.mark.parametrize("explainer", METHODS, ids=lambda explainer: type(explainer).__name__)
def test_networks_without_attention_over_the_image_are_refused_in_words(explainer, make, why):
    classifier = make()
    image = torch.rand(2, 3, *classifier.input_size)
    classifier(image)  # ConViT keeps its positions from the first pass on
    with leaves_no_trace(classifier), pytest.raises(ValueError, match=why):
        explainer(classifier, image, 0)


def test_tibav_refuses_an_operation_without_a_rule():
    classifier = tiny_vit()
    classifier.network.head = nn.Sequential(nn.Linear(12, 5), nn.Softplus()).eval()
    with pytest.raises(ValueError, match="no relevance rule for the operation 'softplus'"):
        TIBAV()(classifier, torch.rand(1, 3, 16, 16), 0)


def test_settings_out_of_range_are_told_in_words():
    with pytest.raises(ValueError, match="`start_block` to be zero or a positive integer"):
        TIBAV(start_block=-1)
    with pytest.raises(ValueError, match="`head_fusion` to be one of mean, max, min"):
        AttentionRollout(head_fusion="median")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`block` to be an integer"):
        RawAttention(block=1.5)  # type: ignore[arg-type]
    image = torch.rand(1, 3, 16, 16)
    for explainer in (TIBAV(2), AttentionRollout(2)):
        with pytest.raises(ValueError, match="2 blocks, but got 2"):
            explainer(tiny_vit(), image, 0)
    with pytest.raises(ValueError, match="`block` to be one of"):
        RawAttention(-3)(tiny_vit(), image, 0)


# Maths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_is_the_product_of_normalized_matrices(fusion):
    classifier, image = timm_vit(depth=3), torch.rand(2, 3, 32, 32)
    with torch.no_grad(), AttentionTape() as tape:
        classifier(image)
    product = torch.eye(17)
    for attention in tape.attention(2, "vit"):
        fused = attention.mean(1) if fusion == "mean" else getattr(attention, f"a{fusion}")(1)
        mixed = fused + torch.eye(17)
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    ours = AttentionRollout(head_fusion=fusion).raw_map(classifier, image, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(ours.flatten(1), product[:, 0, 1:])


def test_accumulated_relevance_is_the_product_less_the_identity():
    maps, readout = list(torch.rand(3, 2, 5, 5, dtype=torch.float64)), torch.rand(5, dtype=torch.float64)
    product = torch.eye(5, dtype=torch.float64)
    for A in maps:
        product = (A + torch.eye(5)) @ product
    torch.testing.assert_close(accumulate(maps, readout), readout @ product - readout)


def test_relevance_far_below_one_is_not_lost():
    maps = [1e-20 * torch.rand(1, 5, 5) for _ in range(2)]
    assert accumulate(maps, torch.full((5,), 0.2)).unique().numel() == 5
    assert rollout(maps, torch.full((5,), 0.2)).unique().numel() == 1


def test_rules_keep_the_sum_of_relevance():
    x, weight, R = torch.rand(2, 4, 6), torch.rand(3, 6) - 0.5, torch.rand(2, 4, 3)
    shares = {
        "linear": (linear_rule(R, x, x, weight), R),
        "add": (add_rule(R, 2 * R + 1, R, R + 1), R),
        "matmul": (matmul_rule(R, x @ weight.abs().T, x, weight.abs().T.expand(2, 6, 3)), R),
        "mean": (mean_rule(R[:, 0], R.mean(1), R), R[:, 0]),
    }
    for name, (parts, given) in shares.items():
        total = torch.stack([part.flatten(1).sum(1) for part in parts]).sum(0)
        torch.testing.assert_close(total, given.flatten(1).sum(1), msg=name)


def test_the_relevance_of_an_addition_is_shared_within_each_image():
    a, b, R = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.rand(3, 2, 4)
    together = add_rule(R, a + b, a, b)
    for i in range(3):
        alone = add_rule(*(t[i : i + 1] for t in (R, a + b, a, b)))
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i : i + 1], theirs)


def test_masked_attention_is_recorded_with_its_mask():
    q = torch.randn(1, 2, 3, 4)
    mask = torch.tensor([[True, False, True]]).expand(3, 3)
    with AttentionTape() as tape:
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, q, q, attn_mask=mask))
    assert (tape.maps[0][..., 1] == 0).all()
    with pytest.raises(ValueError, match="without causal mask"), AttentionTape():
        F.scaled_dot_product_attention(q, q, q, is_causal=True)


def test_one_forward_pass_serves_gradients_and_relevance():
    classifier, image, target = timm_vit(), torch.rand(2, 3, 32, 32).requires_grad_(), torch.tensor([0, 3])
    found = {}
    for name, tape in (("gradient", AttentionTape()), ("relevance", RelevanceTape()), ("both", RelevanceTape())):
        with tape:
            logits = classifier(image)
        y_c = logits.gather(1, target[:, None]).sum()
        if name == "both":
            with tape.plain():
                assert_equal(torch.autograd.grad(y_c, tape.maps, retain_graph=True), found["gradient"])
        found[name] = torch.autograd.grad(y_c, tape.maps)
    assert_equal(found["both"], found["relevance"])
    TIBAV().token_scores(classifier, image, target)  # finds the readout
    passes: list[int] = []
    classifier.network.register_forward_hook(lambda *_: passes.append(1))
    TIBAV().token_scores(classifier, image, target)
    assert len(passes) == 1


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
