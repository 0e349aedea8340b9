"""The demo as a user walks it: one command, a page, a second run, a kill, a curl line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.local import ANSI
from tests.fixtures.demo import NUM_PATIENTS, NUM_STREAM, Demo, demo_command, demo_environment
from tests.fixtures.processes import left_behind
from tests.fixtures.vllm import ServedReader
from willis.provenance import GRAPH

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_summary_holds_what_the_readme_promises(demo: Demo) -> None:
    summary = demo.summary()
    assert summary["cohort"]["num_patients"] > 0.95 * NUM_PATIENTS
    assert summary["cohort"]["dvc_md5"].endswith(".dir")
    assert summary["training"] == {"num_workers": 2, "epochs": summary["training"]["epochs"]}
    evaluation = summary["evaluation"]
    assert evaluation["auc_low"] <= evaluation["auc"] <= evaluation["auc_high"]
    assert evaluation["baselines"]
    assert len(summary["bundle"]["version"]) == 16
    assert set(GRAPH) <= set(summary["steps"])


def test_the_packaged_reader_wrote_every_report_on_vllm(demo: Demo) -> None:
    summary = demo.summary()
    reports = summary["reports"]
    assert (reports["writer"], reports["num_reports"]) == ("llm", summary["cohort"]["num_patients"])
    assert reports["model"].startswith("willis-reader@")
    assert reports["mean_grounding"] > 0.95 and reports["num_flagged"] < 0.05 * reports["num_reports"]


def test_no_result_exceeds_its_ceiling_by_more_than_chance(demo: Demo) -> None:
    evaluation = demo.summary()["evaluation"]
    assert 0.5 < evaluation["ceiling"] <= 1
    assert evaluation["auc_low"] <= evaluation["ceiling"]


def test_every_request_of_both_streams_is_answered(demo: Demo) -> None:
    serving = demo.summary()["serving"]
    assert serving["num_predictions"] == 2 * NUM_STREAM
    assert serving["num_failed"] == 0


def test_the_new_scanner_rings_and_the_ordinary_window_is_quiet(demo: Demo) -> None:
    monitoring = demo.summary()["monitoring"]
    assert monitoring["new_scanner"]["drift"] is True
    assert monitoring["ordinary"]["drift"] is False


def test_nothing_runs_after_the_demo(demo: Demo) -> None:
    assert left_behind(demo.root) == []


def test_the_page_shows_pictures_and_reports_without_the_network(demo: Demo, browser: "Browser") -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto((demo.root / "index.html").as_uri())
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert problems == []
    assert len(widths) >= 6
    assert min(widths) > 200
    assert page.locator(".patient").count() == 3
    assert "not for diagnosis" in page.inner_text("header")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


def test_a_second_run_recognises_every_step(demo: Demo) -> None:
    demo.run()
    steps = demo.summary()["steps"]
    assert {name for name, step in steps.items() if not step["cached"]} <= {"page"}


def test_why_names_the_parameter_that_changed(demo: Demo, tmp_path: Path) -> None:
    changed = tmp_path / "params.yaml"
    changed.write_text("train: {epochs: 5}\n")
    command = [Path(sys.executable).with_name("willis"), "pipeline", "why", "train", "--json"]
    found = subprocess.run(
        [*command, "--params", changed, "--run", demo.root / "pipeline"], capture_output=True, check=True
    )
    reasons = json.loads(found.stdout)
    assert "params.train.epochs: 4 -> 5" in reasons["reasons"]


def test_a_prediction_leads_back_to_the_data_version(demo: Demo) -> None:
    stream = json.loads((demo.root / "streams" / "ordinary.json").read_text())["result"]
    command = [Path(sys.executable).with_name("willis"), "lineage", stream["first_prediction_id"], "--json"]
    environment = demo_environment(demo.port) | {
        "WILLIS_DATABASE_URL": f"sqlite:///{demo.root}/predictions.db",
        "WILLIS_REGISTRY": f"{demo.root}/registry",
        "WILLIS_BUNDLE_CACHE": f"{demo.root}/bundle-cache",
    }
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    summary = demo.summary()
    assert summary["bundle"]["version"] in found.stdout
    assert summary["cohort"]["dvc_md5"] in found.stdout


def test_the_curl_line_of_make_serve_works_as_pasted(demo: Demo, served_reader: ServedReader) -> None:
    serve = subprocess.Popen(
        [sys.executable, "-m", "infra.local.serve", "--root", str(demo.root)],
        cwd=REPOSITORY,
        env=demo_environment(demo.port) | served_reader.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert serve.stdout is not None
    try:
        line = next((line for line in serve.stdout if line.startswith("curl ")), None)
        assert line is not None, "the endpoint printed no curl line"
        answer = json.loads(subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout)
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait(timeout=60)
    assert 0 < answer["probability"] < 1
    assert set(answer["modalities_used"]) == {"image", "text", "table"}
    assert left_behind(demo.root) == []


def test_after_a_kill_nothing_is_left_and_the_next_run_goes_on(
    demo: Demo, served_reader: ServedReader, tmp_path: Path
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(demo.params.read_text().replace("epochs: 4", "epochs: 3"))
    killed = subprocess.Popen(
        demo_command(demo.root, params),
        cwd=REPOSITORY,
        env=demo_environment(demo.port) | served_reader.variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for_training(demo.root, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    again = Demo(demo.root, params, demo.port, "")
    again.run(environment=served_reader.variables())
    steps = again.summary()["steps"]
    cached = {name: steps[name]["cached"] for name in GRAPH}
    assert cached == {name: name not in ("train", "evaluate", "promote") for name in GRAPH}
    assert left_behind(demo.root) == []


def _num_trainings(root: Path) -> int:
    log = (root / "pipeline" / "pipeline.log").read_text(errors="replace")
    return ANSI.sub("", log).count("Executing task 'train'")


def _wait_for_training(root: Path, process: "subprocess.Popen[bytes]") -> None:
    before = _num_trainings(root)
    deadline = time.monotonic() + 300
    while _num_trainings(root) == before:
        assert process.poll() is None, "the demo ended before it could be killed"
        assert time.monotonic() < deadline, "training never started"
        time.sleep(0.2)
    time.sleep(5)
