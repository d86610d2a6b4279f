"""Scores of networks that embed images: how near an image lies to a text, or to other images.

Shape letters: B images, C prompts or references, D dimensions of the embedding, L tokens of a text.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optcam_pl.checks import ToldError, expanded_path
from optcam_pl.network.capture import own_grad_mode
from optcam_pl.network.link import Link
from optcam_pl.network.outputs import logits_of, part_of
from optcam_pl.network.plain import plain
from optcam_pl.network.scores import References, Scores
from optcam_pl.photos.decode import read_image
from optcam_pl.photos.preprocessing import Preprocessing
from optcam_pl.private import written_to
from optcam_pl.threads import unseen

if TYPE_CHECKING:
    from optcam_pl.network.classifier import Classifier

    Tokenizer: TypeAlias = str | Callable[[list[str]], Tensor | Mapping[str, Tensor]] | None
else:
    # What a configuration may give. (See `Network` in weights.py for why this is asked from another file.)
    Tokenizer = str | Callable | None

Vectors: TypeAlias = Tensor | Sequence[str] | Literal["own"]


class ImageText(NamedTuple):
    """What a CLIP-like network says of images and prompts.

    Attributes:
        image: (B,D) embeddings of length 1.
        text: (C,D) embeddings of length 1.
        scale: the factor of their cosine.
        bias: what is added, or None.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None


class PerNetwork:
    """A tensor that is computed once for each network, and again after its weights have changed; a copy is empty."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, tuple[object, Tensor]] = weakref.WeakKeyDictionary()

    def get(self, network: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor, without a graph, on the network's device."""
        state = [(value.device, value.dtype, written_to(value)) for value in network.parameters()]
        known = self._known.get(network)
        if known is None or known[0] != state:
            with own_grad_mode(), torch.no_grad(), unseen():  # this may happen while the network's layers are recorded
                self._known[network] = known = (state, compute().detach())
        return known[1]

    def __reduce__(self) -> tuple[type[PerNetwork], tuple[()]]:
        return PerNetwork, ()


