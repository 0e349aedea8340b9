"""The report writer that asks a language model: a client of any OpenAI-compatible server.

What network or server do wrong costs retries, then one flagged study; what the model does wrong costs an
attempt. Neither a prompt nor a picture is ever logged or quoted in an error.
"""

import asyncio
import hashlib
import itertools
import re
import time
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from openai import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    OpenAIError,
)
from openai.types.chat import ChatCompletion
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from willis.errors import ReportError, ReportServerError, SettingsError
from willis.params import ReportParams
from willis.reports.model_files import served_name
from willis.reports.prompt import messages, prompt_hash
from willis.reports.schema import Findings, decodable_schema, parse_findings
from willis.reports.writer import Cost, Study, WrittenReport
from willis.settings import Settings

RETRY_TEMPERATURE = 0.7
"""Of attempts after the first, which would otherwise say the same again."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_PASSING = {408, 409, 425, 429}
_QUOTED_CHARACTERS = 200


class LanguageModelWriter:
    """Implements `ReportWriter`.

    Several servers take turns; a retry goes to the next one. While none answers, each further study is tried
    once, so that a dead server costs a run minutes and not hours.

    Raises:
        SettingsError: a server is not on this machine and lacks https or a key.
        StepError: the packaged reader is not there.
    """

    name = "llm"

    def __init__(self, params: ReportParams, settings: Settings) -> None:
        self.model = served_name(params.model)
        # An answer may be cut by the limit, so the limit is part of what decides it.
        asked = f"{prompt_hash(params)} {params.max_tokens} {decodable_schema()}"
        self.prompt_hash = hashlib.sha256(asked.encode()).hexdigest()[:16]
        self.temperature = params.temperature
        self._params = params
        self._key = settings.report_api_key.get_secret_value() if settings.report_api_key else None
        self._urls = _checked(settings.report_url, self._key)
        # A client belongs to one event loop, and an endpoint reads each case in a loop of its own.
        self._clients = WeakKeyDictionary[asyncio.AbstractEventLoop, list[AsyncOpenAI]]()
        self._turns = itertools.cycle(range(len(self._urls)))
        self._down = False

    async def write(self, study: Study, *, attempt: int) -> WrittenReport:
        """Ask for one report; see `ReportWriter.write`."""
        temperature = self.temperature if attempt == 1 else RETRY_TEMPERATURE
        seed = attempt - 1
        chat = await asyncio.to_thread(messages, study, self._params)
        started = time.monotonic()
        answer = await self._answer(chat, temperature, seed)
        cost = _cost(answer, time.monotonic() - started)
        findings = parse_findings(self._content(answer))
        return WrittenReport(findings, self.model, self.prompt_hash, temperature, seed, attempt, cost)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        for client in self._clients.pop(asyncio.get_running_loop(), []):
            await client.close()

    async def _answer(self, chat: list[dict[str, Any]], temperature: float, seed: int) -> ChatCompletion:
        """Ask until there is an answer, the retries are used up, or the deadline is over."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(1 if self._down else 1 + self._params.num_retries),
            wait=_wait,
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._params.deadline_s):
                answer: ChatCompletion = await retrying(self._ask, chat, temperature, seed)
        except (OpenAIError, ValueError, TimeoutError) as error:
            self._down = self._down or _may_pass(error)
            raise ReportServerError(self._explain(error)) from None
        self._down = False
        return answer

    async def _ask(self, chat: list[dict[str, Any]], temperature: float, seed: int) -> ChatCompletion:
        schema = {"name": Findings.__name__, "strict": True, "schema": decodable_schema()}
        request: dict[str, Any] = {
            "model": self.model,
            "messages": chat,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": self._params.max_tokens,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        # `chat.completions.create` looks for fields to rename in every part of the chat, which takes as long
        # as compressing the pictures; `post` sends the body as it is.
        client = self._next_client()
        answer = await client.post("/chat/completions", cast_to=ChatCompletion, body=request)
        if not isinstance(answer, ChatCompletion) or not answer.choices:
            raise ValueError("the server's answer is no chat completion")
        return answer

    def _next_client(self) -> AsyncOpenAI:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = [self._client(url) for url in self._urls]
        return self._clients[loop][next(self._turns)]

    def _client(self, url: str) -> AsyncOpenAI:
        # A server on loopback may have no key, but the client insists on one.
        key = self._key or "none"
        return AsyncOpenAI(base_url=url, api_key=key, timeout=self._params.timeout_s, max_retries=0)

    def _content(self, answer: ChatCompletion) -> str:
        choice = answer.choices[0]
        if choice.finish_reason == "length":
            raise ReportError(
                f"the answer was cut after {self._params.max_tokens} tokens; if other reports are cut too, "
                "raise report.max_tokens (params.yaml)"
            )
        # xgrammar lets raw control characters into strings of a bounded length, where JSON forbids them.
        return re.sub(r"[\x00-\x1f]", " ", choice.message.content or "")

    def _explain(self, error: Exception) -> str:
        """Say what went wrong and what to do, without a word of the prompt."""
        where = "the report server at " + ", ".join(self._urls)
        if isinstance(error, APITimeoutError | TimeoutError):
            return (
                f"{where} gave no answer in time (report.timeout_s {self._params.timeout_s:g}, "
                f"report.deadline_s {self._params.deadline_s:g})"
            )
        if isinstance(error, APIConnectionError):
            return f"{where} cannot be reached; start it (`willis reports serve`), or set WILLIS_REPORT_URL"
        if isinstance(error, APIStatusError):
            return f"{where} answered {error.status_code}: {self._what_to_do(error)}"
        return f"{where} gave an answer that is no chat completion"

    def _what_to_do(self, error: APIStatusError) -> str:
        if error.status_code in (401, 403):
            return "it refuses the key; set WILLIS_REPORT_API_KEY"
        if error.status_code == 404:
            return f"it has no model {self.model!r}; start it again, or set report.model (params.yaml)"
        return _quoted(error)


def _checked(urls: str, key: str | None) -> tuple[str, ...]:
    """Let studies leave this machine by https and to a server that knows us only."""
    found = tuple(url.strip() for url in urls.split(",") if url.strip())
    for url in found:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
            raise SettingsError(
                "WILLIS_REPORT_URL holds an address that is no http(s)://HOST/v1 without a user (environment)"
            )
        if not _is_loopback(address.hostname) and (address.scheme != "https" or not key):
            raise SettingsError(
                f"WILLIS_REPORT_URL is {url!r}, not on this machine; pictures of patients leave it by https "
                "and with a key only: set https://... and WILLIS_REPORT_API_KEY (environment)"
            )
    if not found:
        raise SettingsError("WILLIS_REPORT_URL is empty; set it to http://127.0.0.1:8100/v1 (environment)")
    return found


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _may_pass(error: BaseException) -> bool:
    """Whether the same question may find an answer later."""
    if isinstance(error, APIStatusError):
        return error.status_code in _PASSING or error.status_code >= 500
    return isinstance(error, APIConnectionError | APIResponseValidationError | ValueError | TimeoutError)


def _wait(state: RetryCallState) -> float:
    """Back off, and for as long as the server asks by Retry-After."""
    backoff = wait_exponential_jitter(_FIRST_WAIT_S, _LONGEST_WAIT_S, jitter=_FIRST_WAIT_S)(state)
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    return max(backoff, float(asked)) if asked.isdigit() else backoff


def _quoted(error: APIStatusError) -> str:
    """The server's own words, shortened; it may quote the request, so pictures are taken out."""
    words = re.sub(r"data:image[^\s\"']*", "<picture>", error.message)
    return " ".join(words.split())[:_QUOTED_CHARACTERS]


def _cost(answer: ChatCompletion, seconds: float) -> Cost:
    if answer.usage is None:
        return Cost(seconds=seconds)
    return Cost(answer.usage.prompt_tokens, answer.usage.completion_tokens, seconds)
