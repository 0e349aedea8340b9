"""What a model is asked: one instruction, the pictures with their labels, and the facts where they are told.

A prompt holds nothing of the patient but pixels and measurements: `Study` has no id, no header, no table.
"""

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

from willis.imaging.lesion import Facts
from willis.params import ReportParams
from willis.reports.measured import measured_findings, measured_numbers
from willis.reports.schema import Findings
from willis.reports.slices import Picture, pictures
from willis.reports.writer import Study

INSTRUCTION = """\
You are a neuroradiologist. Describe the brain MRI of one patient with suspected acute ischaemic stroke.
Pictures follow radiological convention: the patient's left is on the right side of a picture.
Acute infarcts are bright on DWI and dark on ADC. Answer with one JSON object of this schema and nothing else:
{schema}
Say unknown (or null) where the pictures and the measurements do not tell; never guess.
Repeat measured values exactly. Sides and territories name the acute infarct only.
findings: at most four sentences. impression: one or two sentences, at most {max_words} words.
Never mention severity scores, disability, prognosis, outcome or treatment."""

MEASURED = "Measured from the volumes: "
ASK = "Write the report."


def instruction(params: ReportParams) -> str:
    """Return the system message."""
    return INSTRUCTION.format(schema=_schema(), max_words=params.max_words)


def prompt_parts(study: Study, params: ReportParams) -> Iterator[str | Picture]:
    """Yield what the user message holds: a label before each picture, then the facts, then the request.

    Raises:
        ReportError: the study shows nothing.
    """
    for picture in pictures(
        study,
        layout=params.layout,
        num_slices=params.num_slices,
        panel_px=params.panel_px,
        through_lesion=params.facts_in_prompt,
    ):
        yield picture.label
        yield picture
    if params.facts_in_prompt and (known := facts_text(study.facts)):
        yield MEASURED + known
    yield ASK


def messages(study: Study, params: ReportParams) -> list[dict[str, Any]]:
    """Build the chat of an OpenAI-compatible request; pictures travel inside it as PNG.

    Raises:
        ReportError: the study shows nothing.
    """
    content = [_content(part) for part in prompt_parts(study, params)]
    return [
        {"role": "system", "content": instruction(params)},
        {"role": "user", "content": content},
    ]


def prompt_hash(params: ReportParams) -> str:
    """Name a prompt by all that shapes it: words, schema, choice and layout of the pictures."""
    shape = (params.layout, params.num_slices, params.panel_px, params.facts_in_prompt)
    text = json.dumps([instruction(params), MEASURED, ASK, shape])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def facts_text(facts: Facts) -> str:
    """Write the known facts as compact JSON, numbers as a report would round them; empty if none is known."""
    fields = measured_findings(facts).model_dump(mode="json", exclude_defaults=True)
    numbers = measured_numbers(facts)
    told = {
        "volume_ml": None if numbers.volume_ml is None else float(f"{numbers.volume_ml:.1f}"),
        "adc_10-6_mm2_s": None if numbers.adc_lesion_mm2_s is None else round(numbers.adc_lesion_mm2_s * 1e6),
    }
    known = fields | {name: value for name, value in told.items() if value is not None}
    return json.dumps(known, separators=(",", ":")) if known else ""


@cache
def _schema() -> str:
    return json.dumps(Findings.model_json_schema(), separators=(",", ":"))


def _content(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(part)}"}}


def _png(picture: Picture) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    # Runs alone: half of the writer's own work was compression, and black is most of what there is.
    Image.fromarray(picture.pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return base64.b64encode(buffer.getvalue()).decode()