class ZeroShot(Scores):
    """A classifier without training: how near an image lies to each of several texts.

    With the network's embeddings u of the image and v_c of text c, both of length 1, its scale t and its bias b,
    ``S_c = t <u, v_c> + b``. CLIP has no bias, and its link is "softmax": p_c is the share of a prompt among all
    prompts, so it depends on which others there are. SigLIP has one, and its link is "sigmoid": p_c is the probability
    that this text fits, whatever the others are. The texts' embeddings are computed once.

    It takes CLIPModel, SiglipModel and relatives of transformers (with `get_image_features`, `get_text_features`), and
    CLIP and SigLIP of open_clip (with `encode_image`, `encode_text`). Only the image is masked and differentiated, so
    the layers to explain are those of the vision tower.

    Args:
        prompts: the texts, one for each class; or the classes' names, with `templates`; or tokens (C,L), which go to
            the network as they are.
        templates: texts with {} in the place of the name: "a photo of a {}.". The embedding of a class is then the
            mean over the templates, each of length 1, again made of length 1, as CLIP's authors do it.
        tokenizer: None: open_clip's own, or that in the transformers network's folder. A name or folder for
            transformers' AutoTokenizer. Or your own function from a list of texts to tokens (C,L), or to the inputs of
            the text tower by name.
        names: the classes' names, for tables and for matching a dataset's classes; None: the prompts.

    Raises:
        ValueError: no prompts, an empty or repeated one, or a template without {}.

    Example:
        >>> scores = ZeroShot(["cat", "dog"], templates=["a photo of a {}."])
        >>> u, v = torch.tensor([[0.6, 0.8]]), torch.eye(2)
        >>> scores(ImageText(u, v, torch.tensor(10.0), None))
        tensor([[6., 8.]])
        >>> scores.names(), scores.words("cat")
        (('cat', 'dog'), "score of 'a photo of a cat.'")
    """

    def __init__(
        self,
        prompts: list[str] | Tensor,
        templates: list[str] | None = None,
        tokenizer: Tokenizer = None,
        names: list[str] | None = None,
    ) -> None:
        self.prompts = prompts if isinstance(prompts, Tensor) else _checked_texts(prompts)
        self.templates = _checked_templates(templates, prompts)
        self.tokenizer = tokenizer
        if names is not None and len(names) != len(self.prompts):
            raise ValueError(f"Expected `names` for {len(self.prompts)} prompts, but got {len(names)}.")
        own = [f"prompt {c}" for c in range(len(prompts))] if isinstance(prompts, Tensor) else self.prompts
        self._names = tuple(str(name) for name in (own if names is None else names))
        self._text = PerNetwork()

    def columns(self) -> int:
        """The number of prompts."""
        return len(self.prompts)

    def names(self) -> tuple[str, ...]:
        """The names, otherwise the prompts."""
        return self._names

    def words(self, name: str) -> str:
        """The prompt, as the first template has it."""
        prompt = name
        if not isinstance(self.prompts, Tensor) and name in self._names:
            prompt = self.prompts[self._names.index(name)]
        return f"score of {self._filled(prompt)[0]!r}"

    def link_of(self, network: nn.Module) -> Link:
        """Sigmoid for a network with a bias, otherwise softmax."""
        return "softmax" if getattr(network, "logit_bias", None) is None else "sigmoid"

    def settings(self) -> dict[str, object]:
        """See `Scores.settings`."""
        named = super().settings()
        return {**named, "names": None if named["names"] is None else list(self._names)}

    def run(self, network: nn.Module, image: Tensor, **inputs: Any) -> ImageText:
        """The embeddings of images and prompts."""
        scale = getattr(network, "logit_scale", None)
        if not isinstance(scale, Tensor):
            raise ToldError(
                f"Expected an image-text network, as `scores` ZeroShot needs (CLIPModel or SiglipModel of transformers,"
                f" CLIP of open_clip), but {type(network).__name__} has no `logit_scale`."
            )
        u = F.normalize(embedding(network, image, **inputs), dim=1)
        text = self._text.get(network, lambda: self._embed(network))
        return ImageText(u, text.to(u), scale.exp(), getattr(network, "logit_bias", None))

    def __call__(self, output: ImageText) -> Tensor:
        """(B,C)."""
        scores = output.scale * output.image @ output.text.T
        return scores if output.bias is None else scores + output.bias

    def _filled(self, prompt: str) -> list[str]:
        return [prompt] if self.templates is None else [template.format(prompt) for template in self.templates]

    def _embed(self, network: nn.Module) -> Tensor:
        """(C,D) the texts' embeddings, each of length 1."""
        if isinstance(self.prompts, Tensor):
            return F.normalize(_text_embedding(network, self.prompts), dim=1)
        texts = [text for prompt in self.prompts for text in self._filled(prompt)]
        found = F.normalize(_text_embedding(network, self._tokens(network, texts)), dim=1)
        return F.normalize(found.view(len(self.prompts), -1, found.shape[1]).mean(1), dim=1)

    def _tokens(self, network: Any, texts: list[str]) -> Tensor | Mapping[str, Tensor]:
        if callable(self.tokenizer):
            return self.tokenizer(texts)
        if _is_open_clip(network) and self.tokenizer is None:
            from open_clip import SimpleTokenizer

            ids: Tensor = SimpleTokenizer(context_length=int(network.context_length))(texts)
            return ids
        from transformers import AutoTokenizer

        folder = str(expanded_path(self.tokenizer)) if self.tokenizer else str(getattr(network, "name_or_path", ""))
        if not folder:
            raise ToldError(
                f"Expected `tokenizer` of ZeroShot to be given, as {type(network).__name__} comes from no folder that "
                "has one: a folder or name for transformers' AutoTokenizer, or a function from texts to tokens."
            )
        length = network.config.text_config.max_position_embeddings
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # SigLIP was trained with texts filled up to the full length; CLIP does not see what follows the end.
        tokens: Mapping[str, Tensor] = tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return tokens


