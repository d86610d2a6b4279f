"""Image classifiers of Hugging Face's transformers, as networks by name (here: of a folder) and as modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import make_tree

from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.cli import main
from optcam_pl.network.layers import heads

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's protobuf classes, torch's writer

TOKENS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
TOKENS |= {"image_size": 32, "patch_size": 8, "num_labels": 3}
NAMES = {0: "ant", 1: "bee", 2: "cat"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ViT with random weights, as `save_pretrained` stores it."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**TOKENS, id2label=NAMES, initializer_range=0.5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    options: dict[str, Any] = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2] * 3,
    }
    transformers.ViTImageProcessor(resample=3, **options).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_a_network_comes_with_its_preprocessing_names_layer_and_tokens(folder: Path) -> None:
    classifier = Classifier(f"transformers/{folder}")
    assert classifier.class_names == ("ant", "bee", "cat")
    assert (classifier.input_size, classifier.interpolation, classifier.crop_fraction) == ((32, 32), "bicubic", 1.0)
    assert classifier.mean.tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert classifier.target_layers[0].endswith(".1.layernorm_before")
    assert classifier.prefix_tokens == 1
    image = torch.rand(2, 3, 32, 32)
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    pixels = processor(list(image), do_rescale=False, do_resize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(classifier(image), model(pixels).logits)
    maps = OptiCAM(max_iter=2)(classifier, image)
    assert maps.saliency.shape == (2, 1, 32, 32)
    assert not bool(maps.degenerate.any())


def test_random_weights_files_and_new_heads(folder: Path, tmp_path: Path) -> None:
    name = f"transformers/{folder}"
    stored, fresh = Classifier(name), Classifier(name, None)
    assert fresh.weight_hash() != stored.weight_hash()
    with pytest.warns(UserWarning, match=r"gets a new, random head for 5 classes"):
        tuned = Classifier(name, num_classes=5)
    assert (tuned.num_classes, tuned.class_names) == (5, None)
    body, own = (dict(c.network.vit.named_parameters()) for c in (tuned, stored))
    assert all(torch.equal(value, own[key]) for key, value in body.items())
    torch.save(tuned.network.state_dict(), tmp_path / "five.pth")
    assert Classifier(name, tmp_path / "five.pth").num_classes == 5
    with pytest.raises(RuntimeError, match="Could not get the pretrained weights of transformers/.*nowhere"):
        Classifier(f"transformers/{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("kind", "options", "layer", "prefix"),
    [
        ("DeiT", TOKENS, ".1.layernorm_before", 2),
        ("Dinov2", TOKENS, ".1.norm1", 1),
        ("Swin", {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2],
                  "window_size": 4, "num_labels": 3}, "swin.layernorm", 0),
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}, "stages.1", 0),
        ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 3}, "stages.1", 0),
    ],
)  # fmt: skip
def test_families_are_explained_at_a_layer_with_a_grid(kind: str, options: Any, layer: str, prefix: int) -> None:
    config = getattr(transformers, f"{kind}Config")(**options)
    config.initializer_range = 0.5
    network = getattr(transformers, f"{kind}ForImageClassification")(config)
    classifier = Classifier(network, input_size=32)
    assert classifier.target_layers[0].endswith(layer)
    assert classifier.prefix_tokens == prefix
    assert [head.out_features for head in heads(network)] == [3]
    maps = GradCAM()(classifier, torch.rand(2, 3, 32, 32))
    assert not bool(maps.degenerate.any())


def test_it_is_fine_tuned_and_explained_from_its_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_tree(Path("tree"), list(NAMES.values()), {"train": 6, "val": 3, "test": 3})
    common = ["--data=ImageFolder", f"--data.root={root}", "--data.split=test", "--data.batch_size=3"]
    common += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--threads=1"]
    network = f"--model.classifier.network=transformers/{folder}"
    fit = ["fit", "--model=ClassificationTask", network, "--model.head_epochs=1", "--model.epochs=1"]
    assert main([*fit, *common, "--run_dir=fit"]) == 0
    explain = ["test", "--model=SaliencyTask", "--model.explainer=GradCAM"]
    checkpoint = "--model.classifier.weights=fit/checkpoints/last.ckpt"
    assert main([*explain, *common, checkpoint, "--run_dir=test"]) == 0


@pytest.mark.parametrize(
    ("processor", "options"),
    [
        ("EfficientNetImageProcessor", {"include_top": True}),  # divides by the standard deviation twice
        ("EfficientNetImageProcessor", {"include_top": False}),
        ("MobileViTImageProcessor", {"do_flip_channel_order": False}),  # states a mean that it does not use
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_rescale": True, "rescale_factor": 1 / 127.5}),
    ],
)
def test_the_normalization_is_what_the_processor_does(folder: Path, processor: str, options: Any) -> None:
    size = {"size": {"height": 32, "width": 32}, "do_center_crop": False, "image_mean": [0.4, 0.5, 0.6]}
    made = getattr(transformers, processor)(**size, image_std=[0.2, 0.3, 0.4], **options)
    made.save_pretrained(folder)
    classifier = Classifier(f"transformers/{folder}")
    image = (torch.rand(2, 3, 32, 32) * 255).byte()
    pixels = made(list(image), do_resize=False, return_tensors="pt")["pixel_values"]
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(classifier(image.float() / 255), model(pixels).logits, atol=2e-4, rtol=1e-4)


def test_a_processor_that_turns_the_channels_round_is_refused(folder: Path) -> None:
    size = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    transformers.MobileViTImageProcessor(**size, do_flip_channel_order=True).save_pretrained(folder)
    with pytest.raises(ValueError, match="red, green and blue in this order, but its MobileViTImageProcessor turns"):
        Classifier(f"transformers/{folder}")


def test_register_tokens_are_told_from_patches_of_an_image_of_any_shape() -> None:
    options = {**TOKENS, "num_register_tokens": 4, "patch_size": 14, "image_size": 28}
    network = transformers.Dinov2WithRegistersForImageClassification(transformers.Dinov2WithRegistersConfig(**options))
    for size in ((56, 84), (96, 144), (60, 98), (112, 70)):
        grid = (size[0] // 14, size[1] // 14)
        classifier = Classifier(network, mean=0, std=1, input_size=size)
        tokens = torch.zeros(1, grid[0] * grid[1] + 5, 24)
        assert classifier.to_grid(tokens, size, "dinov2_with_registers.encoder.layer.1.norm1").shape[2:] == grid
