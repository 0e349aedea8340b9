"""Training the embedded reader from scratch: first its eyes on the true masks, then its language.

Trained together from the start, the language model learns to write the same report for every picture. So the
vision tower learns first, slice by slice, where acute infarct, old infarct and white-matter hyperintensity
are, and each picture token how many ml of infarct it shows in which arterial region. Then it is frozen, every
study is encoded twice, and the language model learns to read the tokens and to copy facts that it is told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from willis.cohort.lesions import GRID
from willis.imaging.territory import default_map
from willis.reports.reader_model import FOLD, MEAN, PATCH_PX, SD, VISION_WIDTH, WIDTH
from willis.reports.reader_studies import ACUTE, OLD, WHITE, ReaderStudies
from willis.reports.slices import PICTURE_PX, SHOWN, as_seen, centred, grey_levels

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration

UInt8 = npt.NDArray[np.uint8]
Tick = Callable[[int, float], None]

SIDE = PICTURE_PX // PATCH_PX // FOLD
PATTERNS = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 1))
"""Which of DWI, ADC and FLAIR are there; complete studies are the most frequent."""

PATCH_FULL = 0.25
"""A share from which a patch counts as full, so that a lesion of few pixels is not lost beside large ones."""
FULL_ML = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Volumes from which a picture token counts as full: shares of them add up over levels, logarithms do not."""
PATCH_WEIGHT, FULL_ML_WEIGHT = 40 / 3, 2.0
"""Of the terms of the loss, beside 1 for log ml by region."""


@dataclass(frozen=True)
class PartParams:
    """How one part of the reader is trained."""

    steps: int
    batch_size: int
    learning_rate: float = 2e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class EyesParams(PartParams):
    """How the vision tower is trained."""

    steps: int = 1500
    batch_size: int = 64


class Levels:
    """All levels of all studies as they are seen, with their truth, on one device.

    Attributes:
        codes: (N, Z, 3, H, W) uint8 codes, H and W of the grid: `pixels` pads them to a picture.
        truth: (N, Z, H, W) uint8 bits.
        regions: (Z, PICTURE_PX, PICTURE_PX) int64, the arterial region of each pixel; the last is none.
    """

    def __init__(self, studies: ReaderStudies, device: torch.device) -> None:
        self.device = device
        self.codes = _as_levels(studies.codes)
        self.truth = _as_levels(studies.truth[:, None])[:, :, 0]
        labels, self.num_regions = _region_labels()
        self.regions = torch.from_numpy(_centred_levels(labels).astype(np.int64)).to(device)
        self.visible = (self.codes != 0).any(axis=(2, 3, 4))
        self.acute = ((self.truth & ACUTE) != 0).any(axis=(2, 3))
        self._grey = torch.from_numpy(np.stack([grey_levels(name) for name in SHOWN])).to(device)

    def pixels(self, codes: UInt8) -> Tensor:
        """Window codes (B, 3, H, W) to normalised pixels, float32, as the processor would."""
        index = torch.from_numpy(np.ascontiguousarray(codes)).to(self.device).long()
        grey = torch.stack([self._grey[c][index[:, c]] for c in range(len(SHOWN))], dim=1)
        return _padded((grey.float() / 255 - MEAN) / SD, -MEAN / SD)


def _as_levels(volumes: UInt8) -> UInt8:
    """(N, C, X, Y, Z) to (N, Z, C, Y, X) as seen, without padding: that is added on the way in."""
    return np.ascontiguousarray(as_seen(np.moveaxis(volumes, -1, 1)))


def _centred_levels(volume: npt.NDArray[np.uint8]) -> UInt8:
    return centred(as_seen(np.moveaxis(volume, -1, 0)), PICTURE_PX)


def _padded(pixels: Tensor, value: float) -> Tensor:
    """Pad (..., H, W) around the middle to a picture."""
    rows, columns = PICTURE_PX - pixels.shape[-2], PICTURE_PX - pixels.shape[-1]
    return F.pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=value)


def _region_labels() -> tuple[npt.NDArray[np.uint8], int]:
    """Label each voxel of the grid with its arterial region, left and right apart; the last is none."""
    regions = default_map().regions
    index = np.indices(GRID.shape).reshape(3, -1).T
    points = index @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    labels = default_map().at(points).reshape(GRID.shape)
    return np.where(labels == 0, len(regions), labels - 1).astype(np.uint8), len(regions) + 1


