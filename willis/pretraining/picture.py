"""What pre-training learned, for people: templates, and studies rebuilt from the blocks that are seen."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from willis.pretraining.loop import PretrainJob, collate_views
from willis.pretraining.masking import block_grid
from willis.pretraining.method import Method
from willis.training.dataset import Share
from willis.training.loop import World, arithmetic

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

LEVELS = (0.3, 0.5, 0.7)


def draw_pretraining(path: Path, job: PretrainJob, network: Method[Any, Any]) -> None:
    """Draw each sequence's template at three levels, and one study of it: whole, masked and rebuilt.

    Args:
        path: PNG to write.
        job: the run; studies are taken from validation, or from training where that is empty.
        network: pre-trained.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sequences = job.arrays.sequences
    headings = (*(f"template, {level:.0%} of height" for level in LEVELS), *network.headings)
    figure = Figure(figsize=(2 * len(headings), 2.3 * len(sequences)), facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(sequences), len(headings), squeeze=False)
    for channel, (name, axes) in enumerate(zip(sequences, grid, strict=True)):
        template = network.encoder.stem.template[channel].detach().numpy()
        span = float(template.min()), float(np.quantile(template, 0.999))
        pictures = [_level(template, share) for share in LEVELS] + _study(job, network, channel)
        for axis, picture in zip(axes, pictures, strict=False):
            axis.imshow(np.rot90(picture), cmap="gray", vmin=span[0], vmax=span[1])
        for axis, heading in zip(axes, headings, strict=True):
            _plain(axis, heading if channel == 0 else "")
        axes[0].text(-0.1, 0.5, name, color="white", rotation=90, va="center", transform=axes[0].transAxes)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def _plain(axis: "Axes", heading: str) -> None:
    axis.set_axis_off()
    axis.set_title(heading, color="white", fontsize=8)


def _level(volume: "npt.NDArray[np.float32]", share: float) -> "npt.NDArray[np.float32]":
    level: npt.NDArray[np.float32] = volume[:, :, int(share * volume.shape[2])]
    return level


@torch.no_grad()
def _study(job: PretrainJob, network: Method[Any, Any], channel: int) -> list["npt.NDArray[np.float32]"]:
    """The middle level of one study: whole, masked and rebuilt; nothing if none has the sequence."""
    rows = np.concatenate([job.rows("validation"), job.rows("train")])
    rows = rows[job.arrays.sequence_present[rows, channel]]
    if not len(rows):
        return []
    share = Share(rows=rows[:1], weight=np.ones(1, np.float32))
    views = collate_views(job, share, block_grid(network.padded, job.params.block), epoch=0)
    with arithmetic(job.params, World()):
        volumes = network.pictures(views, channel)
    return [_level(volume.numpy(), 0.5) for volume in volumes]
