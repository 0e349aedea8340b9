"""What pre-training learned, for people: templates, and studies rebuilt from the blocks that are seen."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from willis.pretraining.brainmvp import BrainMVP, Views
from willis.pretraining.loop import PretrainJob, collate_views
from willis.pretraining.masking import block_grid, spread
from willis.training.dataset import Share
from willis.training.loop import World, arithmetic

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

LEVELS = (0.3, 0.5, 0.7)
HEADINGS = (*(f"template, {level:.0%} of height" for level in LEVELS),
            "a study", "what is seen", "rebuilt (template)", "rebuilt (other)")  # fmt: skip


def draw_pretraining(path: Path, job: PretrainJob, network: BrainMVP) -> None:
    """Draw each sequence's template at three levels, and one study of it: whole, masked and rebuilt.

    Args:
        path: PNG to write.
        job: the run; studies are taken from validation, or from training where that is empty.
        network: pre-trained.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sequences = job.arrays.sequences
    figure = Figure(figsize=(2 * len(HEADINGS), 2.3 * len(sequences)), facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(sequences), len(HEADINGS), squeeze=False)
    for channel, (name, axes) in enumerate(zip(sequences, grid, strict=True)):
        template = network.encoder.stem.template[channel].detach().numpy()
        span = float(template.min()), float(np.quantile(template, 0.999))
        pictures = [_level(template, share) for share in LEVELS] + _study(job, network, channel)
        for axis, picture in zip(axes, pictures, strict=False):
            axis.imshow(np.rot90(picture), cmap="gray", vmin=span[0], vmax=span[1])
        for axis, heading in zip(axes, HEADINGS, strict=True):
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
def _study(job: PretrainJob, network: BrainMVP, channel: int) -> list["npt.NDArray[np.float32]"]:
    """The middle level of one study: whole, masked, and rebuilt from both views; nothing if none has it."""
    rows = np.concatenate([job.rows("validation"), job.rows("train")])
    rows = rows[job.arrays.sequence_present[rows, channel]]
    if not len(rows):
        return []
    share = Share(rows=rows[:1], weight=np.ones(1, np.float32))
    x, y, z = network.encoder.stem.padded
    views = _asked(collate_views(job, share, block_grid((x, y, z), job.params.block), epoch=0), channel)
    values = network.encoder.decoded(views.volume, views.present)
    hidden = spread(views.blocks, (job.params.block,) * 3, (x, y, z))
    with arithmetic(job.params, World()):
        rebuilt = [network.decoder(network.encoder.body.top(t), views.target).float()
                   for t in network.tokens(views, values, True)]  # fmt: skip
    whole = values[:, channel]
    return [_level(v[0].numpy(), 0.5) for v in (whole, whole.masked_fill(hidden, 0.0), *rebuilt)]


def _asked(views: Views, channel: int) -> Views:
    """The same study and blocks, asked for this sequence, and lent the first other one that is there."""
    from dataclasses import replace

    others = views.present[0].nonzero()[:, 0]
    others = others[others != channel]
    filler = others[:1] if len(others) else torch.tensor([channel])
    return replace(views, target=torch.tensor([channel]), filler=filler)
