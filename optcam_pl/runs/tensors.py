"""The tensors of a run, in safetensors files with a checksum: the weights of a `fit`, the curves of a `test`."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors
from torch import Tensor, uint8

from optcam_pl.checks import expanded_path
from optcam_pl.runs.files import RunFolderError, write_file
from optcam_pl.runs.manifest import check_fingerprint, read_manifest
from optcam_pl.runs.rows import Row

# What a map depends on if its weights are given. The rest of a fingerprint (metrics, versions, ...) may differ.
FINGERPRINT_KEYS = ("classifier", "explainer", "target", "baseline", "data", "block_size")
_CHECKSUM = "crc32"


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors from any device to a safetensors file, atomically.

    A checksum of the metadata and of the tensors' names and values is added to the metadata.

    Raises:
        RunFolderError: If the file cannot be written.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    words = dict(metadata or {})
    write_file(path, _save_tensors(own, {**words, _CHECKSUM: _checksum(own, words)}))


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    value = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(uint8).numpy().data, value)
    return f"{value:08x}"


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        RunFolderError: If the file is missing or damaged; the checksum detects any changed bit.
    """
    try:
        data = Path(path).read_bytes()
        tensors = _load_tensors(data)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"Cannot read {path}: {error}.") from error
    # A safetensors file begins with the length of its header, 8 bytes, and the header, which is JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    if metadata.pop(_CHECKSUM, None) not in (None, _checksum(tensors, metadata)):
        raise RunFolderError(f"Cannot read {path}: its checksum does not match.")
    return tensors, metadata


def _file(run_dir: Path, block: int) -> Path:
    return run_dir / "weights" / f"b{block:06d}.safetensors"


def save_weights(run_dir: Path, block: int, ids: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Store the results of an optimizing explainer for a block: `weights` (B,K), `objective` (T+1,B), `target` (B,).

    Args:
        run_dir: the run folder of the fit.
        block: the number of the block in the dataset.
        ids: the ids of the B images.
        tensors: the three tensors.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    save_tensors(_file(run_dir, block), tensors, {"ids": json.dumps(list(ids))})


def lacking_weights(run_dir: Path, rows: Iterable[Row], block_size: int) -> set[int]:
    """The indices of images with a row whose block has no complete weight file; images with an error need none."""

    @cache
    def whole(block: int) -> bool:
        try:
            return bool(load_tensors(_file(run_dir, block))[0])
        except RunFolderError:
            return False

    return {row.index for row in rows if row.status != "error" and not whole(row.index // block_size)}


class StoredWeights:
    """Reads what `save_weights` wrote.

    Args:
        run_dir: the run folder of a finished `fit`.

    Raises:
        RunFolderError: this is not a run folder; the message names the argument `weights_from`.
        ValueError: the run is not a `fit`.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = expanded_path(run_dir)
        try:
            self.manifest = read_manifest(self.run_dir)
        except RunFolderError as error:
            raise RunFolderError(
                f"Expected `weights_from` to be the run folder of an `optcam fit`, but: {error}"
            ) from error
        if self.manifest["stage"] != "fit":
            raise ValueError(
                f"Expected `weights_from` to be the run folder of an `optcam fit`, but {run_dir} is one of an "
                f"`optcam {self.manifest['stage']}`."
            )

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse weights that were found under other settings.

        Raises:
            FingerprintMismatch: a key differs; the message names each.
        """
        what = f"The fit in {self.run_dir}"
        check_fingerprint(_of_weights(self.manifest["fingerprint"]), _of_weights(fingerprint), what)

    def block(self, block: int, ids: Sequence[str], target: Tensor) -> Tensor:
        """The weights (B,K) of the images of a block, on the CPU.

        The file may contain more: older versions also fitted the padding of a last block (named "") and black images in
        place of those that could not be read.

        Args:
            block: the number of the block in the dataset.
            ids: the ids of the B images.
            target: (B,) the classes of the images.

        Raises:
            ValueError: the block was not fitted, or not for these images or targets.
        """
        path = _file(self.run_dir, block)
        if not path.is_file():
            raise ValueError(
                f"Expected the weights of block {block} (first image {ids[0]!r}) in {path}, but this file is missing."
            )
        stored, metadata = load_tensors(path)
        place = {image_id: i for i, image_id in enumerate(json.loads(metadata["ids"]))}
        if unknown := [image_id for image_id in ids if image_id not in place]:
            raise ValueError(f"{path} has no weights for {', '.join(unknown)}.")
        chosen = [place[image_id] for image_id in ids]
        if not torch.equal(stored["target"][chosen], target.cpu()):
            raise ValueError(
                f"{path} holds the weights for the classes {stored['target'][chosen].tolist()}, not {target.tolist()}."
            )
        return stored["weights"][chosen]


def save_curves(run_dir: Path, block: int, ids: Sequence[str], curves: Mapping[str, Tensor]) -> None:
    """Store the curves (n,T) of the n images of a block, by metric.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    path = run_dir / "curves" / f"b{block:06d}.safetensors"
    save_tensors(path, {key: curve.contiguous() for key, curve in curves.items()}, {"ids": json.dumps(list(ids))})


def mean_curves(run_dir: Path) -> dict[str, tuple[Tensor, Tensor, int]]:
    """The mean (T,), half the width of its 95 % band (T,) and the number of images of a run's curves, by metric.

    Images without a defined curve are left out. The band is that of a normal mean, and NaN for a single image.
    """
    found: dict[str, list[Tensor]] = {}
    for path in sorted((run_dir / "curves").glob("b*.safetensors")):
        for key, curve in load_tensors(path)[0].items():
            found.setdefault(key, []).append(curve.double())
    means = {}
    for key, parts in found.items():
        curves = torch.cat(parts)
        curves = curves[curves.isfinite().all(1)]
        if len(curves):
            spread = curves.std(0) if len(curves) > 1 else torch.full_like(curves[0], torch.nan)
            means[key] = (curves.mean(0), 1.959964 * spread / math.sqrt(len(curves)), len(curves))
    return means


def _of_weights(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on, which excludes the exponent of the map that is made of them."""
    chosen = {key: fingerprint.get(key) for key in FINGERPRINT_KEYS}
    explainer = {key: value for key, value in (chosen["explainer"] or {}).items() if key != "selectivity"}
    return {**chosen, "explainer": explainer}
