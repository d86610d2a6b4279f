"""ZeroShot and Similarity: equal to what the networks themselves say, and AD/AG/AI by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from vision_cases import Embedder, seeded, tiny_open_clip

from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.evaluate.block import evaluate_block
from optcam_pl.metrics import AverageDrop, AverageGain, AverageIncrease
from optcam_pl.network.image_text import Similarity, ZeroShot, cosine_share

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"image_size": 32, "patch_size": 8}
WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", "a", "photo", "of", "cat", "dog", "bird", "drawing"]
TEXT = {**VISION, "vocab_size": len(WORDS), "max_position_embeddings": 12}
TEXT |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
NAMES = ["cat", "dog", "bird"]


def hub() -> Any:
    return pytest.importorskip("transformers")


def clip() -> Any:
    config = hub().CLIPConfig(text_config=TEXT, vision_config={**VISION, **SIZES}, projection_dim=12)
    return seeded(lambda: hub().CLIPModel(config)).eval()


def siglip() -> Any:
    network = seeded(lambda: hub().SiglipModel(hub().SiglipConfig(text_config=TEXT, vision_config={**VISION, **SIZES})))
    return network.eval()


def tokenizer() -> Any:
    """Words for tokens, with a beginning and an end."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>"}
    return hub().PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=["input_ids"], **special)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as transformers saves it."""
    {"clip": clip, "siglip": siglip}[request.param]().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    sides = {"height": 32, "width": 32}
    (tmp_path / "preprocessor_config.json").write_text(
        hub().CLIPImageProcessorPil(size=sides, crop_size=sides, do_convert_rgb=True).to_json_string()
        if hasattr(hub(), "CLIPImageProcessorPil")
        else hub().CLIPImageProcessor(size=sides, crop_size=sides).to_json_string()
    )
    return tmp_path


def test_a_folder_of_transformers_gives_the_networks_own_scores(folder: Path, image: Tensor) -> None:
    prompts = [f"a photo of a {name}" for name in NAMES]
    classifier = Classifier(f"transformers/{folder}", scores=ZeroShot(prompts))
    network = classifier.network
    tokens = tokenizer()(prompts, padding="max_length", max_length=12, return_tensors="pt")
    pixels = (image - classifier.mean.view(3, 1, 1)) / classifier.std.view(3, 1, 1)
    with torch.no_grad():
        wanted = network(pixel_values=pixels, **tokens).logits_per_image
        torch.testing.assert_close(classifier(image), wanted)
    is_clip = type(network).__name__ == "CLIPModel"
    assert classifier.link == ("softmax" if is_clip else "sigmoid")
    torch.testing.assert_close(classifier.probabilities(image), wanted.softmax(1) if is_clip else wanted.sigmoid())
    assert classifier.class_names == tuple(prompts)
    assert classifier.target_name(1) == "score of 'a photo of a dog'"
    assert classifier.input_size == (32, 32)
    layer = "encoder.layers.1.layer_norm1" if is_clip else "post_layernorm"
    assert classifier.target_layers == (f"vision_model.{layer}",)


@pytest.mark.parametrize("explainer", [GradCAM(), OptiCAM(max_iter=5)], ids=lambda e: e.title)
def test_ad_ag_ai_are_those_by_hand(folder: Path, image: Tensor, explainer: Any) -> None:
    classifier = Classifier(f"transformers/{folder}", scores=ZeroShot(NAMES))
    metrics = [AverageDrop(), AverageGain(), AverageIncrease()]
    result = evaluate_block(classifier, explainer, {"image": image}, "predicted", metrics)
    with torch.no_grad():
        text, link = _texts(classifier.network), torch.sigmoid
        if classifier.link == "softmax":
            link = lambda z: z.softmax(1)  # noqa: E731
        p = link(_by_hand(classifier, image, text))
        o = link(_by_hand(classifier, image * result.explanation.saliency, text))
    for i, row in enumerate(result.rows):
        c = int(p[i].argmax())
        before, after = float(p[i, c]), float(o[i, c])
        assert (row.target, row.p, row.o) == (c, pytest.approx(before, abs=1e-6), pytest.approx(after, abs=1e-6))
        assert row.scores["average_drop"] == pytest.approx(100 * max(0, before - after) / before, abs=1e-3)
        assert row.scores["average_gain"] == pytest.approx(100 * max(0, after - before) / (1 - before), abs=1e-3)
        assert row.scores["average_increase"] == (100.0 if after > before else 0.0)


def _texts(network: Any) -> Tensor:
    tokens = tokenizer()(NAMES, padding="max_length", max_length=12, return_tensors="pt")
    found = network.get_text_features(**tokens)
    found = found if isinstance(found, Tensor) else found.pooler_output
    return found / found.norm(dim=1, keepdim=True)


def _by_hand(classifier: Classifier, image: Tensor, text: Tensor) -> Tensor:
    network: Any = classifier.network
    found = network.get_image_features(
        pixel_values=(image - classifier.mean.view(3, 1, 1)) / classifier.std.view(3, 1, 1)
    )
    found = found if isinstance(found, Tensor) else found.pooler_output
    cosine = (found / found.norm(dim=1, keepdim=True)) @ text.T
    z: Tensor = network.logit_scale.exp() * cosine
    return z + network.logit_bias if hasattr(network, "logit_bias") else z


def test_open_clip_with_templates(image: Tensor) -> None:
    open_clip = pytest.importorskip("open_clip")
    network = tiny_open_clip().eval()
    scores = ZeroShot(["cat", "dog"], templates=["a photo of a {}.", "a drawing of a {}."])
    classifier = Classifier(network, mean=0, std=1, input_size=32, scores=scores)
    tokens = open_clip.get_tokenizer("ViT-B-32")
    with torch.no_grad():
        means = []
        for name in ("cat", "dog"):
            each = network.encode_text(tokens([f"a photo of a {name}.", f"a drawing of a {name}."]), normalize=True)
            means.append(F.normalize(each.mean(0), dim=0))
        wanted = network.logit_scale.exp() * network.encode_image(image, normalize=True) @ torch.stack(means).T
        torch.testing.assert_close(classifier(image), wanted)
    assert (classifier.link, classifier.num_classes) == ("softmax", 2)
    assert classifier.target_name(0) == "score of 'a photo of a cat.'"
    assert classifier.target_layers == ("visual.transformer.resblocks.1.ln_1",)
    assert not bool(OptiCAM(max_iter=2)(classifier, image, target="dog").degenerate.any())


def test_the_texts_are_embedded_once_and_again_after_the_weights_have_changed(image: Tensor) -> None:
    network, calls = clip(), []
    scores = ZeroShot(NAMES, tokenizer=lambda texts: calls.append(texts) or _ids(texts))  # type: ignore[func-returns-value]
    classifier = Classifier(network, mean=0, std=1, scores=scores)
    first = classifier(image)
    classifier(image)
    assert len(calls) == 1
    copied = copy.deepcopy(classifier)
    torch.testing.assert_close(copied(image), first)
    with torch.no_grad():
        network.text_projection.weight.mul_(-1)
    torch.testing.assert_close(classifier(image), -first)
    torch.testing.assert_close(copied(image), first)


def _ids(texts: list[str]) -> Tensor:
    found: Tensor = tokenizer()(texts, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    return found


def test_prompts_may_be_tokens(image: Tensor) -> None:
    network = siglip()
    words = Classifier(network, mean=0, std=1, scores=ZeroShot(NAMES, tokenizer=_ids))
    tokens = Classifier(network, mean=0, std=1, scores=ZeroShot(_ids(NAMES), names=NAMES))
    torch.testing.assert_close(words(image), tokens(image))
    assert words.class_names == tokens.class_names == tuple(NAMES)
    assert words.scores.settings()["tokenizer"] == f"{__name__}._ids"
    assert str(tokens.scores.settings()["prompts"]).startswith("int64 (3, 12)")


def test_bad_prompts_are_refused_in_a_sentence() -> None:
    for prompts, said in (
        ([], "to be a list of texts, one for each class, but got none"),
        ("cat", "but got one text"),
        (["cat", " "], "number 1 is empty"),
        (["cat", "cat"], "'cat' occurs twice"),
    ):
        with pytest.raises(ValueError, match=said):
            ZeroShot(prompts)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="to be texts, but number 0 is 3"):
        ZeroShot([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"to have \{\} once each, but got 'a cat'"):
        ZeroShot(["cat"], templates=["a cat"])
    with pytest.raises(ValueError, match="Expected `names` for 1 prompts, but got 2"):
        ZeroShot(["cat"], names=["a", "b"])


def test_a_network_without_texts_and_one_without_a_tokenizer(image: Tensor) -> None:
    with pytest.raises(RuntimeError, match="Expected an image-text network, as `scores` ZeroShot needs"):
        Classifier(seeded(Embedder), mean=0, std=1, scores=ZeroShot(["cat"]))(image)
    with pytest.raises(RuntimeError, match="Expected `tokenizer` of ZeroShot to be given, as CLIPModel comes from no"):
        Classifier(clip(), mean=0, std=1, scores=ZeroShot(["cat"]))(image)


# Similarity -----------------------------------------------------------------------------------------------------------


def embedder(scores: Similarity, **own: Any) -> Classifier:
    return Classifier(seeded(Embedder), mean=0.5, std=0.25, input_size=32, scores=scores, **own)


def test_the_cosine_to_vectors_and_to_images(image: Tensor, tmp_path: Path) -> None:
    network = seeded(Embedder)
    with torch.no_grad():
        u = network((image - 0.5) / 0.25)
        wanted = F.cosine_similarity(u[:, None], u[None], dim=2)
        torch.testing.assert_close(embedder(Similarity(u))(image), wanted)
        torch.testing.assert_close(embedder(Similarity(image))(image), wanted)
    paths = []
    for i, pixels in enumerate((image * 255).round().byte()):
        paths.append(str(tmp_path / f"reference {i}.png"))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(paths[-1])
    classifier = embedder(Similarity(paths))
    torch.testing.assert_close(classifier(image), wanted, atol=1e-3, rtol=1e-3)
    assert classifier.class_names == ("reference 0", "reference 1", "reference 2")
    assert classifier.target_name(2) == "similarity to reference 2"
    torch.testing.assert_close(classifier.probabilities(image), (1 + classifier(image)) / 2)
    named = classifier.scores.settings()
    assert named["references"] == ["reference 0.png", "reference 1.png", "reference 2.png"]
    assert str(named["pixels"]).startswith("float32 (3, 3, 32, 32)")
    assert "cosine_share" in str(classifier.describe()["link"])


def test_each_images_own_embedding(image: Tensor) -> None:
    classifier = embedder(Similarity("own"))
    result = evaluate_block(classifier, OptiCAM("features", max_iter=3), {"image": image}, "predicted", [AverageDrop()])
    assert [row.p for row in result.rows] == [pytest.approx(1.0)] * 3
    u = classifier.network((image - 0.5) / 0.25)
    v = classifier.network((image * result.explanation.saliency - 0.5) / 0.25)
    for row, cosine in zip(result.rows, F.cosine_similarity(u, v).tolist(), strict=True):
        assert row.o == pytest.approx((1 + cosine) / 2, abs=1e-5)
    assert result.target_name(0) == "similarity to the unmasked image"


def test_a_clip_network_embeds_images(image: Tensor) -> None:
    network = clip()
    classifier = Classifier(network, mean=0, std=1, scores=Similarity(image[:2]))
    assert classifier.input_size == (32, 32) or classifier.input_size == (224, 224)
    found = classifier(image)
    assert found.shape == (3, 2)
    assert found[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_bad_references_are_refused_in_a_sentence(image: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to be one at least, but got none"):
        Similarity([])
    with pytest.raises(ValueError, match="Expected `references` to be own, or a list of images, but got 'self'"):
        Similarity("self")
    with pytest.raises(FileNotFoundError, match="There is no image 'nowhere.png'"):
        Similarity(["nowhere.png"])
    with pytest.raises(ValueError, match=r"embeddings \(C, D\) or images \(C, 3, H, W\), but got the shape \(3,\)"):
        Similarity(torch.zeros(3))
    with pytest.raises(ValueError, match=r"Expected embeddings \(B, 7\), like the references of Similarity"):
        embedder(Similarity(torch.ones(2, 7)))(image)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="Cannot read the image"):
        embedder(Similarity([str(tmp_path / "a.png")]))
    assert cosine_share(torch.tensor(1.1)).item() == 1.0


def test_one_of_several_outputs_is_the_embedding(image: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = seeded(Embedder)

        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"logits": pixels.mean((2, 3)), "embedding": self.inner(pixels)}

    classifier = Classifier(Two(), mean=0, std=1, input_size=32, scores=Similarity(image, output="embedding"))
    assert classifier(image).diagonal().tolist() == [pytest.approx(1.0)] * 3


def test_scores_of_reference_images_belong_to_one_way_of_preparing_them(image: Tensor) -> None:
    scores = Similarity(image)
    first = embedder(scores)
    wanted = first(image)
    torch.testing.assert_close(embedder(scores)(image), wanted)  # prepared in the same way
    with pytest.raises(ValueError, match="Expected `scores` of its own for each classifier that prepares images"):
        Classifier(seeded(Embedder), mean=0.4, std=0.25, input_size=32, scores=scores)
    torch.testing.assert_close(first(image), wanted)