class Similarity(Scores):
    """How near the image's embedding u lies to reference embeddings v_c: the cosine ``S_c = <u, v_c> / (|u| |v_c|)``.

    The link is `cosine_share`, ``p = (1 + S) / 2``: an increasing function onto [0,1], so that Average Drop and the
    others are defined. It is no probability: p = 0.5 means that the two are orthogonal. In the space of a network whose
    embeddings all lie in a narrow cone, p is near 1 for any pair, and drops are small; insertion and deletion of S
    itself (``output="logit"``) do not depend on the link.

    Args:
        references: the paths of images, whose embeddings are the references; or images (C,3,H,W) with pixels in [0,1];
            or embeddings (C,D). "own": each image's embedding before anything is masked, for networks without any
            reference: what the image needs to keep its place. Its gradient at the image itself is 0, so it is for
            methods that mask.
        output: which of several outputs is the embedding, see `ClassLogits`. None: the image embedding of CLIP-like
            networks; `pooler_output` of transformers' networks; otherwise as for logits.
        names: one name for each reference; None: the files' names, or numbers.

    Raises:
        ValueError: no reference, or of another shape; another number of names; (when a classifier is made) a classifier
            that prepares images in another way already has these scores.
        FileNotFoundError: a path is not a file.
        ImageReadError: (when a classifier is made) a file is no image.

    Example:
        >>> scores = Similarity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> scores((torch.tensor([[3.0, 4.0]]), scores.vectors))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(self, references: Vectors, output: str | int | None = None, names: list[str] | None = None) -> None:
        self.given, self.output = references, output
        self.per_image = isinstance(references, str)
        self.default_link: Link = cosine_share
        self._embedded = PerNetwork()
        self._pixels: Tensor | None = None
        if isinstance(references, str):
            if references != "own":
                raise ValueError(f"Expected `references` to be own, or a list of images, but got {references!r}.")
            return
        self._check(references)
        if names is not None and len(names) != len(references):
            raise ValueError(f"Expected `names` for {len(references)} references, but got {len(names)}.")
        own = [f"reference {c}" for c in range(len(references))]
        own = own if isinstance(references, Tensor) else [Path(path).stem for path in references]
        self._names = tuple(own if names is None else names)

    @staticmethod
    def _check(references: Tensor | Sequence[str]) -> None:
        if not len(references):
            raise ValueError("Expected `references` of Similarity to be one at least, but got none.")
        if isinstance(references, Tensor):
            if references.ndim not in (2, 4):
                raise ValueError(
                    f"Expected `references` of Similarity to be embeddings (C, D) or images (C, 3, H, W), but got the "
                    f"shape {tuple(references.shape)}."
                )
            return
        for path in references:
            if not expanded_path(path).is_file():
                raise FileNotFoundError(f"There is no image {str(path)!r}, which `references` of Similarity names.")

    @property
    def vectors(self) -> Tensor | None:
        """(C,D) the references that were given as embeddings."""
        return self.given if isinstance(self.given, Tensor) and self.given.ndim == 2 else None

    def settings(self) -> dict[str, object]:
        """See `Scores.settings`; files are described by their names, and by their pixels once a classifier has them."""
        if isinstance(self.given, (str, Tensor)):
            return {**super().settings(), "references": plain(self.given)}
        pixels = {} if self._pixels is None else {"pixels": plain(self._pixels)}
        return {**super().settings(), "references": [Path(path).name for path in self.given], **pixels}

    def columns(self) -> int | None:
        """The number of references."""
        return super().columns() if self.per_image else len(self.given)

    def names(self) -> tuple[str, ...] | None:
        """The names of the references."""
        return None if self.per_image else self._names

    def words(self, name: str) -> str:
        """Similarity to the reference."""
        return f"similarity to {name}"

    def attach(self, classifier: Classifier) -> None:
        """Prepare the reference images as the classifier prepares its own."""
        if self.per_image or self.vectors is not None:
            return
        if classifier.inputs.given:
            raise ValueError(
                "Expected `references` of Similarity to be embeddings (C, D), as the network has other `inputs` beside "
                "the image and nobody says which belong to the reference images."
            )
        given = self.given
        images = given if isinstance(given, Tensor) else torch.stack([_read(path, classifier) for path in given])
        mean, std = (value.view(1, -1, 1, 1).to(images) for value in (classifier.mean, classifier.std))
        pixels = (images - mean) / std
        if self._pixels is not None and not _same_pixels(pixels, self._pixels):
            raise ValueError(
                "Expected `scores` of its own for each classifier that prepares images in its own way, but this "
                "Similarity belongs to a classifier of another `mean`, `std` or `input_size`: make another one of the "
                "same references."
            )
        self._pixels = pixels

    def run(self, network: nn.Module, image: Tensor, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """The embeddings of images (B,D) and references (C,D)."""
        u = self._embedding(network, image, **inputs)
        if self._pixels is None:
            return u, self.vectors
        pixels = self._pixels
        return u, self._embedded.get(network, lambda: self._embedding(network, pixels.to(image)))

    def _embedding(self, network: nn.Module, image: Tensor, **inputs: Any) -> Tensor:
        if self.output is not None:
            return part_of(network(image, **inputs), self.output)
        return embedding(network, image, **inputs)

    def __call__(self, output: tuple[Tensor, Tensor | None]) -> Tensor:
        """(B,C)."""
        u, v = output
        if self.per_image:
            v = self.bound.value
        if v is None:  # a number that depends on every dimension
            return u.logsumexp(1, keepdim=True)
        if u.ndim != 2 or u.shape[1] != v.shape[1]:
            raise ValueError(
                f"Expected embeddings (B, {v.shape[1]}), like the references of Similarity, but the network returns "
                f"the shape {tuple(u.shape)}."
            )
        return F.normalize(u, dim=1) @ F.normalize(v.to(u), dim=1).T

    @contextmanager
    def references(self, classifier: Classifier, batch: Mapping[str, Any]) -> Iterator[References | None]:
        """Bind the images' own embeddings, for "own"."""
        if not self.per_image:
            yield None
            return
        with torch.no_grad():
            own = classifier.output(batch["image"])[0]
        with self.bound.to(own.detach()):
            yield References(("similarity to the unmasked image",) * len(own))


