"""One prediction from request to answer, in the log's order: the row first, then the answer."""

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from starlette.requests import Request

from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.model import Model, Reply
from serving.problems import BUSY, CONFLICT, INVALID, NOT_FOUND, ProblemError
from serving.retention import Retention
from serving.schema import (
    Attribution,
    Health,
    ModelAnswer,
    OutcomeAnswer,
    OutcomeReport,
    PredictionAnswer,
    ReportAnswer,
)
from serving.submission import Submission, read_submission
from willis.casework import CaseReport, Caseworker, PreparedCase, PreparedStudy, pseudonym
from willis.errors import InputError
from willis.inference import Prediction
from willis.settings import Settings
from willis.stores.objects import ObjectStore
from willis.stores.predictions import OutcomeResult, PredictionLog, PredictionRow

_MIB = 1024 * 1024
T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """Everything that answering needs; `api.py` gives it its routes."""

    config: ServeConfig
    settings: Settings
    caseworker: Caseworker
    model: Model
    log: PredictionLog
    objects: ObjectStore
    metrics: Metrics
    workers: ThreadPoolExecutor
    retention: Retention

    async def predict(self, request: Request) -> str:
        """Answer one prediction request.

        Returns:
            The answer as JSON; the same text is in the log.

        Raises:
            ProblemError: the request cannot be answered.
            WillisError: the input breaks a rule, or a service does not answer; no answer leaves then.
        """
        async with self._admitted(), _request_folder() as folder:
            try:
                with self.metrics.stage("read"):
                    submission = await read_submission(
                        request, folder, self.objects, int(self.config.deploy.max_upload_mb * _MIB)
                    )
                prepared = await self._prepare(submission)
            except InputError as error:
                raise ProblemError(INVALID, str(error).replace(f"{folder}/", "")) from None
            with self.metrics.stage("model"):
                reply = await self.model.predict(prepared.case)
            return await self._log(request, submission, prepared, reply)

    async def stored(self, prediction_id: str) -> str:
        """Return the JSON that was answered under this id.

        Raises:
            ProblemError: the log holds no such prediction.
        """
        found = await self._in_thread(self.log.get, prediction_id)
        if found is None:
            raise _unknown(prediction_id)
        return found.row.answer

    async def record_outcome(self, report: OutcomeReport) -> OutcomeAnswer:
        """Keep an outcome.

        Raises:
            ProblemError: no such prediction, or another outcome stands already.
        """
        result = await self._in_thread(self.log.add_outcome, report.prediction_id, report.mrs_90d)
        self.metrics.outcome(result.value)
        if result is OutcomeResult.UNKNOWN_PREDICTION:
            raise _unknown(report.prediction_id)
        if result is OutcomeResult.CONFLICT:
            raise ProblemError(
                CONFLICT,
                f"another outcome than mRS {report.mrs_90d} stands for {report.prediction_id}; the first one "
                "is kept",
            )
        return OutcomeAnswer(
            prediction_id=report.prediction_id,
            mrs_90d=report.mrs_90d,
            poor_outcome=report.mrs_90d >= 3,
            result="recorded" if result is OutcomeResult.RECORDED else "unchanged",
        )

    async def describe(self) -> ModelAnswer:
        """Say which bundle answers."""
        return await self.model.describe()

    async def health(self) -> Health:
        """Answer when model and log do.

        Raises:
            StoreError: the log does not answer.
        """
        await self._in_thread(self.log.count)
        return Health(bundle_version=(await self.model.describe()).bundle_version)

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self.metrics.num_in_flight >= self.config.deploy.max_in_flight:
            raise ProblemError(
                BUSY, f"{self.config.deploy.max_in_flight} predictions are being worked on here; try again"
            )
        with self.metrics.in_flight():
            yield

    async def _prepare(self, submission: Submission) -> PreparedCase:
        asked, work = submission.request, self.caseworker
        table, feature_times = asked.clinical, dict[str, str]()
        if table is None and asked.patient_id is not None:
            with self.metrics.stage("features"):
                table, feature_times = await self._in_thread(work.read_table, asked.patient_id)
        with self.metrics.stage("prepare"):
            study = await self._in_thread(work.prepare, submission.files, asked.space)
        with self.metrics.stage("report"):
            text = await self._report(submission, study)
        return work.assemble(uuid.uuid4().hex, study, table, text, feature_times)

    async def _report(self, submission: Submission, study: PreparedStudy | None) -> CaseReport:
        sent = submission.request.report
        if sent is not None:
            return self.caseworker.take_report(sent, study)
        deadline_s = self.config.deploy.report_deadline_s
        try:
            return await asyncio.wait_for(self._in_thread(self.caseworker.write_report, study), deadline_s)
        except TimeoutError:
            return CaseReport("none", failure=f"the writer gave no report within {deadline_s:g} s")

    async def _log(self, request: Request, submission: Submission, case: PreparedCase, reply: Reply) -> str:
        """Commit the row; only then may the answer leave."""
        if reply.prediction is None:
            raise ProblemError(INVALID, reply.refusal or "the model refused the case")
        answer = _answer(case, reply.bundle_version, reply.prediction)
        text = answer.model_dump_json()
        row = self._row(request, submission, case, reply.prediction, answer, text)
        with self.metrics.stage("log"):
            await self._in_thread(self.log.append, row)
        self.workers.submit(self.retention.enforce)
        modalities = tuple(answer.modalities_used)
        self.metrics.prediction(answer.bundle_version, modalities, case.report.failure is not None)
        return text

    def _row(
        self, request: Request, submission: Submission, case: PreparedCase, prediction: Prediction,
        answer: PredictionAnswer, text: str,
    ) -> PredictionRow:  # fmt: skip
        patient_id = submission.request.patient_id
        key = self.settings.pseudonym_key.get_secret_value()
        state = request.scope["state"]
        made = case.logged()
        return PredictionRow(
            prediction_id=answer.prediction_id,
            created_at=answer.created_at,
            request_id=state["request_id"],
            bundle_version=answer.bundle_version,
            modalities_used=tuple(answer.modalities_used),
            probability=prediction.probability,
            probability_raw=prediction.probability_raw,
            prediction_set=tuple(answer.prediction_set),
            attribution=answer.attribution.model_dump(),
            embedding=prediction.embedding,
            answer=text,
            patient=pseudonym(patient_id, key) if patient_id else None,
            site=submission.request.site,
            scanner=submission.request.scanner,
            table=made.table,
            facts=made.facts,
            report=made.report,
            report_text=made.report_text,
            report_writer=made.report_writer,
            report_model=made.report_model,
            report_prompt_hash=made.report_prompt_hash,
            grounding_score=made.grounding_score,
            feature_times=made.feature_times,
            latency_ms=(time.perf_counter() - state["started"]) * 1000,
        )

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.workers, function, *arguments)


def _answer(case: PreparedCase, bundle_version: str, prediction: Prediction) -> PredictionAnswer:
    report = case.report
    shares = {name: prediction.attribution.get(name, 0.0) for name in ("image", "text", "table")}
    return PredictionAnswer(
        prediction_id=case.case.case_id,
        created_at=datetime.now(UTC),
        bundle_version=bundle_version,
        probability=prediction.probability,
        prediction_set=list(prediction.prediction_set),
        modalities_used=list(prediction.modalities_used),
        attribution=Attribution(prevalence=prediction.prevalence, **shares),
        facts=case.facts,
        report=ReportAnswer(
            source=report.source, text=report.text, report=report.report, failure=report.failure
        ),
        warnings=list(case.warnings),
    )


def _unknown(prediction_id: str) -> ProblemError:
    return ProblemError(NOT_FOUND, f"the log holds no prediction {prediction_id}; it may have been erased")


@asynccontextmanager
async def _request_folder() -> AsyncIterator[Path]:
    """A folder of one request's own; what a caller sent is gone from disk when the answer leaves."""
    folder = Path(tempfile.mkdtemp(prefix="willis-request-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
