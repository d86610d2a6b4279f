"""Real photographs that need no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from optcam_pl.data.base import ImageDataModule
from optcam_pl.data.batch import Entry

_PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png")


class SamplePhotos(ImageDataModule):
    """Five photographs from scikit-image's package: a cat, coffee, a rocket, an astronaut, a motorcycle.

    They have no labels. Nothing is downloaded, and scikit-image itself is not imported.

    Args:
        **kwargs: of ImageDataModule.

    Raises:
        ImportError: (in `setup`) scikit-image is not installed.
    """

    def looked_for(self) -> str:
        """The files' names."""
        return f"the photographs {', '.join(_PHOTOGRAPHS)} in scikit-image's data folder"

    def entries(self) -> list[Entry]:
        """The photographs; the id is the file's name."""
        spec = find_spec("skimage")
        if spec is None or spec.origin is None:
            raise ImportError("SamplePhotos needs scikit-image's photographs: pip install optcam_pl[demo]")
        folder = Path(spec.origin).parent / "data"
        return [Entry(name, str(folder / name)) for name in _PHOTOGRAPHS if (folder / name).is_file()]
