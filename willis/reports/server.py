"""vLLM as a child of this process: started with the configured model, bound to loopback, gone when we are.

vLLM has pins of its own and lives in an environment of its own; all that is shared with it is HTTP.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from willis.errors import ReportServerError, SettingsError, StepError
from willis.params import ReportParams
from willis.reports.model_files import model_folder, served_name
from willis.settings import Settings

DEFAULT_LOG = Path("build/vllm.log")

_LAUNCHER = Path(__file__).with_name("vllm_launcher.py")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_MAX_PLANES = 3
_POLL_S = 0.25
_STOP_S = 15
_LOG_LINES = 25


@contextlib.contextmanager
def serving(params: ReportParams, settings: Settings, *, log: Path = DEFAULT_LOG) -> Iterator[str]:
    """Serve the configured model while the block runs; nothing of the server outlives it.

    Args:
        params: which model, and how many pictures a prompt may hold.
        settings: address, key, and vLLM's Python with its options.
        log: file that takes what the server prints.

    Yields:
        The base URL, for `settings.report_url`.

    Raises:
        SettingsError: the address is not on this machine, or vLLM's Python is missing.
        StepError: the port is taken, or the model's folder is missing.
        ReportServerError: the server did not come up; holds its last lines.
    """
    with server_process(params, settings, log=log):
        yield settings.report_url


@contextlib.contextmanager
def server_process(
    params: ReportParams, settings: Settings, *, log: Path = DEFAULT_LOG
) -> Iterator["subprocess.Popen[bytes]"]:
    """Do what `serving` does and yield the process, for those who wait for its end."""
    host, port = _address(settings)
    command = _command(params, settings, host, port)
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="vllm-") as scratch, log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=_environment(params, settings, scratch),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, f"http://{_bracketed(host)}:{port}/health", settings.vllm_start_s, log)
            yield process
        finally:
            _stop(process)


def serve_until_stopped(
    params: ReportParams, settings: Settings, *, log: Path, on_ready: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM; both end the server cleanly.

    Args:
        params: which model.
        settings: address, key, and vLLM's Python with its options.
        log: file that takes what the server prints.
        on_ready: called once with a line for people.

    Raises:
        ReportServerError: the server ended by itself; holds its last lines.
    """

    def stop(signal_number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with server_process(params, settings, log=log) as process:
            name = served_name(params.model)
            on_ready(f"{name} at {settings.report_url} (log: {log}); Ctrl-C stops it")
            process.wait()
        raise ReportServerError(f"vLLM ended with exit code {process.returncode}; {_tail(log)}")
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _address(settings: Settings) -> tuple[str, int]:
    """Where the server shall listen: the one loopback address in the settings, if it is free."""
    address = urlsplit(settings.report_url)
    if address.hostname not in _LOOPBACK or address.scheme != "http" or address.path.rstrip("/") != "/v1":
        raise SettingsError(
            f"WILLIS_REPORT_URL is {settings.report_url!r}; a server started here listens on this machine "
            "alone: set it to http://127.0.0.1:PORT/v1 (environment)"
        )
    port = address.port or 80
    with socket.socket(socket.AF_INET6 if ":" in address.hostname else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.hostname, port))
        except OSError as error:
            raise StepError(
                f"cannot listen on port {port}: {error.strerror}; stop the program that does, or set "
                "WILLIS_REPORT_URL to another port"
            ) from None
    return address.hostname, port


def _command(params: ReportParams, settings: Settings, host: str, port: int) -> list[str]:
    python = settings.vllm_python
    if not python.is_file():
        raise SettingsError(
            f"WILLIS_VLLM_PYTHON is {str(python)!r}, which is not there; run `make setup`, or name a "
            "Python that has vLLM (environment)"
        )
    grammar = {"backend": "xgrammar", "disable_any_whitespace": True}
    name, model = served_name(params.model), model_folder(params.model) or params.model
    options = {
        "--model": str(model),
        "--served-model-name": name,
        "--host": host,
        "--port": str(port),
        "--structured-outputs-config": json.dumps(grammar),
        "--limit-mm-per-prompt": json.dumps({"image": params.num_slices + _MAX_PLANES}),
        # A study is shown once, so a cache of prepared pictures would only take memory.
        "--mm-processor-cache-gb": "0",
    }
    words = [word for option in options.items() for word in option]
    own = ["--no-enable-log-requests", "--disable-uvicorn-access-log"]
    return [str(python), str(_LAUNCHER), str(os.getpid()), *words, *own, *shlex.split(settings.vllm_options)]


def _environment(params: ReportParams, settings: Settings, scratch: str) -> dict[str, str]:
    """What vLLM reads; the key is here and not on the command line, which everybody can see."""
    # PYTHONPATH would lead vLLM's Python into ours.
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VLLM_API_KEY")
    }
    given = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # One process less to start on a CPU, where it would only hold the engine's single worker.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Threads that wait for one another in every small product lose a tenfold where a core is shared.
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
    }
    fixed = {"TMPDIR": scratch} | ({"HF_HUB_OFFLINE": "1"} if model_folder(params.model) else {})
    if settings.report_api_key:
        fixed["VLLM_API_KEY"] = settings.report_api_key.get_secret_value()
    return given | inherited | fixed


def _wait(process: "subprocess.Popen[bytes]", url: str, limit_s: float, log: Path) -> None:
    """Wait until the server is healthy, and show for how long."""
    import httpx
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    deadline = time.monotonic() + limit_s
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        httpx.Client() as client,
    ):
        progress.add_task("starting vLLM", total=None)
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get(url, timeout=5).status_code == httpx.codes.OK:
                    return
            time.sleep(_POLL_S)
    ended = f"ended with exit code {process.returncode}" if process.poll() is not None else "is not healthy"
    after = f"after {limit_s:.0f} s (WILLIS_VLLM_START_S)" if process.poll() is None else "before it was up"
    raise ReportServerError(f"vLLM {ended} {after}; {_tail(log)}")


def _tail(log: Path) -> str:
    last = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"its log {log} ends with:", *last])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server, and wait until what it started is gone too."""
    import psutil

    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=_STOP_S)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
