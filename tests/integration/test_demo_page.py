"""The demo's page in a real browser, wide and narrow, from made-up outputs of the steps."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from infra.local.circle import Circle
from infra.local.page import write_page
from infra.local.source import Source
from pipelines.local import StepRun
from tests.evaluations import an_evaluation
from tests.unit.test_local_page import a_column, a_window
from willis.evaluation import plots
from willis.evaluation.card import model_card
from willis.params import Params

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.integration
REASON = "the set does not name its scanners"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page of two real patients, one of them without outcome, table and report."""
    evaluation, folder = an_evaluation(), tmp_path / "evaluate"
    folder.mkdir()
    (folder / "evaluation.json").write_text(evaluation.model_dump_json())
    (folder / "model_card.md").write_text(model_card(evaluation) + "\n<script>alert(1)</script>\n")
    outcome = np.array([0, 1] * 5, float)
    plots.draw_roc(folder / "roc.png", outcome, outcome * 0.2, {"boosting on facts": outcome}, None)
    plots.draw_decision(folder / "decision.png", evaluation.decision)
    ramp = np.linspace(0, 1, 500, dtype=np.float32).reshape(10, 10, 5)
    for name in evaluation.saliency:
        plots.draw_saliency(folder / name, plots.SaliencyView(name, ramp, ramp, ramp > 0.9, (2, 2, 4)))
    pd.DataFrame(
        {"patient_id": ["sub-1", "sub-2"], "p": [0.9, 0.2], "mrs": [5, np.nan], "poor_outcome": [1, np.nan],
         "picture": evaluation.saliency,
         "attribution_image": [0.1, -0.2], "attribution_text": [0.0, np.nan],
         "attribution_table": [0.3, np.nan]}
    ).to_parquet(folder / "predictions.parquet")  # fmt: skip
    pd.DataFrame({"patient_id": ["sub-1"], "text": ["No <b>infarct</b>."]}).to_parquet(
        tmp_path / "reports.parquet"
    )
    columns = [a_column(f"f_load_a_rather_long_region_{k}", k / 20, k > 20) for k in range(30)]
    absent = {"ceiling": "nobody knows", "new_scanner": REASON}
    source = Source("the real patients", tmp_path, Params(), lambda: True, {}, absent)
    steps = {"report": StepRun(1.0, False, tmp_path), "evaluate": StepRun(2.0, True, folder)}
    windows = {"ordinary": a_window(*columns), "new_scanner": None}
    return write_page(Circle(source, tmp_path, steps, {}, windows), tmp_path / "index.html")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen_and_nothing_is_loaded(
    page: Path, browser: "Browser", width: int
) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    tab.eval_on_selector_all("details", "folded => folded.forEach(each => each.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_page_says_first_what_a_reader_must_know(page: Path, browser: "Browser") -> None:
    tab = browser.new_page()
    tab.goto(page.as_uri())
    header = tab.inner_text("header")
    assert "not for diagnosis" in header
    assert "Rankin score 3-6 (registry, read as the one at discharge)" in header
    assert "not for diagnosis" in tab.inner_text("footer")
    assert tab.inner_text(".rivals tbody tr >> nth=0").startswith("Willis")
    assert tab.locator(".strongest").all_inner_texts()[0].startswith("boosting on facts")
    assert "Better than Willis beyond chance: logistic on facts." in tab.inner_text("main")


def test_what_is_absent_is_said_and_leaves_no_empty_cell(page: Path, browser: "Browser") -> None:
    tab = browser.new_page()
    tab.goto(page.as_uri())
    drift = tab.locator("#drift ~ .card >> nth=0")
    assert REASON in tab.inner_text("main")
    assert drift.locator("thead th").all_inner_texts() == ["Column", "Group", "ordinary"]
    cells = drift.locator("tbody td").all_inner_texts()
    assert len(cells) == 2 * 12
    assert all(cell.strip() for cell in cells)
    assert tab.locator(".patient >> nth=1").inner_text().count("absent") == 2
    assert "no report" in tab.locator(".patient >> nth=1").inner_text()


def test_pictures_are_described_and_given_text_stays_text(page: Path, browser: "Browser") -> None:
    tab = browser.new_page()
    tab.goto(page.as_uri())
    texts = tab.eval_on_selector_all("img", "images => images.map(image => image.alt)")
    assert len(texts) == 4
    assert all(len(text) > 30 for text in texts)
    assert texts[0].startswith("sub-1: Axial")
    assert "No <b>infarct</b>." in tab.inner_text(".patients")
    assert tab.locator("script").count() == 0
    assert tab.locator(".modelcard table").count() == 2
