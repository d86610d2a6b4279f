"""The 1000 classes of ImageNet's ILSVRC 2012 challenge, in the order in which every published network numbers them."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def _rows() -> tuple[tuple[str, str], ...]:
    """The packaged table: (wnid, name) by class index. Sources: timm's wnids, torchvision's category names."""
    text = files("optcam_pl").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    return tuple((wnid, name) for wnid, name in rows)


@lru_cache(maxsize=1)
def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes, sorted, so that a class's index is its wnid's rank.

    Example:
        >>> wnids = imagenet_wnids()
        >>> len(wnids), wnids[0], wnids.index("n02123045")
        (1000, 'n01440764', 281)
    """
    return tuple(wnid for wnid, _ in _rows())


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """Short English names of the 1000 classes, each of them unique, by class index.

    Example:
        >>> imagenet_names()[281], imagenet_names()[999]
        ('tabby', 'toilet tissue')
    """
    return tuple(name for _, name in _rows())
