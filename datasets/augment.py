"""Random resized crop, flip and normalisation of a whole batch, in one resampling.

The crops have torchvision's distribution (`RandomResizedCrop.get_params`), but every number is a
hash of (seed, epoch, index): an image's crop does not depend on the batch, the worker or the point
at which a killed run was started again. Resampling is bilinear and antialiased as in torchvision's
`resized_crop(..., antialias=True)`: where a crop is enlarged the two agree with plain bilinear
interpolation, where it is reduced the triangle filter is widened by the reduction.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

SCALE = (0.08, 1.0)  # share of the image's area, torchvision's default
RATIO = (3 / 4, 4 / 3)  # width over height, torchvision's default
TRIES = 10  # torchvision gives up after ten and takes the centre

cv2.setNumThreads(1)  # the loader's threads are the parallelism; a second pool would fight them

# One counter per random number of an image in an epoch; the crop's tries follow FIRST_TRY.
ORDER, FLIP, FIRST_TRY = 0, 1, 2


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) on uint64, modulo 2**64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, epoch: int, indices: np.ndarray, draw: int) -> np.ndarray:
    """float64 [B] in [0, 1): random number `draw` of each index (int [B]) in this epoch."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = np.zeros(1, np.uint64)
    for part in (np.array([seed & (2**64 - 1)]), [epoch], indices, [draw]):
        key = _mix(key + golden + np.asarray(part).astype(np.uint64))
    return (key >> np.uint64(11)) * 2.0**-53


def shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    """int64 [count]: a permutation of range(count), the order of a training epoch."""
    return np.argsort(uniform(seed, epoch, np.arange(count), ORDER), kind="stable")


