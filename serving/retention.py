"""Predictions live as long as the settings say, without anybody having to remember it."""

import logging
import time

from willis.errors import StoreError
from willis.stores.predictions import PredictionLog

log = logging.getLogger("willis.serving")

EVERY_S = 24 * 3600.0


class Retention:
    """Purges the log now and then.

    Args:
        predictions: the log.
        days: how long a prediction stays.
    """

    def __init__(self, predictions: PredictionLog, days: int) -> None:
        self._predictions, self._days = predictions, days
        self._next = 0.0

    def enforce(self) -> None:
        """Purge if a day has passed since this replica did; a failure is logged and tried again tomorrow."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        try:
            num_purged = self._predictions.purge(self._days)
        except StoreError as error:
            log.error("retention: %s", error)
        else:
            if num_purged:
                log.info("retention: %d predictions older than %d days erased", num_purged, self._days)
