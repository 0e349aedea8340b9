"""From a prediction back to its cohort."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.bundles import a_bundle
from tests.prediction_rows import prediction_row
from willis.errors import InputError
from willis.lineage import lineage, render_lineage
from willis.models.bundle import Bundle
from willis.settings import Settings
from willis.stores.predictions import PredictionLog
from willis.stores.registry import Registry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        registry=str(tmp_path / "registry"), bundle_cache=tmp_path / "cache",
        database_url=f"sqlite:///{tmp_path / 'log.db'}",
    )  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path, settings: Settings) -> Bundle:
    """A published bundle whose prediction p-1 is in the log."""
    bundle = a_bundle(tmp_path / "made")
    Registry.open(settings).publish(bundle)
    log = PredictionLog(settings.database_url.get_secret_value())
    log.append(prediction_row("p-1", bundle_version=bundle.version))
    log.append(prediction_row("p-lost", bundle_version="f" * 16))
    log.close()
    return bundle


def test_a_prediction_leads_back_to_bundle_code_and_cohort(bundle: Bundle, settings: Settings) -> None:
    chain = lineage("p-1", settings)
    assert chain.bundle.version == bundle.version
    assert chain.training == bundle.manifest.lineage
    assert (chain.training.cohort_md5, chain.training.git_dirty) == ("abc.dir", False)
    assert chain.prediction.report.model == "measured-facts"
    assert chain.prediction.feature_times == {"clinical": "2026-05-01T08:00:00+00:00"}


def test_the_chain_reads_from_the_prediction_down_to_the_cohort(bundle: Bundle, settings: Settings) -> None:
    console = Console(file=(page := StringIO()), width=120)
    console.print(render_lineage(lineage("p-1", settings)))
    text = page.getvalue()
    order = [
        "p-1",
        "measured-facts",
        "as of 2026-05-01T08",
        bundle.version,
        "git 0000",
        "clean",
        "DVC md5 abc.dir",
    ]
    assert [text.find(word) for word in order] == sorted(text.find(word) for word in order)
    assert -1 not in [text.find(word) for word in order]
    assert "events from not recorded" in text


def test_an_unknown_prediction_is_named_with_where_it_was_looked_for(
    bundle: Bundle, settings: Settings
) -> None:
    with pytest.raises(InputError, match="no prediction 'p-2'.*WILLIS_DATABASE_URL"):
        lineage("p-2", settings)


def test_a_prediction_whose_bundle_is_gone_names_the_bundle(bundle: Bundle, settings: Settings) -> None:
    with pytest.raises(InputError, match="no bundle or alias 'ffffffffffffffff'"):
        lineage("p-lost", settings)