def cosine_share(scores: Tensor) -> Tensor:
    """The link of cosines, ``(1 + S) / 2``.

    Example:
        >>> cosine_share(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return ((1 + scores) / 2).clamp(0, 1)


def embedding(network: nn.Module, image: Tensor, **inputs: Any) -> Tensor:
    """(B,D) the image embedding of a network; see `Similarity`.

    Args:
        network: CLIP-like networks are asked for their image embedding; others are called.
        image: (B,3,H,W), normalized.
        inputs: other inputs of the network.
    """
    if _is_open_clip(network):
        output: Any = network.encode_image(image)  # type: ignore[operator]
    elif callable(own := getattr(network, "get_image_features", None)):
        output = own(pixel_values=image, **inputs)
    else:
        output = network(image, **inputs)
    return _pooled(output)


def _text_embedding(network: nn.Module, tokens: Tensor | Mapping[str, Tensor]) -> Tensor:
    """(C,D) before its length is made 1."""
    device = next(network.parameters()).device
    if _is_open_clip(network):
        ids = tokens if isinstance(tokens, Tensor) else tokens["input_ids"]
        return _pooled(network.encode_text(ids.to(device)))  # type: ignore[operator]
    inputs = {"input_ids": tokens} if isinstance(tokens, Tensor) else dict(tokens)
    return _pooled(network.get_text_features(**{key: value.to(device) for key, value in inputs.items()}))  # type: ignore[operator]


def _pooled(output: Any) -> Tensor:
    pooled = getattr(output, "pooler_output", None)  # transformers from version 5 on
    pooled = pooled if isinstance(pooled, Tensor) else logits_of(output)
    if pooled.ndim == 4 and pooled.shape[2:] == (1, 1):
        pooled = pooled.flatten(1)
    return pooled.float() if pooled.dtype in (torch.float16, torch.bfloat16) else pooled


def _same_pixels(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours))


def _is_open_clip(network: nn.Module) -> bool:
    return any(cls.__module__.partition(".")[0] == "open_clip" for cls in type(network).__mro__)


def _read(path: str, classifier: Classifier) -> Tensor:
    """(3,H,W) in [0,1], stretched to the classifier's size."""
    return Preprocessing(classifier.input_size, interpolation=classifier.interpolation)(read_image(path))


def _checked_texts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not len(prompts):
        what = "one text" if isinstance(prompts, str) else "none"
        raise ValueError(f"Expected `prompts` of ZeroShot to be a list of texts, one for each class, but got {what}.")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"Expected `prompts` of ZeroShot to be texts, but number {number} is {prompt!r}.")
        if not prompt.strip():
            raise ValueError(f"Expected `prompts` of ZeroShot to be texts, but number {number} is empty.")
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if list(prompts).count(prompt) > 1)
        raise ValueError(f"Expected different `prompts` of ZeroShot, but {twice!r} occurs twice.")
    return list(prompts)


def _checked_templates(templates: Sequence[str] | None, prompts: object) -> list[str] | None:
    if templates is None:
        return None
    if isinstance(prompts, Tensor):
        raise ValueError(  # noqa: TRY004  # the prompts are fine, the two together are not
            "Expected `templates` to be left out, as `prompts` of ZeroShot are tokens."
        )
    if isinstance(templates, str) or not len(templates):
        raise ValueError(f"Expected `templates` of ZeroShot to be a list of texts with {{}}, but got {templates!r}.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"Expected `templates` of ZeroShot to have {{}} once each, but got {template!r}.")
    return list(templates)
