"""Scores of masked images, which most methods and metrics ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optcam_pl import kernels
from optcam_pl.maps import mask_image

if TYPE_CHECKING:
    from optcam_pl.network.speed import FasterNetwork


class TakesMasks:
    """The part of `Classifier` that masks images; it reads the classifier's settings."""

    network: nn.Module
    mean: Tensor
    std: Tensor
    fast: FasterNetwork | None
    __call__: Callable[..., Any]

    def masked(self, image: Tensor, masks: Tensor, reference: Tensor | None = None) -> Tensor:
        """Scores of images under masks, as of ``self(mask_image(image, masks, reference))``.

        With a `speed` that replays, images are masked and normalized on a GPU by one kernel; the last digits differ.

        Args:
            image: (B,C,H,W) floating-point pixels in [0,1], not normalized.
            masks: (B,k,H,W) in [0,1], k masks of each image.
            reference: what masking fades into, broadcasts to (B,C,H,W); None is black.

        Returns:
            (B k,classes): the scores under the masks of the first image, then those of the next.

        Raises:
            TypeError, ValueError, NetworkError: as for a call.
        """
        if self.fuses(image) and not any(given.requires_grad for given in (image, reference) if given is not None):
            dtype = self.network_dtype or image.dtype
            given = kernels.masked_input(image, masks.float(), reference, self.mean, self.std, dtype)
            return self._scored(self._from_network(given), given)
        if masks.shape[1] == 1:
            masked = mask_image(image, masks, reference)
        else:
            under = None if reference is None else reference.unsqueeze(1)
            masked = mask_image(image.unsqueeze(1), masks.unsqueeze(2), under).flatten(0, 1)
        scores: Tensor = self(masked)
        return scores

    def fuses(self, image: Tensor) -> bool:
        """Whether what surrounds passes of such images is done by `optcam_pl.kernels`."""
        fast = self.fast is not None and self.fast.speed in ("graph", "auto")
        return fast and image.dtype == torch.float32 and kernels.usable(image.device)

    @property
    def network_dtype(self) -> torch.dtype | None:
        """The floating-point type of the network's first weights; None if it has none."""
        return next((value.dtype for value in self.network.parameters() if value.is_floating_point()), None)

    def _from_network(self, image: Tensor) -> Any:
        """What the network returns for normalized images of its dtype."""
        raise NotImplementedError

    def _scored(self, output: Any, image: Tensor) -> Tensor:
        """The scores in an output of the network for such images."""
        raise NotImplementedError
