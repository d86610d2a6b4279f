"""The lines from a photograph to a saved overlay at its own size: here, in pytorch-grad-cam, and in torchcam.

Each function holds the whole program. All three explain EfficientNet-Lite0 with ImageNet weights, from the demo extra,
by Grad-CAM. The others want a bare network that is not frozen, and leave the preprocessing to the user. With a network
of torchvision, their first line would be `torchvision.models.resnet50(weights="DEFAULT")`.

Run: python docs/lines_to_an_overlay.py PHOTO FOLDER   (needs the extras demo and peers)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path


def ours(photo: str, output: str) -> None:
    """The program with this package."""
    import optcam_pl

    classifier = optcam_pl.Classifier("demo/efficientnet_lite0")
    optcam_pl.explain(classifier, photo, "GradCAM").overlay().save(output)


def with_grad_cam(photo: str, output: str) -> None:
    """The program with pytorch-grad-cam."""
    import numpy as np
    from PIL import Image
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import preprocess_image, show_cam_on_image

    import optcam_pl

    network = optcam_pl.Classifier("demo/efficientnet_lite0").network.requires_grad_(True)
    image = Image.open(photo).convert("RGB")
    pixels = np.float32(image) / 255
    batch = preprocess_image(np.float32(image.resize((224, 224))) / 255, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    with GradCAM(model=network, target_layers=[network.bn2]) as cam:
        saliency = cam(batch, targets=None)[0]
    saliency = np.array(Image.fromarray(saliency).resize(image.size))
    Image.fromarray(show_cam_on_image(pixels, saliency, use_rgb=True)).save(output)


def with_torchcam(photo: str, output: str) -> None:
    """The program with torchcam."""
    from PIL import Image
    from torchcam.methods import GradCAM
    from torchcam.utils import overlay_mask
    from torchvision.transforms.functional import normalize, resize, to_pil_image, to_tensor

    import optcam_pl

    network = optcam_pl.Classifier("demo/efficientnet_lite0").network.requires_grad_(True)
    image = Image.open(photo).convert("RGB")
    batch = normalize(resize(to_tensor(image), [224, 224]), [127 / 255] * 3, [128 / 255] * 3)[None]
    with GradCAM(network, "bn2") as extractor:
        scores = network(batch)
        saliency = extractor(scores.argmax().item(), scores)[0]
    overlay_mask(image, to_pil_image(saliency.squeeze(0), mode="F"), alpha=0.5).save(output)


PROGRAMS: dict[str, Callable[[str, str], None]] = {
    "optcam_pl": ours,
    "pytorch-grad-cam": with_grad_cam,
    "torchcam": with_torchcam,
}


def lines(program: Callable[[str, str], None]) -> int:
    """The number of lines of a program; the docstring and empty lines do not count."""
    body = [line for line in inspect.getsource(program).splitlines()[2:] if line.strip()]
    return len(body)


def main(photo: str, folder: str) -> None:
    """Run each program and print its number of lines."""
    for name, program in PROGRAMS.items():
        program(photo, str(Path(folder, f"{name}.png")))
        print(f"{name}: {lines(program)} lines")


if __name__ == "__main__":
    main(*sys.argv[1:])
