"""A bar for people who wait for a training loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from willis.training.checkpoints import R
from willis.training.loop import Tick


@contextmanager
def progress_bar(step: str, said: Callable[[R], str]) -> Iterator[Callable[[Tick[R]], None]]:
    """Draw a bar while the block runs.

    Args:
        step: name of the step.
        said: what to say of an epoch's record.

    Yields:
        The function that takes the run's ticks.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(step), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  TextColumn("{task.fields[said]}")) as bar:  # fmt: skip
        task = bar.add_task(step, total=None, said="waiting for workers")

        def on_tick(tick: Tick[R]) -> None:
            bar.update(task, completed=tick.step, total=tick.steps)
            if tick.record is not None:
                bar.update(task, said=f"epoch {tick.epoch}: {said(tick.record)}")

        yield on_tick