class Eyes(nn.Module):
    """The reader's vision tower and connector with two heads that are thrown away afterwards."""

    def __init__(self, model: "Idefics3ForConditionalGeneration", num_regions: int) -> None:
        super().__init__()
        self.vision, self.connector = model.model.vision_model, model.model.connector
        self.patch_head = nn.Linear(VISION_WIDTH, 4)
        self.token_head = nn.Linear(WIDTH, num_regions + len(FULL_ML))
        self.num_regions = num_regions

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> patches (B, P, D) and picture tokens (B, T, W)."""
        side = PICTURE_PX // PATCH_PX
        everything = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        patches = self.vision(pixel_values=pixels, patch_attention_mask=everything).last_hidden_state
        return patches, self.connector(patches)

    def loss(self, pixels: Tensor, truth: Tensor, regions: Tensor) -> Tensor:
        """Cross-entropy of how full each patch is, squared errors of the infarct's volume in each token.

        A patch says how much of it is acute, old or white, as a share of `PATCH_FULL`, and of acute infarct
        the whole share too; a token log ml by region, and the sum of the regions as shares of `FULL_ML`.
        """
        patches, tokens = self.encode(pixels)
        shares = patch_shares(truth)
        filled = torch.cat([(shares / PATCH_FULL).clamp(max=1), shares[..., :1]], dim=-1)
        of_patches = F.binary_cross_entropy_with_logits(self.patch_head(patches), filled)
        volumes = region_volumes(truth, regions, self.num_regions)
        by_region, by_share = self.token_head(tokens).split([self.num_regions, len(FULL_ML)], dim=-1)
        of_tokens = F.mse_loss(by_region, log_volume(volumes))
        of_shares = F.mse_loss(by_share, shares_of_full(volumes.sum(dim=-1)))
        return PATCH_WEIGHT * of_patches + of_tokens + FULL_ML_WEIGHT * of_shares


def patch_shares(truth: Tensor) -> Tensor:
    """Share of each patch that is acute, old or white: (B, H, W) bits -> (B, P, 3)."""
    bits = torch.stack([(truth & bit) != 0 for bit in (ACUTE, OLD, WHITE)], dim=1).float()
    return F.avg_pool2d(bits, PATCH_PX).flatten(2).transpose(1, 2)


def region_volumes(truth: Tensor, regions: Tensor, num_regions: int) -> Tensor:
    """Sum the acute infarct per picture token and arterial region.

    Args:
        truth: (B, H, W) bits.
        regions: (B, H, W) label of each pixel, below `num_regions`.
        num_regions: R.

    Returns:
        (B, T, R) ml.
    """
    acute = (truth & ACUTE) != 0
    batch = torch.arange(len(truth), device=truth.device)[:, None, None]
    rows = torch.arange(PICTURE_PX, device=truth.device) // (PICTURE_PX // SIDE)
    place = batch * SIDE * SIDE + rows[:, None] * SIDE + rows[None, :]
    counts = torch.bincount(
        (place * num_regions + regions)[acute], minlength=len(truth) * SIDE * SIDE * num_regions
    )
    return counts.reshape(len(truth), SIDE * SIDE, num_regions).float() * GRID.voxel_ml


def shares_of_full(volume_ml: Tensor) -> Tensor:
    """How full each volume is, up to 1, for each volume of `FULL_ML`: (...) -> (..., 5)."""
    return (volume_ml[..., None] / volume_ml.new_tensor(FULL_ML)).clamp(max=1)


def log_volume(volume_ml: Tensor) -> Tensor:
    """Logarithm of a volume in units of 0.05 ml, 0 at 0."""
    return torch.log1p(20 * volume_ml)


def descend(trained: nn.Module, params: PartParams, next_loss: Callable[[], Tensor], tick: Tick) -> None:
    """Minimise a loss over all parameters of a module; the learning rate rises once and falls.

    Args:
        trained: what is trained.
        params: how.
        next_loss: draws a batch and returns its loss.
        tick: called after every step with its number and loss.
    """
    optimiser = torch.optim.AdamW(
        trained.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, params.learning_rate, total_steps=params.steps, pct_start=0.1
    )
    for step in range(params.steps):
        loss = next_loss()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        tick(step, float(loss.detach()))


def train_eyes(
    model: "Idefics3ForConditionalGeneration",
    levels: Levels,
    params: EyesParams,
    rng: np.random.Generator,
    tick: Tick,
) -> None:
    """Train the vision tower and the connector on single levels; half of them cross an acute infarct."""
    eyes = Eyes(model, levels.num_regions).to(levels.device).train()
    descend(eyes, params, lambda: eyes.loss(*_slice_batch(levels, params.batch_size, rng)), tick)


def _slice_batch(levels: Levels, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    any_level = np.argwhere(levels.visible)
    ordinary = any_level[rng.integers(len(any_level), size=size - size // 2)]
    study, level = np.concatenate([_injured_levels(levels, size // 2, rng), ordinary]).T
    codes = levels.codes[study, level].copy()
    codes *= np.array(PATTERNS, np.uint8)[rng.integers(len(PATTERNS), size=size)][:, :, None, None]
    pixels = levels.pixels(codes)
    truth = _padded(torch.from_numpy(levels.truth[study, level]).to(levels.device), 0)
    regions = levels.regions[torch.from_numpy(level).to(levels.device)]
    pixels = _vary_light(pixels, rng)
    mirror = torch.from_numpy(rng.random(size) < 0.5).to(levels.device)
    pixels = torch.where(mirror[:, None, None, None], pixels.flip(-1), pixels)
    return pixels, torch.where(mirror[:, None, None], truth.flip(-1), truth), regions


def _injured_levels(levels: Levels, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw infarcts, then a level of each: small ones, on few levels, count as much as large."""
    study = rng.choice(np.flatnonzero(levels.acute.any(axis=1)), size)
    level = (rng.random((size, levels.acute.shape[1])) * levels.acute[study]).argmax(axis=1)
    return np.stack([study, level], axis=1)


def _vary_light(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Scale the brightness of DWI and FLAIR a little; ADC is a measurement and stays."""
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(pixels), 3, 1, 1)).astype(np.float32))
    gain[:, SHOWN.index("adc")] = 1
    return ((pixels + 1) * gain.to(pixels.device) - 1).clamp(-1, 1)


@torch.no_grad()
def encode_levels(
    eyes: Eyes, levels: Levels, study: int, chosen: list[int], pattern: tuple[int, ...], mirrored: bool
) -> Tensor:
    """Encode the chosen levels of one study, (L, T, W) on the device."""
    codes = levels.codes[study, chosen] * np.array(pattern, np.uint8)[:, None, None]
    pixels = levels.pixels(codes)
    return eyes.encode(pixels.flip(-1) if mirrored else pixels)[1]


def batches(num: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield shuffled indices for ever."""
    while True:
        order = rng.permutation(num)
        for start in range(0, num - size + 1, size):
            yield order[start : start + size]
