"""The frozen classifier to explain: it turns pixels in [0,1] into logits.

Shape letters: B images, C classes, K channels, h x w feature grid, H x W image, N tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from optcam_pl.checks import check_choice, check_positive
from optcam_pl.imagenet import imagenet_names
from optcam_pl.network import choosing, layers, suitability
from optcam_pl.network.arguments import (
    channels_of,
    check_color,
    check_fraction,
    check_network,
    check_rgb,
    check_size,
    from_words,
)
from optcam_pl.network.bound import Bound
from optcam_pl.network.carried import NormalizationWarning, normalization_advice
from optcam_pl.network.errors import NetworkError, forward_error, is_own, size_error
from optcam_pl.network.frozen import Frozen, flags_before, flags_of, restore
from optcam_pl.network.inputs import InputsAs, SideInputs
from optcam_pl.network.layers import Layers, Layout
from optcam_pl.network.link import Link, check_link, probabilities_of
from optcam_pl.network.masking import TakesMasks
from optcam_pl.network.outputs import index_of, misshapen, stated_classes
from optcam_pl.network.photographs import TakesPhotos
from optcam_pl.network.plain import state_digest
from optcam_pl.network.scores import (
    References,
    Scores,
    as_scores,
    scores_settings,
)
from optcam_pl.network.speed import FasterNetwork, Speed, WeightsDtype, check_speed
from optcam_pl.network.weights import Network, is_source_name, load_network, read_settings
from optcam_pl.photos import Interpolation
from optcam_pl.photos.advice import conversion, reshaping
from optcam_pl.private import written_to
from optcam_pl.threads import passing

ScoresLike: TypeAlias = Scores | Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None


class Classifier(TakesPhotos, TakesMasks, Frozen):
    """Any image classifier with its normalization inside: `classifier(image)` turns pixels in [0,1] into logits.

    The network is frozen (eval mode, no parameter requires a gradient) and stays frozen, except while a
    `ClassificationTask` trains it. A `torch.nn.Module` that you pass in is frozen and used without copying it. Calling
    `release`, or leaving ``with Classifier(network) as classifier:``, restores its flags.

    If torch.compile has compiled the network, in whole or in part, the original, uncompiled modules are explained. A
    compiled network does not run the hooks that explainers put on its parts. Layer names may include or omit the
    wrappers' `module.` and `_orig_mod.`.

    Args:
        network: "torchvision/resnet50", "timm/deit_base_patch16_224", "transformers/google/vit-base-patch16-224" (a
            name on the Hugging Face hub or a folder), "demo/efficientnet_lite0" (timm's network with pretrained weights
            from a Python package), "my_module.Net" or "my_module:Net" (your own class or function, called without
            arguments), or a module that maps (B,3,H,W) to logits (B,C). None: the network from which the checkpoint of
            ClassificationTask in `weights` was made.
        weights: "default": the source's pretrained weights, or the module as it is. None or "random": random weights.
            For torchvision, also the name of one of its weight sets ("IMAGENET1K_V1"). Otherwise a file, which is read
            without running any code in it: a state dict in .safetensors or .pth/.pt/.ckpt, bare or inside a checkpoint,
            with or without prefixes like `module.`; every name and shape has to fit. Arguments left at None are read
            from a checkpoint of ClassificationTask.
        target_layer: the layer or layers to explain, each by its dotted name ("layer4.2", "layer4.-1") or as the module
            itself. None: the usual layer of the network's family (the paper's choice if it names one), which is also
            found inside wrappers of any depth. For an unknown module, it is the last layer with a grid of features
            that a gradient of the logits reaches; see `target_layers`.
        mean: one number or one per channel, in [0,1]; it is subtracted from the pixels. None: the source's value, or
            the module's own (timm's `pretrained_cfg`); otherwise 0, with a `NormalizationWarning` unless the module's
            first layers normalize. ``mean=0, std=1`` states that no normalization is right.
        std: one positive number or one per channel; the pixels are divided by it. None: as for `mean`, otherwise 1.
        input_size: H = W or (H,W) in pixels. None: the source's value, or the module's own; otherwise 224.
        interpolation: the method for resizing images to `input_size`. None: the source's value, or the module's own;
            otherwise "bilinear".
        crop_fraction: in (0,1], the part of the resized image that a center crop keeps. None: the source's value, or
            the module's own; otherwise 0.875.
        num_classes: None: the number of the network or of the weight file. If the weights have another number of
            classes, the network gets a new, random head, with a warning.
        class_names: one name per class. None: the source's names; ImageNet's, if the source has none and the network
            has 1000 classes.
        layout: how a layer's activations are laid out in memory; see `to_grid`. None: "auto".
        scores: what number of the network's output is explained: see `optcam_pl.network.scores`. None: the class
            logits. Your own function of the output that returns (B,C), or a list of functions of one image's output,
            one for each column.
        link: from scores to the probabilities p and o that metrics compare: "softmax", "sigmoid" (each column for
            itself), "identity" (the scores have no probability) or your own increasing function onto [0,1]. None: the
            scores' own, "softmax" for class logits.
        channels: the number of channels of the images. None: the length of `mean` or `std`, else 3.
        rgb_channels: the three channels that pictures show as red, green and blue. None: the first three; one channel
            is gray, and of two the mean is.
        inputs: the network's other inputs by name, each as one image has it, without a batch dimension. They stay
            fixed: only the image is masked and differentiated. A batch may bring its own for each image, in ``inputs``;
            these are the ones of images without, and of checks of the network.
        inputs_as: how the network gets them: "keywords", as ``network(image, name=...)``, or "dict", as
            ``network({"image": image, name: ...})``.
        speed: "plain": the network as it is. "folded": a copy with batch norms folded into convolutions, channels last.
            "onednn": the same, with faster layers on a CPU. "graph": folded, replayed as a CUDA graph. "compile":
            folded, by torch.compile. "auto": the fastest that needs no compiler. Last digits differ from those of
            "plain"; see `optcam_pl.network.speed`.
        weights_dtype: "bfloat16" or "float16" for the weights of the faster copy; None keeps the network's.
        trust_network: continue when `check_outputs` or `check_function` finds a problem, with a warning instead of the
            error. This setting is printed with the results.

    The arguments are also attributes: `name` (of the network, for reports), `mean` and `std` as (channels,) buffers
    that are not saved with the weights (0 and 1 where nothing is normalized), `input_size` as (H,W), `interpolation`,
    `crop_fraction`, `class_names` as a tuple or None, `num_classes` and `target_layers`. The attribute `new_head` says
    whether the network still has to be fine-tuned because its head is new.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown network, layer or setting, or weights that do not fit; the message says what was expected
            and lists the nearest names.
        FileNotFoundError: there is no such weight file.
        ImportError: "demo/..." or "transformers/..." without the extra `optcam_pl[demo]` or `optcam_pl[transformers]`.
        RuntimeError: the pretrained weights could not be downloaded.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> classifier = Classifier(network, mean=0, std=1, input_size=4, class_names=["cat", "dog"])
        >>> classifier(torch.rand(5, 3, 4, 4)).shape
        torch.Size([5, 2])
        >>> classifier.target_layers, classifier.num_classes, classifier.class_name(1)
        (('1',), 2, 'dog')
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network | None = None,
        weights: str | Path | None = "default",
        target_layer: Layers | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        input_size: int | tuple[int, int] | None = None,
        interpolation: Interpolation | None = None,
        crop_fraction: float | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        layout: Layout | None = None,
        trust_network: bool = False,
        scores: ScoresLike = None,
        link: Link | None = None,
        channels: int | None = None,
        rgb_channels: tuple[int, int, int] | None = None,
        inputs: dict[str, Any] | None = None,
        inputs_as: InputsAs = "keywords",
        speed: Speed = "plain",
        weights_dtype: WeightsDtype | None = None,
    ) -> None:
        super().__init__()
        check_speed(speed, weights_dtype)
        if (inputs or inputs_as == "dict") and speed != "plain":
            raise ValueError(
                f"Expected `speed` to be plain for a network with other `inputs` or with a dict of them, but got "
                f"{speed!r}."
            )
        if num_classes is not None:
            check_positive("num_classes", num_classes)
        self.trust_network = trust_network
        self.fast: FasterNetwork | None = None
        self.scores = as_scores(scores)
        self.link: Link = check_link(link, self.scores)
        self.inputs = SideInputs(inputs, inputs_as)
        self.transform = Bound()  # a function of the scores that a method explains instead of them, while it is bound
        self._checked: frozenset[str] = frozenset()
        self._hash: tuple[object, str] | None = None
        network, weights = from_words(network, weights)
        stored = {} if weights in (None, "default") else read_settings(str(weights))
        network = check_network(network, stored, weights)
        loaded = load_network(network, weights, num_classes)
        self.name = network if isinstance(network, str) else type(network).__name__
        self.weights = "random" if weights is None else str(weights)
        self.network = loaded.network
        self.new_head = loaded.new_head
        entered, self._found = flags_of(self.network), flags_before(self.network)
        try:
            self._set_normalization(mean, std, channels, {**loaded._asdict(), **stored})
            self.rgb_channels = check_rgb(rgb_channels, self.channels)
            said = loaded.says_normalization and self.channels == 3
            if not (said or "mean" in stored or mean is not None or std is not None):
                warnings.warn(normalization_advice(self.name), NormalizationWarning, stacklevel=2)
            self._set_images(input_size, interpolation, crop_fraction, {**loaded._asdict(), **stored})
            self.layout: Layout = check_choice("layout", layout or stored.get("layout", "auto"), Layout)
            self.requires_grad_(False)
            self.eval()
            self._layers = self._choose_layers(stored.get("target_layer") if target_layer is None else target_layer)
            known = stored.get("class_names", loaded.class_names)
            self._set_classes(num_classes, class_names, known, by_name=is_source_name(network))
            self.link = check_link(self.scores.link_of(self.network) if link is None else link, self.scores)
            self.scores.attach(self)
            if speed != "plain":
                made_of = (self.network, speed, weights_dtype, self.input_size, self._find_layers(), self.scores.run)
                self.fast = FasterNetwork(*made_of)
                self.network = self.fast.network
                self._copied = self.weight_hash()
        except BaseException:
            restore(entered)
            raise

    def _set_normalization(
        self,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        channels: int | None,
        known: Mapping[str, Any],
    ) -> None:
        """Use the given values, otherwise the known ones."""
        self.channels = channels_of(channels, mean, std, known["mean"])
        if len(known["mean"]) != self.channels:  # the source's colors are no other channels' values
            known = {"mean": 0.0, "std": 1.0}
        device = layers.zeros_for(self.network, (1, 1)).device
        for key, given in (("mean", mean), ("std", std)):
            values = check_color(key, known[key] if given is None else given, self.channels)
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32, device=device), persistent=False)
        self._normalizes = bool((self.mean != 0).any() or (self.std != 1).any())

    def _set_images(
        self,
        input_size: int | tuple[int, int] | None,
        interpolation: Interpolation | None,
        crop_fraction: float | None,
        known: Mapping[str, Any],
    ) -> None:
        """Use the given image settings, otherwise the known ones."""
        self.input_size = check_size(known["input_size"] if input_size is None else input_size)
        interpolation = known["interpolation"] if interpolation is None else interpolation
        self.interpolation = check_choice("interpolation", interpolation, Interpolation)
        self.crop_fraction = check_fraction(known["crop_fraction"] if crop_fraction is None else crop_fraction)

    def _set_classes(
        self, number: int | None, names: list[str] | None, known: Sequence[str] | None, *, by_name: bool
    ) -> None:
        """Set number and names of the classes; `by_name` says that the network comes from a known source."""
        if self.new_head:
            known = None  # the file's names belong to its own head
            warnings.warn(
                f"{self.name} gets a new, random head for {number} classes: fine-tune it before explaining it.",
                stacklevel=3,
            )
        by_name = by_name and self.scores.own_classes
        # What each image has of its own is a box or a region of one of the network's classes.
        known = known if self.scores.own_classes or self.scores.per_image else self.scores.names()
        self._classes = stated_classes(self.network, self.name) if by_name else None
        if number is not None and self.scores.own_classes and number != self.num_classes:
            raise ValueError(f"Expected {number} classes, but {self.name} has {self.num_classes}.")
        chosen = known if names is None else names
        if chosen is None and by_name and self.num_classes == len(imagenet_names()):
            chosen = imagenet_names()
        if chosen is not None and not self.scores.per_image and len(chosen) != self.num_classes:
            raise ValueError(f"Expected {self.num_classes} `class_names` for {self.name}, but got {len(chosen)}.")
        self.class_names = None if chosen is None else tuple(chosen)

    def _choose_layers(self, target_layer: Layers | None) -> tuple[str, ...] | None:
        if target_layer is None:
            name = layers.family_layer(self.network)
            return self.scores.layers_of(self.network) or (None if name is None else (name,))
        names = layers.layer_list(target_layer)
        chosen = tuple(layers.layer_name(self.network, name) for name in names)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"Expected `target_layer` to name one layer or several different ones, but got {names}.")
        return chosen

    @property
    def target_layers(self) -> tuple[str, ...]:
        """Full names of the layers to explain.

        If no layer is given and the network's own class is not in the table of families, the layer is searched for on
        first use, with passes of two noise images. It is the usual layer of a known family inside the network.
        Otherwise, it is the last module that is called once, returns a grid of several cells for each image, and is
        reached by a gradient of the logits.

        Raises:
            ValueError: the module has no such layer.
            RuntimeError: the module fails on these images.
        """
        found = self._find_layers()
        if not found:
            raise ValueError(choosing.nothing_found(self.name, self.network, self.input_size))
        return found

    def _find_layers(self) -> tuple[str, ...]:
        found = self._layers  # another thread may change the attribute meanwhile
        if found is None:
            name = choosing.choose(self._probe())
            self._layers = found = () if name is None else (name,)
        return found

    def check_layer(self, name: str, *, gradient: bool = False) -> None:
        """Check with one or two passes that a layer can be explained; calling an explainer does not run this check.

        Args:
            name: dotted name.
            gradient: whether the method needs a gradient of the logits at this layer.

        Raises:
            ValueError: there is no such layer, it is not called exactly once per pass, its batch dimension is not that
                of the images, it has no grid, or no gradient reaches it. The message names the nearest suitable layer.
            RuntimeError: the network fails on an image of its size.
        """
        choosing.check(self._probe(), layers.canonical_name(self.network, name), gradient=gradient)

    def _probe(self) -> choosing.Probe:
        probe = choosing.Probe(self, self.network, self.input_size, self.layout, self.channels)
        try:
            _ = probe.traced
        except Exception:  # any exception that the user's network raises
            self._explore()  # if the network fails on an image of this size, this raises a clear error
            raise
        return probe

    @property
    def num_classes(self) -> int:
        """Number of scores C; for a module that you passed in, counted once on a black image of `input_size`."""
        classes = self.scores.columns() or self._classes
        if classes is None:
            self._classes = classes = self._explore().shape[1]
        return classes

    @property
    def prefix_tokens(self) -> int:
        """The number of class, distillation and register tokens before the patches; 0 for a network without tokens."""
        explained = () if self._layers is None else self._layers
        known = layers.known_prefix(self.network, *explained[:1])
        if known is not None:
            return known
        explained, traced = self._find_layers(), self._probe().traced
        tokens = [shape[1] for name in explained if len(shape := traced[name].shape) == 3]
        grid = layers.token_grid(tokens[-1], self.input_size, None) if tokens else None
        return 0 if grid is None else grid[0]

    def _explore(self) -> Tensor:
        """The logits of one black image, to learn shapes from."""
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self(layers.zeros_for(self.network, self.input_size, self.channels))  # type: ignore[no-any-return]
        except NetworkError as error:
            raise size_error(error, self.name, self.network, self.input_size) from (error.__cause__ or error)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of images, by default the class logits; see `scores`.

        Args:
            image: (B,3,H,W) floating-point pixels in [0,1], not normalized. The network gets them in its own dtype.

        Returns:
            (B,C), in float32 or float64. If the network returns more than a tensor: its `logits`, otherwise the first
            of its outputs.

        Raises:
            TypeError: the image is not a floating-point tensor.
            ValueError: the image or the network's output has the wrong shape, or it is unclear which output is meant.
            NetworkError: the network itself raises an exception.
        """
        return self._scored(self.output(image), image)

    def _scored(self, output: Any, image: Tensor) -> Tensor:
        """The scores in an output of the network for such images, after the transform and checks of `forward`."""
        scores = self.scores(output)
        if self.transform.value is not None:
            scores = self.transform.value(scores)
        if scores.ndim != 2:
            raise ValueError(misshapen(self.name, tuple(scores.shape), image.shape[0], self.scores.title))
        if scores.is_inference() and not torch.is_inference_mode_enabled():
            scores = scores.clone()  # a tensor that autograd can use
        return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores

    def output(self, image: Tensor) -> Any:
        """What the network itself returns for images, from which `scores` makes numbers.

        Raises:
            TypeError, ValueError, NetworkError: as for `forward`.
        """
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"Expected images as floating-point tensors in [0, 1], but got {kind}.{conversion(image)}")
        if image.ndim != 4 or image.shape[1] != self.channels:
            shape, advice = tuple(image.shape), reshaping(tuple(image.shape), self.channels)
            raise ValueError(f"Expected images of shape (B, {self.channels}, H, W), but got {shape}.{advice}")
        pixels = image
        if self._normalizes:
            mean, std = (value.to(image.dtype).view(-1, 1, 1) for value in (self.mean, self.std))
            image = (image - mean) / std
        image = image.to(self.network_dtype or image.dtype)
        return self._from_network(image.clone() if image is pixels else image)  # the network may write into it

    def _from_network(self, image: Tensor) -> Any:
        """What the network returns for normalized images of its dtype."""
        try:
            return self._pass(image)
        except torch.OutOfMemoryError:  # handled by the code that splits passes into chunks
            raise
        except Exception as error:  # any exception that the user's network raises
            if is_own(error):
                raise
            raise forward_error(error, self.name, self.network, image) from error

    def _pass(self, image: Tensor) -> Any:
        """The network's output; waits while another thread has exclusive use of the network."""
        given = self.inputs.of(image)
        network = self.inputs.caller(self.network)
        if torch.compiler.is_compiling():  # locks cannot be compiled
            return self.scores.run(network, image, **given)
        with passing(self.network):
            if self.fast is None:
                return self.scores.run(network, image, **given)
            return self.fast.run(self.scores.run, image)

    def probabilities(self, image: Tensor) -> Tensor:
        """The link's values of the scores, (B,C), in float32, or in float64 if the scores are; by default the softmax.

        Raises:
            ValueError, NetworkError: as for `forward` and `check_outputs`.
        """
        scores = self(image)
        self.check_outputs((image.shape[2], image.shape[3]))
        return probabilities_of(scores, self.link)

    @property
    def has_probabilities(self) -> bool:
        """Whether p and o are probabilities; with the link "identity" they are the scores themselves."""
        return self.link != "identity"

    @property
    def quantity(self) -> str:
        """What p and o are called in titles: "p", or "score" without probabilities."""
        return "p" if self.has_probabilities else "score"

    @contextmanager
    def references(self, batch: Mapping[str, Any]) -> Iterator[References | None]:
        """Bind what the images of a block refer to, where each has its own (`Scores.per_image`); otherwise nothing.

        ``with classifier.references({"image": image}): explainer(classifier, image, target=range(len(image)))``

        Args:
            batch: ``image`` (B,3,H,W), and ``boxes`` or ``mask`` where the scores need them.

        Yields:
            The references in words, of image i in column i; None where columns are classes.
        """
        with self.scores.references(self, batch) as found:
            yield found

    def check_outputs(self, size: tuple[int, int] | None = None) -> None:
        """Check once, on made-up images, that the network returns logits.

        The check detects probabilities, log-probabilities, a single logit, non-finite values and constant values. The
        first call of `probabilities` runs it; later calls cost nothing.

        Args:
            size: (H,W) of the images; None means `input_size`.

        Raises:
            ValueError: results would be wrong; the message says what to do.
        """
        self._check("outputs", suitability.output_faults, size)

    def check_function(self, size: tuple[int, int] | None = None) -> None:
        """Check once that the network's output for an image depends only on the image.

        In addition to `check_outputs`, the check detects randomness, dependence on the batch, and state that each pass
        changes. A run makes this check before it begins, and so does the first explanation; later calls cost nothing.

        Args:
            size: (H,W) of the images; None means `input_size`.

        Raises:
            ValueError: the output depends on something else; the message names the module if it can be determined.
            NetworkError: the network fails on images of this size.
        """
        self.check_outputs(size)
        self._check("function", suitability.function_faults, size)

    def _check(
        self,
        what: str,
        faults: Callable[[Classifier, tuple[int, int]], list[suitability.Fault]],
        size: tuple[int, int] | None,
    ) -> None:
        if what in self._checked:
            return
        for fault in faults(self, size or self.input_size):
            if fault.fatal and not self.trust_network:
                raise ValueError(fault.text)
            warnings.warn(fault.text, stacklevel=4)
        self._checked |= {what}

    def layer(self, name: str) -> nn.Module:
        """A layer by its dotted name; `layer4.-1` and `layer4[-1]` count from the end.

        Raises:
            ValueError: there is no such layer; the message lists the nearest names.
        """
        name = layers.canonical_name(self.network, name)
        if self.fast is not None:
            self.fast.unfold(name)
        return self.network.get_submodule(name)

    def to_grid(self, activation: Tensor, image_size: tuple[int, int], layer: str = "the layer") -> Tensor:
        """A layer's activations as feature maps (B,K,h,w); see `layers.to_grid`, used with the classifier's `layout`.

        Args:
            activation: (B,K,h,w), (B,h,w,K) or tokens (B,N,D); class and register tokens are dropped.
            image_size: (H,W) of the images that the activations belong to.
            layer: the layer's name, for the message.
        """
        return layers.to_grid(activation, image_size, self.layout, self.network, layer)

    def class_name(self, index: int) -> str:
        """The name of a class, or of another column of the scores, or its number if no names are known.

        Raises:
            ValueError: the index is not in 0 ... C-1.
        """
        if not 0 <= index < self.num_classes:
            raise ValueError(f"Expected a class from 0 to {self.num_classes - 1}, but got {index}.")
        known = self.class_names or ()  # where each image has its own column, they need not name all columns
        return known[index] if index < len(known) else str(index)

    def target_name(self, index: int) -> str:
        """What the score of a column is, in words for titles: a class's name, "score of 'a photo of a dog'".

        Raises:
            ValueError: the index is not in 0 ... C-1.
        """
        return self.scores.words(self.class_name(index))

    def class_index(self, name: str) -> int:
        """The number of a class by its name.

        Raises:
            ValueError: no class or several classes have this name, or no names are known.
        """
        return index_of(name, self.class_names, self.name)

    def weight_hash(self) -> str:
        """SHA-256 over name, type, shape and bytes of everything in the network's state dict, as 64 hex digits.

        It is the same on every device and is only computed again after a tensor has been replaced or written to.
        """
        network = self.network if self.fast is None else self.fast.original
        state = network.state_dict()
        versions = [(v.data_ptr(), v.dtype, written_to(v)) if isinstance(v, Tensor) else id(v) for v in state.values()]
        known = self._hash
        if known is None or known[0] != versions:
            self._hash = known = (versions, state_digest(state))
        return known[1]

    def describe(self) -> dict[str, Any]:
        """The settings that are printed with results: plain numbers, strings and lists."""
        return {
            "classifier": self.name,
            "weights": self.weights,
            "layer": list(self._find_layers()),
            "mean": [round(value, 7) for value in self.mean.tolist()],
            "std": [round(value, 7) for value in self.std.tolist()],
            "input_size": list(self.input_size),
            **({"trust_network": True} if self.trust_network else {}),
            **({} if self.fast is None else self.fast.describe()),
            **scores_settings(self.scores, self.link),
            **self.inputs.settings(),
        }

    def settings(self) -> dict[str, Any]:
        """The arguments to recreate this classifier with its weights, as plain numbers, strings and lists."""
        return {
            "network": self.name,
            "target_layer": list(self._find_layers()) or None,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "input_size": list(self.input_size),
            "interpolation": self.interpolation,
            "crop_fraction": self.crop_fraction,
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "layout": self.layout,
            **({"channels": self.channels} if self.channels != 3 else {}),
        }

    def __getstate__(self) -> dict[str, Any]:
        # A copy's tensors have other addresses, and what is stored is valid only for the original's addresses.
        return {**self.__dict__, "_hash": None, "_untouched": None}
