"""The kernels themselves, in Triton's language; see `optcam_pl.kernels` for what they compute.

Importing this needs Triton, which PyTorch brings along where it supports it. With TRITON_INTERPRET=1 in the environment
the same code runs on a CPU, slowly; the tests use that.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def masked(
    image, mask, under, mean, std, out,
    pixels, items, image_row, mask_row, mask_item, under_row, under_channel, under_pixel,
    CHANNELS: tl.constexpr, UNDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One image under one mask, normalized, rounded to the network's type, in channels-last order.

    A program writes BLOCK numbers of one row of `out`, one after the other: those of a pixel's channels are neighbors.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels * CHANNELS
    pixel, channel = at // CHANNELS, at % CHANNELS
    b, item = row // items, row % items
    x = tl.load(image + b * image_row + channel * pixels + pixel, mask=inside, other=0.0)
    m = tl.load(mask + b * mask_row + item * mask_item + pixel, mask=inside, other=0.0)
    if UNDER:
        below = under + b * under_row + channel * under_channel + pixel * under_pixel
        r = tl.load(below, mask=inside, other=0.0)
        x = r + (x - r) * m
    else:
        x = x * m
    x = (x - tl.load(mean + channel, mask=inside, other=0.0)) / tl.load(std + channel, mask=inside, other=1.0)
    tl.store(out + row * pixels * CHANNELS + at, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def masked_gradient(
    grad, image, under, std, out,
    pixels, items, image_row, under_row, under_channel, under_pixel,
    CHANNELS: tl.constexpr, UNDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of `masked` to its mask: over the channels, the sum of ``grad (x - reference) / std``."""
    row = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    b = row // items
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for channel in tl.static_range(CHANNELS):
        g = tl.load(grad + (row * pixels + pixel) * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(image + b * image_row + channel * pixels + pixel, mask=inside, other=0.0)
        if UNDER:
            below = under + b * under_row + channel * under_channel + pixel * under_pixel
            x = x - tl.load(below, mask=inside, other=0.0)
        total += g * x / tl.load(std + channel)
    tl.store(out + row * pixels + pixel, total, mask=inside)


@triton.jit
def speaks(low, high, noise, tiny):
    """As `optcam_pl.maps.degenerate`, the other way round; false where a value is not finite."""
    span = high - low
    return (span < float("inf")) & (span > noise * tl.maximum(tl.abs(low), tl.abs(high))) & (span > tiny)


@triton.jit
def stretch(
    full, low, high, maps, silent, out, says_nothing, pixels, cells, noise, tiny,
    CELLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``(A - min)/(max - min)``, and 0 for a map that says nothing, before or after it was upsampled.

    Each program looks at all cells of the map before upsampling again: they are few, and the cache has them. A map of
    many cells is represented by its two extremes.
    """
    row = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    cell = tl.arange(0, CELLS)
    part = tl.load(maps + row * cells + cell, mask=cell < cells, other=0.0)
    finite = tl.sum(tl.where((cell < cells) & ((part - part) != 0.0), 1, 0), 0) == 0
    smallest = tl.min(tl.where(cell < cells, part, float("inf")), 0)
    largest = tl.max(tl.where(cell < cells, part, float("-inf")), 0)
    said = finite & speaks(smallest, largest, noise, tiny) & (tl.load(silent + row) == 0)
    lowest, highest = tl.load(low + row), tl.load(high + row)
    valid = speaks(lowest, highest, noise, tiny) & said
    span = tl.where(valid, highest - lowest, 1.0)
    value = tl.load(full + row * pixels + pixel, mask=inside, other=0.0)
    tl.store(out + row * pixels + pixel, tl.where(valid, (value - lowest) / span, 0.0), mask=inside)
    tl.store(says_nothing + row, (said == 0).to(tl.int8), mask=tl.program_id(1) == 0)


@triton.jit
def stretch_sums(grad, full, low, high, mapped, sums, pixels, blocks, BLOCK: tl.constexpr):
    """What `stretch_gradient` needs of a whole image, for one block of its pixels: five sums, (B,blocks,8)."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    g = tl.load(grad + row * pixels + pixel, mask=inside, other=0.0)
    m = tl.load(mapped + row * pixels + pixel, mask=inside, other=0.0)
    value = tl.load(full + row * pixels + pixel, mask=inside, other=float("nan"))
    at = sums + (row * blocks + block) * 8
    tl.store(at, tl.sum(g, 0))
    tl.store(at + 1, tl.sum(g * m, 0))
    tl.store(at + 2, tl.sum((value == tl.load(low + row)).to(tl.float32), 0))
    tl.store(at + 3, tl.sum((value == tl.load(high + row)).to(tl.float32), 0))
    tl.store(at + 4, tl.max(m, 0))


@triton.jit
def stretch_gradient(grad, full, low, high, sums, out, pixels, blocks, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of `stretch` to the upsampled map.

    The extremes are functions of the map, too; where several pixels have the extreme value, they share its gradient.
    """
    row = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, BLOCKS)
    at = sums + (row * blocks + each) * 8
    of_all = tl.sum(tl.load(at, mask=each < blocks, other=0.0), 0)
    of_weighed = tl.sum(tl.load(at + 1, mask=each < blocks, other=0.0), 0)
    minima = tl.sum(tl.load(at + 2, mask=each < blocks, other=0.0), 0)
    maxima = tl.sum(tl.load(at + 3, mask=each < blocks, other=0.0), 0)
    valid = tl.max(tl.load(at + 4, mask=each < blocks, other=0.0), 0) > 0  # a map that says nothing is 0 everywhere
    lowest, highest = tl.load(low + row), tl.load(high + row)
    span = tl.where(valid, highest - lowest, 1.0)
    to_low = (of_weighed - of_all) / span / tl.maximum(minima, 1.0)
    to_high = -of_weighed / span / tl.maximum(maxima, 1.0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    g = tl.load(grad + row * pixels + pixel, mask=inside, other=0.0)
    value = tl.load(full + row * pixels + pixel, mask=inside, other=0.0)
    result = g / span + tl.where(value == lowest, to_low, 0.0) + tl.where(value == highest, to_high, 0.0)
    tl.store(out + row * pixels + pixel, tl.where(valid, result, 0.0), mask=inside)


@triton.jit
def judge(F, size, kept, still, active, fresh, tol, half_eps, count, patience, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """The stop rule of `optcam_pl.explainers.ascent.Ascent`, for all images in one program."""
    row = tl.arange(0, BLOCK)
    inside = row < count
    value = tl.load(F + row, mask=inside, other=0.0)
    before = tl.load(kept + row, mask=inside, other=0.0)
    first = tl.load(fresh) != 0
    movement = tl.abs(value - before)
    threshold = tol
    if EPS:
        threshold = tl.maximum(half_eps * tl.maximum(tl.load(size + row, mask=inside, other=0.0), tl.abs(value)), tol)
    moved = (movement >= threshold) | first
    stood = tl.where(moved, 0, tl.load(still + row, mask=inside, other=0) + 1)
    goes_on = ((stood < patience) & (movement >= 0)) | first
    tl.store(still + row, stood, mask=inside)
    tl.store(kept + row, tl.where(moved, value, before), mask=inside)
    was = tl.load(active + row, mask=inside, other=0) != 0
    tl.store(active + row, (was & goes_on).to(tl.int8), mask=inside)
    tl.debug_barrier()  # all have read it
    tl.store(fresh, tl.zeros([1], dtype=tl.int8).sum(0))