def evenly(seed: int, epoch: int, groups: np.ndarray) -> np.ndarray:
    """int64 [N]: an epoch that takes the groups of N samples (int [N]) in turn, so that every batch
    holds as many of each. Draw d is the sample d % N: one of a group that is drawn again in the
    epoch has other draws, and so other crops."""
    labels, draws = np.unique(groups), np.empty(len(groups), np.int64)
    for place, label in enumerate(labels):
        rows, part = np.flatnonzero(groups == label), draws[place :: len(labels)]
        times = np.arange(-(-len(part) // len(rows)))  # each time in another order
        again = rows + len(groups) * times[:, None]
        order = np.argsort(uniform(seed, epoch, again.ravel(), ORDER).reshape(again.shape), axis=1)
        part[:] = np.take_along_axis(again, order, axis=1).ravel()[: len(part)]
    return draws


def flip_mask(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """bool [B]: which images are mirrored, each with probability one half."""
    return uniform(seed, epoch, indices, FLIP) < 0.5


def crop_boxes(
    seed: int,
    epoch: int,
    indices: np.ndarray,
    height: int | np.ndarray,
    width: int | np.ndarray,
    smallest: float = SCALE[0],
) -> np.ndarray:
    """int64 [B, 4], rows (top, left, height, width): torchvision's RandomResizedCrop.get_params.

    `indices` int [B]; `height` and `width` of the images, one number or [B] each; `smallest` share
    of an image's area, in (0, 1]. A row depends on (seed, epoch, index, image size) alone.
    """
    indices = np.asarray(indices, np.int64)
    height = np.broadcast_to(np.asarray(height, np.int64), indices.shape)
    width = np.broadcast_to(np.asarray(width, np.int64), indices.shape)
    boxes = _centre_boxes(height, width)
    left = np.arange(len(indices))  # the rows that have no box yet
    for trial in range(TRIES):
        if not len(left):
            break
        rows, big_h, big_w = indices[left], height[left], width[left]
        area, ratio, top, side = (
            uniform(seed, epoch, rows, FIRST_TRY + 4 * trial + part) for part in range(4)
        )
        area = big_h * big_w * (smallest + (SCALE[1] - smallest) * area)
        ratio = np.exp(np.log(RATIO[0]) + (np.log(RATIO[1]) - np.log(RATIO[0])) * ratio)
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= big_w) & (h > 0) & (h <= big_h)
        top = np.floor(top * (big_h - h + 1)).astype(np.int64)
        side = np.floor(side * (big_w - w + 1)).astype(np.int64)
        boxes[left[fits]] = np.stack([top, side, h, w], axis=1)[fits]
        left = left[~fits]
    return boxes


def _centre_boxes(height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """int64 [B, 4]: the largest centred box whose ratio is allowed, for when no try fits."""
    narrow, broad = width / height < RATIO[0], width / height > RATIO[1]
    h = np.where(narrow, np.rint(width / RATIO[0]), height).astype(np.int64)
    w = np.where(broad, np.rint(height * RATIO[1]), width).astype(np.int64)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)


def resample_cpu(
    images: Sequence[np.ndarray],
    boxes: np.ndarray,
    flips: np.ndarray,
    size: int,
    *,
    normalised: bool = False,
) -> np.ndarray:
    """Crop each image to its box, mirror where `flips` says, resize to size x size.

    `images`: B arrays uint8 [H, W, 3], their sizes may differ; `boxes` int [B, 4] as from
    crop_boxes; `flips` bool [B]. Returns uint8 [B, size, size, 3], or with `normalised` float32 in
    [-1, 1] (mean = std = 0.5), converted image by image while it is in the processor's cache.
    """
    # np.empty, not torch.empty: NumPy asks for huge pages, and first touching 4 KiB pages one by
    # one costs 350 us an image at 224, four times the resampling (measured).
    dtype = np.float32 if normalised else np.uint8
    out = np.empty((len(images), size, size, 3), dtype)
    scratch = np.empty((size, size, 3), np.uint8)
    for i, image in enumerate(images):
        top, left, h, w = boxes[i].tolist()
        target = scratch if normalised else out[i]
        _resize(image[top : top + h, left : left + w], bool(flips[i]), target)
        if normalised:
            cv2.addWeighted(scratch, 2 / 255, scratch, 0, -1, dst=out[i], dtype=cv2.CV_32F)
    return out


def _resize(crop: np.ndarray, flip: bool, target: np.ndarray) -> None:
    """Resize uint8 `crop` [h, w, 3], mirrored or not, into the contiguous uint8 `target`."""
    size = target.shape[:2]
    if crop.shape[0] <= size[0] and crop.shape[1] <= size[1]:
        crop = cv2.flip(crop, 1) if flip else crop
        cv2.resize(crop, size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
        return
    # OpenCV's INTER_AREA is not torchvision's filter (1.2/255 away on average, up to 4.7, at
    # 178x218 -> 64) and no faster than PyTorch's uint8 kernel, which is the same filter.
    if flip:
        crop = crop[:, ::-1]
    batch = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]
    result = F.interpolate(batch, size, mode="bilinear", antialias=True)
    target[:] = result[0].permute(1, 2, 0).numpy()


def resample_device(
    images: torch.Tensor, boxes: torch.Tensor, flips: torch.Tensor, size: int
) -> torch.Tensor:
    """Crop, mirror, resize and normalise a batch on its device in one pass.

    `images` uint8 [B, H, W, 3]; `boxes` int64 [B, 4] and `flips` bool [B] on the same device.
    Returns float32 [B, 3, size, size] in [-1, 1], channels_last.

    Antialiased bilinear resampling is separable, so the batch is two batched matrix products with
    the weights of its boxes: right for enlarging and reducing alike (grid_sample is not), at 0.1
    GFLOP an image from 178x218 to 224. On a GPU they run in float16: 0..255 is exact there and the
    rounding of weights and sums stays under half a grey level.
    """
    count, height, width, _ = images.shape
    dtype = torch.float16 if images.device.type == "cuda" else torch.float32
    never = torch.zeros_like(flips)
    rows = _weights(boxes[:, 0], boxes[:, 2], never, size, height).to(dtype)  # [B, S, H]
    columns = _weights(boxes[:, 1], boxes[:, 3], flips, size, width).to(dtype)  # [B, S, W]
    x = images.permute(0, 1, 3, 2).to(dtype, memory_format=torch.contiguous_format)
    x = torch.bmm(x.reshape(count, height * 3, width), columns.transpose(1, 2))  # [B, H*3, S]
    x = torch.bmm(rows, x.reshape(count, height, 3 * size))  # [B, S, 3*S]
    x = x.reshape(count, size, 3, size).permute(0, 2, 1, 3)
    return normalise(x)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] with values 0..255 -> float32 in [-1, 1] (mean = std = 0.5), channels_last."""
    x = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
    return x.copy_(images).mul_(2 / 255).sub_(1)


Standard = tuple[torch.Tensor, torch.Tensor]  # scale and shift, float32 [3, 1, 1]


def standardisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, device: torch.device
) -> Standard | None:
    """What turns images normalised with mean = std = 0.5 into images normalised with these three
    of each; None where these are 0.5, too."""
    mean, std = mean or (0.5,) * 3, std or (0.5,) * 3
    if {*mean, *std} == {0.5}:
        return None
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (mean, std))
    return ((0.5 / std).float().to(device), ((0.5 - mean) / std).float().to(device))


def standardised(x: torch.Tensor, standard: Standard) -> torch.Tensor:
    """float32 [B, 3, H, W] in [-1, 1], overwritten: x * scale + shift."""
    scale, shift = standard
    return x.mul_(scale).add_(shift)


def _weights(
    start: torch.Tensor, extent: torch.Tensor, flips: torch.Tensor, size: int, length: int
) -> torch.Tensor:
    """float32 [B, size, length]: how much each source pixel adds to each target pixel.

    The triangle filter of PIL and torchvision, its half-width max(1, extent / size) pixels, cut at
    the box [start, start + extent) and made to sum to one, which repeats the box's edge pixels.
    """
    target = torch.arange(size, device=start.device)
    target = torch.where(flips[:, None], size - 1 - target, target)  # [B, size]
    source = torch.arange(length, device=start.device)
    scale = (extent / size)[:, None]  # [B, 1]
    centre = start[:, None] + (target + 0.5) * scale
    distance = (source + 0.5 - centre[:, :, None]).abs_()
    weights = (1 - distance / scale.clamp(min=1)[:, :, None]).clamp_(min=0)
    inside = (source >= start[:, None]) & (source < (start + extent)[:, None])  # [B, length]
    weights *= inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)
