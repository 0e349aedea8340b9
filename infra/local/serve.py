"""`make serve`: the endpoint of the last demo, and a curl line that works as pasted."""

import argparse
import shlex
import signal
import sys
import threading
from pathlib import Path

from rich.console import Console

from infra.local.circle import use_atlas
from infra.local.demo import configure, default_root
from infra.local.processes import only_one, require_free, sweep
from infra.local.source import LastSource
from infra.local.stages import write_whole
from willis.errors import StepError, WillisError

EXAMPLE = "example-request"
console = Console()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="synthetic", help="of the demo to serve")
    parser.add_argument("--root", type=Path, help="folder of a finished demo")
    arguments = parser.parse_args()
    root = (arguments.root or default_root(arguments.data)).resolve()
    try:
        _serve(root)
    except WillisError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _serve(root: Path) -> None:
    from willis.settings import settings

    record = root / "source.json"
    if not record.is_file():
        raise StepError(f"{root} holds no finished demo; run `make demo` with the same DATA first")
    last = LastSource.model_validate_json(record.read_text())
    with only_one(root):
        sweep(root)
        configure(root)
        use_atlas(last.atlas)
        require_free(int(settings().serve_bind.rpartition(":")[2]), "WILLIS_SERVE_BIND")
        _until_stopped(root, last)


def _until_stopped(root: Path, last: LastSource) -> None:
    from infra.local.servers import servers
    from willis.settings import settings
    from willis.steps.deploy import deploy

    params = last.params
    with servers(root) as up:
        up.reader(params.report)
        with console.status("starting Ray ..."):
            up.ray()
        service = deploy(None, params.deploy, settings(), params.ingest, params.report)
        console.print(f"bundle {service.version} answers at {service.url}; Ctrl-C stops it. Try:\n")
        print(curl_line(service.url, root, last), flush=True)
        _wait()


def curl_line(url: str, root: Path, last: LastSource) -> str:
    """A request for one patient of the demo's stream, with paths and quotes as a shell needs them."""
    from infra.local.calls import stream_calls
    from infra.local.stream import files_of, form_of

    call = stream_calls(last.stream, last.params.ingest, last.ingested)[0]
    form = root / f"{EXAMPLE}.json"
    write_whole(form, form_of(call))
    parts = [f"{name}=@{path}" for name, path in files_of(call.study).items()]
    words = ["curl", "--silent", "--show-error"]
    for part in [*parts, f"request=<{form}"]:
        words += ["--form", part]
    return shlex.join([*words, f"{url}/v1/predictions"])


def _wait() -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


if __name__ == "__main__":
    main()
