"""The servers that stages need: each is started by the first stage that asks, and ends with the block."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra.local.processes import free_port
from infra.local.ray_head import ray_head
from willis.params import ReportParams


class Servers:
    """Ray, and vLLM where a language model writes the reports; none of them when everything is done."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._logs, self._stack = root / "logs", stack
        self._ray_is_up = self._reader_is_up = False
        self._reader_is_ours = "WILLIS_REPORT_URL" not in os.environ
        if self._reader_is_ours:
            # Ray's workers inherit secrets from Ray alone, which may be up before the reader.
            os.environ["WILLIS_REPORT_API_KEY"] = secrets.token_hex(32)

    def ray(self) -> None:
        """Have a Ray node up, and let the settings lead to it."""
        if self._ray_is_up:
            return
        started = ray_head(self._logs / "ray.log", token=secrets.token_hex(32))
        self._use(self._stack.enter_context(started).variables())
        self._ray_is_up = True

    def reader(self, params: ReportParams) -> None:
        """Have vLLM up, unless no model writes or WILLIS_REPORT_URL names a server of the user's own.

        Raises:
            WillisError: it did not come up, or its Python or the model is missing.
        """
        if params.writer != "llm" or self._reader_is_up or not self._reader_is_ours:
            return
        from willis.reports.server import serving
        from willis.settings import settings

        self._use({"WILLIS_REPORT_URL": f"http://127.0.0.1:{free_port()}/v1"})
        self._stack.enter_context(serving(params, settings(), log=self._logs / "vllm.log"))
        self._reader_is_up = True

    def _use(self, variables: dict[str, str]) -> None:
        from willis.settings import settings

        os.environ.update(variables)
        settings.cache_clear()


@contextmanager
def servers(root: Path) -> Iterator[Servers]:
    """Stop whatever was started, last first, when the block ends."""
    with ExitStack() as stack:
        yield Servers(root, stack)
