"""A photograph in, a picture out: `explain`, `compare`, `Classifier.preprocess`, and the pictures of an explanation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explainer_cases import tiny_cnn
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

import optcam_pl
from optcam_pl.data import ImageFolder, ImageReadError
from optcam_pl.explainers import Explainer, Explanation, FakeCAM, GradCAM, OptiCAM
from optcam_pl.figures import Tile, contact_sheet, photo_overlay
from optcam_pl.network.scores import References, Regression, Scores
from optcam_pl.photos import Photo, Preprocessing, prepare

NAMES = ["tabby", "tiger cat", "Egyptian cat", "cougar", "lynx"]


@pytest.fixture
def classifier() -> optcam_pl.Classifier:
    network = tiny_cnn()
    return optcam_pl.Classifier(network.network, mean=0, std=1, input_size=16, class_names=NAMES)


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 30))


class Given(Explainer):
    """Returns a given map (H,W)."""

    def __init__(self, saliency: Tensor) -> None:
        super().__init__()
        self.saliency = saliency

    def settings(self) -> dict[str, object]:
        return {}

    def explain(self, classifier: optcam_pl.Classifier, image: Tensor, target: Tensor) -> Explanation:
        maps = self.saliency.expand(len(image), 1, -1, -1)
        return Explanation(maps, target, torch.zeros_like(target, dtype=torch.bool))


def spot(rows: slice, columns: slice) -> Given:
    saliency = torch.zeros(16, 16)
    saliency[rows, columns] = 1
    return Given(saliency)


# Other scores than classes -------------------------------------------------------------------------------------------


def test_each_photograph_keeps_its_own_estimate(photo: Image.Image) -> None:
    classifier = optcam_pl.Classifier(
        tiny_cnn().network, scores=Regression("keep", column=1), mean=0, std=1, input_size=16
    )
    photos = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90)]
    together = optcam_pl.explain(classifier, photos, "OptiCAM", max_iter=3, evolution=[0, 3])
    estimates = classifier.network(torch.cat([classifier.preprocess(one) for one in photos]))[:, 1].tolist()
    assert together.names == tuple(f"unchanged {value:.4g}" for value in estimates)
    assert together.p is not None
    torch.testing.assert_close(together.p, torch.zeros(2))
    alone = optcam_pl.explain(classifier, photos[1], "OptiCAM", max_iter=3)
    torch.testing.assert_close(alone.saliency[0], together.saliency[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(together.steps[-1][1], together.saliency, atol=1e-4, rtol=0)
    assert together.caption(1).startswith("score 0.000, masked ")
    with pytest.raises(ValueError, match=r"left open \(None or predicted\)"):
        optcam_pl.explain(classifier, photo, "OptiCAM", target=1)


class Found(Scores):
    """The first score of an image, where there is something in it."""

    default_link = "identity"
    per_image = True

    def __call__(self, output: Tensor) -> Tensor:
        columns = 1 if self.bound.value is None else len(self.bound.value)
        return output[:, :1].expand(-1, columns)

    @contextmanager
    def references(self, classifier: optcam_pl.Classifier, batch: Any) -> Iterator[References]:
        full = [bool(image.max() > 0) for image in batch["image"]]
        with self.bound.to(torch.tensor(full)):
            yield References(("it",) * len(full), missing=tuple("" if one else "nothing is there" for one in full))


def test_a_photograph_without_a_reference_is_named(photo: Image.Image, tmp_path: Path) -> None:
    classifier = optcam_pl.Classifier(tiny_cnn().network, scores=Found(), mean=0, std=1, input_size=16)
    assert optcam_pl.explain(classifier, photo, "FakeCAM").names == ("it",)
    Image.new("RGB", (20, 20)).save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="nothing to explain in empty.png: nothing is there"):
        optcam_pl.explain(classifier, [photo, tmp_path / "empty.png"], "FakeCAM")


def test_a_score_is_not_called_a_probability(photo: Image.Image) -> None:
    classifier = optcam_pl.Classifier(
        tiny_cnn().network, scores=Regression(), mean=0, std=1, input_size=16, class_names=NAMES
    )
    found = optcam_pl.explain(classifier, photo, "GradCAM", target="lynx")
    assert found.names == ("lynx",)
    assert found.caption().startswith("score ")


def test_words_of_several_lines_have_their_room() -> None:
    one = Tile(np.zeros((4, 4, 3), np.uint8), "title", "caption")
    more = replace(one, caption="first\nsecond\nthird")
    figures = [contact_sheet([[tile, tile]]) for tile in (one, more)]
    for figure in figures:
        figure.canvas.draw()
        for place in figure.axes:
            box = place.get_tightbbox()
            assert box is not None
            assert box.y0 >= -1
            assert box.y1 <= figure.bbox.height + 1
    assert figures[1].get_figheight() > figures[0].get_figheight()


# What is a photograph -------------------------------------------------------------------------------------------------


def encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


def test_every_kind_of_photograph_gives_the_same_image(classifier, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    pixels = np.asarray(photo)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    kinds: dict[str, Any] = {
        "path": tmp_path / "photo.png",
        "text": str(tmp_path / "photo.png"),
        "bytes": encoded(photo),
        "bytearray": bytearray(encoded(photo)),
        "uint8 array": pixels,
        "uint8 tensor": tensor,
        "RGBA": photo.convert("RGBA"),
        "list": [photo],
        "batch of arrays": pixels[None],
        "batch of tensors": tensor[None],
    }
    expected = classifier.preprocess(photo)
    assert expected.shape == (1, 3, 16, 16)
    for kind, given in kinds.items():
        assert torch.equal(classifier.preprocess(given), expected), kind
    floats = {"float array": pixels / 255, "float tensor": tensor / 255, "half": (tensor / 255).half()}
    for kind, given in floats.items():  # resampled without rounding to 8 bits
        torch.testing.assert_close(classifier.preprocess(given), expected, atol=2 / 255, rtol=0, msg=kind)


def test_gray_photographs_get_three_channels(classifier, photo):
    gray = photo.convert("L")
    expected = classifier.preprocess(gray.convert("RGB"))
    array = np.asarray(gray)
    for given in (gray, array, array[..., None], torch.from_numpy(array.copy())[None]):
        assert torch.equal(classifier.preprocess(given), expected)
    near = classifier.preprocess(array / 255)
    torch.testing.assert_close(near, expected, atol=2 / 255, rtol=0)


def test_a_photograph_becomes_the_image_that_a_dataset_makes_of_it(classifier, photos):
    for resize in ("stretch", "crop"):
        data = ImageFolder(root=photos, resize=resize)
        data.match_network(classifier.input_size, classifier.interpolation, classifier.crop_fraction)
        data.setup("test")
        file = photos / data.table[2]["id"]
        assert torch.equal(classifier.preprocess(file, resize)[0], data.table[2]["image"])


def test_a_tensor_of_the_networks_size_is_used_as_it_is(classifier):
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(classifier.preprocess(image), image)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            np.zeros((3, 8, 9), np.uint8),
            ValueError,
            r"but got \(3, 8, 9\). Put the channels last: np.moveaxis",
        ),
        (np.zeros((8, 9, 3)) + 200.0, ValueError, "from 200 to 200. Divide pixels of 0 to 255 by 255"),
        (np.zeros((8, 9, 4)), ValueError, r"Leave the fourth channel out: photo\[..., :3\]"),
        (np.zeros((8, 9, 3), np.int64), ValueError, r"but got int64. Convert it: photo.astype\(np.uint8\)"),
        (np.full((8, 9, 3), np.nan), ValueError, "but got NaN"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, r"shape \(H,W,3\), but got \(0, 9, 3\)"),
        (torch.zeros(8, 9, 3), ValueError, r"\(3,H,W\) or \(B,3,H,W\), but got \(8, 9, 3\). Put the channels first"),
        (torch.zeros(3, 8, 9) - 1.5, ValueError, "before mean/std normalization"),
        (torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(0)), ValueError, "seem to be normalized already"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), ValueError, r"torch.int64. Convert it: photo.to\(torch.uint8\)"),
        ("https://example.org/cat.jpg", ValueError, "Download it first"),
        ("cat.jpg", ImageReadError, "Cannot read the image 'cat.jpg': there is no such file"),
        (b"no image", ImageReadError, "not an image of a known format"),
        (".", ImageReadError, "it is a folder"),
        ([], ValueError, "one photograph or several, but got an empty list"),
        (None, TypeError, "to be a PIL image, a path, .* but got NoneType"),
        (3, TypeError, "but got int"),
    ],
)
def test_what_is_no_photograph_is_told_in_words(given, error, words, classifier):
    for call in (classifier.preprocess, lambda photo: optcam_pl.explain(classifier, photo, "GradCAM")):
        with pytest.raises(error, match=words):
            call(given)


def test_a_damaged_pil_image_is_told_in_words(classifier, photo):
    with (
        Image.open(io.BytesIO(encoded(photo)[:-60])) as cut,
        pytest.raises(ImageReadError, match="Cannot use the image"),
    ):
        classifier.preprocess(cut)


# explain --------------------------------------------------------------------------------------------------------------


def test_explain_gives_the_explainers_own_map_with_the_probabilities(classifier, photo):
    explanation = optcam_pl.explain(classifier, photo, "GradCAM", target="lynx")
    image = classifier.preprocess(photo)
    expected = GradCAM()(classifier, image, 4)
    assert torch.equal(explanation.saliency, expected.saliency)
    assert (explanation.names, explanation.method, explanation.target.tolist()) == (("lynx",), "GradCAM", [4])
    assert torch.equal(explanation.p, classifier.probabilities(image)[:, 4])
    masked = classifier.probabilities(image * expected.saliency)[:, 4]
    torch.testing.assert_close(explanation.o, masked)


def test_the_class_may_be_a_name_a_number_or_a_word(classifier, photo):
    order = classifier(classifier.preprocess(photo))[0].argsort(descending=True).tolist()
    for target, expected in ((None, order[0]), ("predicted", order[0]), ("second", order[1]), ("least", order[-1])):
        assert optcam_pl.explain(classifier, photo, "GradCAM", target).target.tolist() == [expected]
    several = optcam_pl.explain(classifier, [photo, photo], "GradCAM", ["lynx", "tabby"])
    assert several.target.tolist() == [4, 0]
    with pytest.raises(ValueError, match=r"Unknown class 'taby'. The nearest are: 'tabby'"):
        optcam_pl.explain(classifier, photo, "GradCAM", "taby")
    with pytest.raises(ValueError, match=r"Expected `target` to be in 0..4, but got \[5\]"):
        optcam_pl.explain(classifier, photo, "GradCAM", 5)


def test_the_method_may_be_a_name_a_class_or_an_explainer_of_ones_own(classifier, photo):
    for method in ("OptiCAM", OptiCAM):
        explanation = optcam_pl.explain(classifier, photo, method, max_iter=2)
        assert explanation.objective.shape == (3, 1)
    given = spot(slice(0, 4), slice(0, 4))
    assert optcam_pl.explain(classifier, photo, given).saliency.sum() == 16
    layer = classifier.network[0]
    assert optcam_pl.explain(classifier, photo, "GradCAM", layer=layer).saliency.shape == (1, 1, 16, 16)


@pytest.mark.parametrize(
    ("method", "settings", "error", "words"),
    [
        ("GradCam", {}, ValueError, "Unknown method 'GradCam'. The nearest are: 'GradCAM'"),
        ("Explainer", {}, ValueError, "Unknown method 'Explainer'"),
        (3, {}, TypeError, "Expected `method` to be an explainer, its class or its name, but got 3"),
        (nn.Linear, {}, TypeError, "Expected `method` to be an explainer"),
        (FakeCAM(), {"max_iter": 3}, ValueError, "Expected settings .max_iter. only with a method's name"),
        (
            "OptiCAM",
            {"max_iters": 3},
            TypeError,
            "settings of OptiCAM are: layer, objective, .*max_iter.*selectivity",
        ),
        (
            "GradCAM",
            {"baseline": "mean"},
            TypeError,
            "'baseline'. The settings of GradCAM are: layer, selectivity, augment.$",
        ),
    ],
)
def test_unknown_methods_and_settings_are_told_in_words(method, settings, error, words, classifier, photo):
    with pytest.raises(error, match=words):
        optcam_pl.explain(classifier, photo, method, **settings)


def test_a_bare_network_and_one_in_training_are_refused(classifier, photo):
    with pytest.raises(TypeError, match="wrap the network"):
        optcam_pl.explain(nn.Conv2d(3, 2, 1), photo)
    with pytest.raises(TypeError, match="wrap the network"):
        optcam_pl.compare(nn.Conv2d(3, 2, 1), photo)
    classifier.network.train()
    with pytest.raises(ValueError, match=r"Call classifier.eval\(\) first"):
        optcam_pl.explain(classifier, photo, "GradCAM")


# Where the map lies in the photograph ---------------------------------------------------------------------------------


def test_the_overlay_has_the_photographs_resolution_and_the_map_in_its_place(classifier):
    white = Image.new("RGB", (64, 32), "white")
    explanation = optcam_pl.explain(classifier, white, spot(slice(4, 8), slice(8, 12)))
    drawn = np.asarray(explanation.overlay(opacity=1))
    assert drawn.shape == (32, 64, 3)
    low, high = ((np.array(colormaps["viridis"](end)[:3]) * 255).round() for end in (0.0, 1.0))
    assert (drawn[11, 40] == high).all()  # pixel 5.75 of 16 down, 10.1 of 16 across
    assert (drawn[2, 5] == low).all()
    assert [box.tolist() for box in explanation.boxes()] == [[[32, 8, 48, 16]]]
    assert np.asarray(explanation.overlay(opacity=0)).min() == 255


def test_a_map_of_the_middle_lies_in_the_middle_and_the_rest_is_dark(classifier):
    """Of 80 x 40 pixels the network sees a square of 0.875 * 40 = 35 in the middle."""
    white = Image.new("RGB", (80, 40), "white")
    explanation = optcam_pl.explain(classifier, white, spot(slice(0, 16), slice(0, 8)), resize="crop")
    (photo,) = explanation.photos
    left, top, right, bottom = photo.region
    assert (right - left, bottom - top) == pytest.approx((35.56, 35.56), abs=0.01)  # 16 of 18 pixels
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((40, 20), abs=0.01)
    assert photo.outside == pytest.approx(1 - 35.556**2 / 3200, abs=1e-4)
    drawn = np.asarray(explanation.overlay(opacity=1))
    assert (drawn[20, 10] == drawn[1, 40]).all()  # outside
    assert drawn[20, 10].tolist() == [102, 102, 102]
    high, low = drawn[20, 30], drawn[20, 50]
    assert [int(high.argmax()), int(low.argmax())] == [0, 2]  # viridis: yellow and violet
    (box,) = explanation.boxes()
    assert box.tolist() == [pytest.approx([left, top, 40, bottom], abs=1e-3)]
    back = Preprocessing((16, 16), "crop", classifier.crop_fraction).boxes(box, white.size)
    torch.testing.assert_close(back, torch.tensor([[0.0, 0, 8, 16]]))
    assert "60% not seen by the network" in explanation.caption()


def test_pasting_a_map_is_bilinear_interpolation():
    saliency = torch.rand(1, 1, 7, 5)
    photo = Photo(Image.new("RGB", (50, 70)), (0, 0, 50, 70))
    expected = nn.functional.interpolate(saliency, (70, 50), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(torch.from_numpy(photo.paste(saliency[0])), expected, atol=1e-4, rtol=0)


def test_boxes_above_a_threshold_are_those_of_all_regions(classifier):
    saliency = torch.zeros(16, 16)
    saliency[0:2, 0:2], saliency[8:12, 8:12] = 0.6, 0.9
    explanation = optcam_pl.explain(classifier, Image.new("RGB", (16, 16)), Given(saliency))
    assert explanation.boxes(0.5)[0].tolist() == [[8, 8, 12, 12], [0, 0, 2, 2]]
    assert explanation.boxes(0.7)[0].tolist() == [[8, 8, 12, 12]]
    assert explanation.boxes(0.95)[0].shape == (0, 4)
    empty = optcam_pl.explain(classifier, Image.new("RGB", (16, 16)), Given(torch.zeros(16, 16)))
    assert empty.boxes()[0].shape == (0, 4)


# Pictures -------------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_an_explanation(classifier, photo):
    explanation = optcam_pl.explain(classifier, [photo, photo], "GradCAM", ["lynx", "tabby"])
    page = explanation._repr_html_()
    assert page.count("<img") == 2
    assert "GradCAM: <b>lynx</b>" in page
    assert f"p {explanation.p[1]:.3f}, masked {explanation.o[1]:.3f}" in page
    with Image.open(io.BytesIO(explanation._repr_png_())) as picture:
        assert picture.format == "PNG"
    figure = explanation.plot(boxes=True, colors="jet")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["", "GradCAM: lynx", "", "GradCAM: tabby"]


def test_maps_without_photographs_are_shown_alone(classifier):
    image = torch.rand(10, 3, 16, 16)
    explanation = GradCAM()(classifier, image, 3)
    assert "class 3" in explanation._repr_html_()
    assert "2 more: plot() shows all." in explanation._repr_html_()
    assert [axes.get_title() for axes in explanation.plot().axes][:10] == ["class 3"] * 10
    assert len(explanation.boxes()) == 10
    with pytest.raises(ValueError, match=r"make it by optcam_pl.explain\(classifier, photo\)"):
        explanation.overlay()


def test_names_are_no_markup(classifier, photo, tmp_path):
    odd = optcam_pl.Classifier(classifier.network, mean=0, std=1, input_size=16, class_names=["<b>&", *NAMES[1:]])
    file = tmp_path / "$x$_1.png"
    photo.save(file)
    explanation = optcam_pl.explain(odd, file, "GradCAM", 0)
    assert "&lt;b&gt;&amp;" in explanation._repr_html_()
    assert explanation.plot().axes[0].get_title() == "$x$_1.png"
    explanation._repr_png_()  # a dollar sign starts no formula


def test_a_map_that_says_nothing_says_why(classifier, photo):
    explanation = optcam_pl.explain(classifier, photo, FakeCAM())
    assert "carries no information" not in explanation.caption()
    black = optcam_pl.explain(classifier, Image.new("RGB", (20, 20)), "EigenCAM")
    assert bool(black.degenerate) == ("map" in black.caption())


def test_wrong_settings_of_a_picture_are_told(classifier, photo):
    explanation = optcam_pl.explain(classifier, photo, "GradCAM")
    with pytest.raises(ValueError, match=r"name of a matplotlib colormap, but got 'jett'. The nearest are: 'jet'"):
        explanation.overlay(colors="jett")
    with pytest.raises(ValueError, match=r"`opacity` to be in \[0, 1\], but got 2"):
        explanation.plot(opacity=2)
    with pytest.raises(ValueError, match=r"Expected `index` to be in 0..0, but got 1"):
        explanation.overlay(1)


def test_compare_puts_the_methods_side_by_side_for_one_class(classifier, photo):
    comparison = optcam_pl.compare(classifier, photo, ["GradCAM", FakeCAM(), spot(slice(0, 8), slice(0, 16))])
    assert list(comparison.explanations) == ["GradCAM", "FakeCAM", "Given"]
    targets = {explanation.target.item() for explanation in comparison.explanations.values()}
    assert len(targets) == 1
    figure = comparison.plot()
    assert [axes.get_title() for axes in figure.axes][1:4] == ["GradCAM", "FakeCAM", "Given"]
    fake = comparison["FakeCAM"]
    assert figure.axes[2].get_xlabel() == f"p {fake.p[0]:.3f}, masked {fake.o[0]:.3f}"
    assert comparison._repr_png_().startswith(b"\x89PNG")
    assert "GradCAM, FakeCAM, Given" in comparison._repr_html_()
    named = optcam_pl.compare(classifier, [photo, photo], {"ours": OptiCAM(max_iter=1), "theirs": "GradCAM"})
    assert [axes.get_title() for axes in named.plot().axes][4:6] == ["ours", "theirs"]
    with pytest.raises(KeyError, match="there are 'ours', 'theirs'"):
        named["GradCAM"]
    with pytest.raises(ValueError, match="Unknown method"):
        optcam_pl.compare(classifier, photo, ["GradCM"])


def test_the_evolution_shows_the_maps_of_the_iterations_that_were_asked_for(classifier, photo):
    explainer = OptiCAM(max_iter=6, tol=0)
    explanation = optcam_pl.explain(classifier, photo, explainer, evolution=[0, 2, 6])
    assert explainer.watch is None
    assert [iteration for iteration, _ in explanation.steps] == [0, 2, 6]
    image = classifier.preprocess(photo)
    torch.testing.assert_close(explanation.steps[-1][1], explanation.saliency)
    shorter = OptiCAM(max_iter=2, tol=0)(classifier, image, explanation.target)
    torch.testing.assert_close(explanation.steps[1][1], shorter.saliency)
    plain = OptiCAM(max_iter=6, tol=0)(classifier, image, explanation.target)
    assert torch.equal(explanation.saliency, plain.saliency)  # watching changes nothing
    figure = explanation.evolution(columns=2)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["iteration 0", "iteration 2", "iteration 6"]
    assert figure.axes[1].get_xlabel() == f"objective {float(explanation.objective[2, 0]):.4g}"
    frames = explanation.frames()
    assert [frame.size for frame in frames] == [(40, 30)] * 3
    data = io.BytesIO()
    frames[0].save(data, "gif", save_all=True, append_images=frames[1:])
    usual = optcam_pl.explain(classifier, photo, "OptiCAM", max_iter=3, tol=0, evolution=True)
    assert [iteration for iteration, _ in usual.steps] == [0, 1, 2, 3]


def test_an_evolution_that_cannot_be_shown_is_told(classifier, photo):
    with pytest.raises(TypeError, match="Expected an explainer that optimizes"):
        optcam_pl.explain(classifier, photo, "GradCAM", evolution=True)
    with pytest.raises(ValueError, match=r"from 0 to max_iter = 3, but got 2 of up to 4"):
        optcam_pl.explain(classifier, photo, "OptiCAM", max_iter=3, evolution=[1, 4])
    with pytest.raises(ValueError, match="make it by optcam_pl.explain"):
        optcam_pl.explain(classifier, photo, "GradCAM").evolution()


def test_what_was_not_seen_is_gray_and_dark():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    values = np.array([[np.nan, 0], [1, 1]], np.float32)
    drawn = photo_overlay(red, values, opacity=0.5)
    assert drawn[0, 0].tolist() == [30, 30, 30]  # 0.4 of the gray of red, 76
    assert drawn[1, 1, 0] > 200


def test_a_photograph_remembers_its_name(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    _, (by_path,) = prepare(tmp_path / "a.png", Preprocessing((4, 4)))
    with Image.open(tmp_path / "a.png") as opened:
        _, (by_image,) = prepare(opened, Preprocessing((4, 4)))
    assert by_path.name == by_image.name == "a.png"
    assert by_path.image.size == (8, 8)


# Images of other channels ---------------------------------------------------------------------------------------------


def of_channels(channels: int) -> optcam_pl.Classifier:
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return optcam_pl.Classifier(network, mean=0, std=1, channels=channels, input_size=16)


def test_photographs_become_gray_for_a_network_of_one_channel(photo):
    classifier, gray = of_channels(1), np.asarray(photo.convert("L"))
    want = classifier.preprocess(photo)
    assert want.shape == (1, 1, 16, 16)
    assert torch.equal(want, Preprocessing((16, 16))(photo.convert("L").convert("RGB"))[None, :1])
    floats = np.asarray(photo) / 255
    for same in (gray, gray[..., None], torch.from_numpy(gray.copy())[None], photo.convert("L"), floats, gray / 255):
        assert torch.allclose(classifier.preprocess(same), want, atol=4 / 255)
    explanation = optcam_pl.explain(classifier, [photo, gray], "GradCAM")
    assert explanation.saliency.shape == (2, 1, 16, 16)
    assert explanation.overlay(1).size == photo.size
    assert optcam_pl.compare(classifier, photo, ["GradCAM", "EigenCAM"]).plot() is not None


def test_images_of_more_channels_are_arrays_and_tensors(photo):
    classifier = of_channels(5)
    pixels = torch.rand(2, 5, 16, 16)
    assert torch.equal(classifier.preprocess(pixels), pixels)
    last = (pixels[0] * 255).byte().permute(1, 2, 0).numpy()
    assert torch.allclose(classifier.preprocess(last)[0], pixels[0], atol=1 / 255)
    explanation = optcam_pl.explain(classifier, pixels, "GradCAM")
    own = GradCAM()(classifier, pixels)
    assert torch.equal(explanation.saliency, own.saliency)
    shown = np.asarray(explanation.photos[0].image)
    assert np.abs(shown - (pixels[0, :3] * 255).permute(1, 2, 0).numpy()).max() <= 1
    for wrong in (photo, torch.rand(3, 16, 16), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"5 channels of the network's images, as a tensor \(5,H,W\)"):
            optcam_pl.explain(classifier, wrong, "GradCAM")
