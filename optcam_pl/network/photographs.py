"""What a classifier does with a photograph of any size before it is an image of the network's input."""

from __future__ import annotations

from torch import Tensor

from optcam_pl.photos import AnyPhoto, Interpolation, Photo, Preprocessing, Resize, prepare


class TakesPhotos:
    """The part of `Classifier` that turns photographs into images; it reads the classifier's settings."""

    mean: Tensor
    input_size: tuple[int, int]
    interpolation: Interpolation
    crop_fraction: float
    channels: int
    rgb_channels: tuple[int, ...] | None

    def preprocessing(self, resize: Resize = "stretch") -> Preprocessing:
        """How photographs of any size become images of `input_size`, by the classifier's own settings.

        Args:
            resize: "stretch" to this size, as the datasets do by default, or "crop": the middle `crop_fraction` of the
                resized image, as most networks are evaluated.
        """
        return Preprocessing(self.input_size, resize, self.crop_fraction, self.interpolation)

    def preprocess(self, photo: AnyPhoto, resize: Resize = "stretch") -> Tensor:
        """Turn photographs of any size into images to call the classifier or an explainer with.

        Args:
            photo: a PIL image, the path or the bytes of an image file, an array (H,W,3) of uint8 or of floats in
                [0,1], or a tensor (3,H,W) of either; or several, as a list, an array (B,H,W,3) or a tensor (B,3,H,W).
                For a network whose images have other `channels`, arrays and tensors of that many; for one channel, all
                photographs, which become gray.
            resize: see `preprocessing`.

        Returns:
            (B,channels,H,W) float32 in [0,1] of `input_size`, not normalized, on the classifier's device.

        Raises:
            TypeError: it is nothing that a photograph can be read from.
            ValueError: shape or pixels are not those of a photograph, or a file cannot be read.
        """
        return self.prepared(photo, resize)[0]

    def prepared(self, photo: AnyPhoto, resize: Resize = "stretch") -> tuple[Tensor, list[Photo]]:
        """The images of `preprocess`, and the photographs to draw on."""
        images, photos = prepare(photo, self.preprocessing(resize), self.channels, self.rgb_channels)
        return images.to(self.mean.device), photos

    def shown(self, image: Tensor) -> Tensor:
        """The channels (C,H,W) of an image that a picture shows: the `rgb_channels`, if they are given."""
        return image if self.rgb_channels is None else image[list(self.rgb_channels)]
