"""How fast reports are written: our writer, vLLM's own benchmark client, and transformers, side by side.

Part of `python -m benchmarks.reports`. All ask the same model for reports of the same studies, with pictures
and facts; rounds of writer and client alternate, and medians are told.

    writer        willis.reports.client, as the step `report` runs it
    client        `vllm bench serve` on the same server, with the same requests
    free          the same client without the schema that guides decoding
    transformers  `generate` in this process, sixteen studies at a time, without a schema
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from willis.params import ReportParams
from willis.reports.model_files import model_folder, served_name
from willis.reports.prompt import messages, prompt_parts
from willis.reports.schema import Findings, decodable_schema
from willis.reports.writer import Study
from willis.settings import Settings

BATCH = 16
# `vllm bench serve` itself looks for a distribution named vllm, which the CPU build is not.
_BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
Rates = dict[str, float]


def rates(
    studies: Sequence[Study],
    params: ReportParams,
    settings: Settings,
    work: Path,
    write_all: Callable[[], None],
    rounds: int,
) -> Rates:
    """Return the median reports per second of each way to ask.

    Args:
        studies: asked about in each round.
        params: the model, and how many requests are in flight.
        settings: the running server.
        work: folder for the client's requests and results.
        write_all: has our writer read the studies once.
        rounds: how often each way is taken.
    """
    requests = work / "requests.jsonl"
    requests.write_text("".join(json.dumps(_request(study, params)) + "\n" for study in studies))
    ways: dict[str, Callable[[], float]] = {
        "writer": lambda: len(studies) / _seconds(write_all),
        "client": lambda: _client(requests, len(studies), params, settings, guided=True),
        "free": lambda: _client(requests, len(studies), params, settings, guided=False),
    }
    found = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    return {name: statistics.median(each[name] for each in found) for name in ways}


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _request(study: Study, params: ReportParams) -> dict[str, Any]:
    """Our own request in the words of the client; the reader's template leaves the instruction out."""
    _, asked = messages(study, params)
    return {"content": asked["content"]}


def _client(
    requests: Path, num_requests: int, params: ReportParams, settings: Settings, *, guided: bool
) -> float:
    """Run vLLM's client and return its requests per second."""
    address = urlsplit(settings.report_url)
    schema = {"name": Findings.__name__, "strict": True, "schema": decodable_schema()}
    body = {"response_format": {"type": "json_schema", "json_schema": schema}} if guided else {}
    result = requests.with_name("client.json")
    result.unlink(missing_ok=True)
    options = {
        "--backend": "openai-chat",
        "--base-url": f"{address.scheme}://{address.netloc}",
        "--endpoint": f"{address.path}/chat/completions",
        "--model": served_name(params.model),
        "--tokenizer": str(_model_of(params)),
        "--dataset-name": "custom_image",
        "--dataset-path": str(requests),
        "--custom-output-len": str(params.max_tokens),
        "--num-prompts": str(num_requests),
        "--max-concurrency": str(params.concurrency),
        "--temperature": "0",
        "--extra-body": json.dumps(body),
        "--result-dir": str(result.parent),
        "--result-filename": result.name,
    }
    words = [word for option in options.items() for word in option]
    flags = ["--disable-shuffle", "--disable-tqdm", "--save-result"]
    command = [str(settings.vllm_python), "-c", _BENCH_SERVE, *words, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"vLLM's client ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(result.read_text())
    if found["completed"] != num_requests:
        raise RuntimeError(f"vLLM's client completed {found['completed']} of {num_requests} requests")
    return float(found["request_throughput"])


def _model_of(params: ReportParams) -> Path | str:
    """What `transformers` and the client's tokenizer load."""
    return model_folder(params.model) or params.model


def transformers_rate(studies: Sequence[Study], params: ReportParams) -> float:
    """Write reports with `generate`, batch by batch, greedily; reports per second."""
    import torch
    from transformers import AutoProcessor, Idefics3ForConditionalGeneration

    processor: Any = AutoProcessor.from_pretrained(_model_of(params))
    processor.tokenizer.padding_side = "left"
    model: Any = Idefics3ForConditionalGeneration.from_pretrained(_model_of(params)).eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(studies), BATCH):
            batch = _batch(studies[first : first + BATCH], params, processor)
            model.generate(**batch, max_new_tokens=params.max_tokens, do_sample=False)
    return len(studies) / (time.perf_counter() - started)


def _batch(studies: Sequence[Study], params: ReportParams, processor: Any) -> Any:
    texts, pictures = [], []
    for study in studies:
        parts = list(prompt_parts(study, params))
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
        pictures.append([part.pixels for part in parts if not isinstance(part, str)])
    return processor(text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=False)


def peak_memory_gb(process: "subprocess.Popen[bytes]") -> float:
    """Return the largest resident memory of a server so far, each of its processes at its own peak."""
    root = psutil.Process(process.pid)
    return sum(_high_water(member.pid) for member in [root, *root.children(recursive=True)]) / 1e6


def _high_water(pid: int) -> int:
    """Read VmHWM, kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
