"""Drift over one window of the prediction log."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def monitor(since: str, until: str, params: dict, drift: dsl.Output[dsl.Artifact]) -> bool:
    """Compare the window with the bundle's reference; True means that it drifted."""
    from datetime import datetime
    from pathlib import Path

    from willis.params import MonitorParams, parse_section
    from willis.settings import settings
    from willis.steps.monitor import monitor as step

    section = parse_section(MonitorParams, params, "pipeline: monitor")
    bounds = {"since": datetime.fromisoformat(since), "until": datetime.fromisoformat(until)}
    summary = step(Path(drift.path), section, settings(), **bounds)
    drift.metadata.update(drift=summary.drift, window_size=summary.window_size)
    return bool(summary.drift)
