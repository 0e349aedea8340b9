"""An endpoint over a small, real, untrained bundle: in this process, or published for Ray Serve."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pandas as pd
import torch

from tests.networks import network_with_opinions
from willis.imaging.grid import Grid
from willis.imaging.prepare import template_brain
from willis.models.bundle import Bundle, Lineage, SeenPatients, write_bundle
from willis.models.case import Case
from willis.models.decision import Calibration
from willis.models.network import NetworkConfig
from willis.models.preprocessing import PREPROCESSING, Preprocessing
from willis.models.table import FeatureColumn
from willis.params import DeployParams, IngestParams, ReportParams
from willis.pseudonym import pseudonym
from willis.settings import Settings
from willis.stores.registry import Registry

SMALL = IngestParams(shape=(22, 26, 13), spacing_mm=(8.0, 8.0, 12.0))
FULL = IngestParams()
MADE_AT = datetime(2026, 5, 1, tzinfo=UTC)
CLINICAL = {
    "age": 71,
    "sex": "F",
    "nihss": 9,
    "glucose_mmol_l": 6.1,
    "admission_time": "2026-05-01T08:00:00Z",
}


def small_bundle(
    folder: Path,
    ingest: IngestParams = SMALL,
    seed: int = 0,
    key: str = "test",
    width: int = 32,
    fact: str = "volume_ml",
) -> Bundle:
    """Write a bundle whose network was never trained; another seed is another version."""
    parts = folder.with_name(f"{folder.name}-parts")
    parts.mkdir(parents=True)
    torch.manual_seed(seed)
    config = NetworkConfig(
        sequences=ingest.sequences,
        shape=ingest.shape,
        fact_columns=(FeatureColumn(name=fact, log=True, mean=2.0),),
        table_columns=(FeatureColumn(name="age", mean=70, sd=12), FeatureColumn(name="nihss", mean=6, sd=5)),
        text_encoder="all-MiniLM-L6-v2",
        width=width,
        contrast_width=16,
        prevalence=0.35,
    )
    from safetensors.torch import save_file

    weights = {
        name: tensor.contiguous() for name, tensor in network_with_opinions(config).state_dict().items()
    }
    save_file(weights, parts / "model.safetensors")
    (parts / "contract.json").write_text(config.model_dump_json())
    (parts / "calibration.json").write_text(
        Calibration(temperature=1.5, conformal_quantile=0.7).model_dump_json()
    )
    (parts / "evaluation.json").write_text("{}")
    (parts / PREPROCESSING).write_text(Preprocessing.of(ingest, None).model_dump_json())
    seen = SeenPatients(
        key_check="k", train=(pseudonym("sub-seen", key),), validation=(), calibration=(), test=()
    )
    (parts / "patients.json").write_text(seen.model_dump_json())
    reference = pd.DataFrame({"patient": [pseudonym("sub-seen", key), pseudonym("sub-other", key)], "p": 0.5})
    reference.to_parquet(parts / "reference.parquet")
    (parts / "model_card.md").write_text("# Untrained\n")
    sources = {path.name: path for path in parts.iterdir()}
    lineage = Lineage(cohort_md5="0" * 32 + ".dir", git_revision="a" * 40, git_dirty=False)
    return write_bundle(folder, sources, lineage, ingest.sequences, MADE_AT, "mrs_90d")


def publish(bundle: Bundle, settings: Settings, alias: str = "champion") -> None:
    """Put a bundle into the registry and point the alias at it."""
    registry = Registry.open(settings)
    registry.publish(bundle)
    assert registry.move(registry.alias(alias), bundle.version)


def test_settings(root: Path, **changes: object) -> Settings:
    """Settings whose every folder is below `root`; the pseudonym key is a file, as on a cluster."""
    (root / "secrets").mkdir(exist_ok=True)
    (root / "secrets" / "willis_pseudonym_key").write_text("test")
    values: dict[str, object] = {
        "registry": str(root / "registry"),
        "bundle_cache": root / "bundles",
        "object_store": str(root / "objects"),
        "database_url": f"sqlite:///{root}/log.db",
        "feast_dir": root / "feast",
        "monitor_dir": root / "monitoring",
        "metrics_dir": root / "metrics",
        "pseudonym_key": "test",
        "secrets_dir": root / "secrets",
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


test_settings.__test__ = False  # type: ignore[attr-defined]


def volumes(folder: Path, ingest: IngestParams = SMALL, seed: int = 0) -> dict[str, Path]:
    """Write DWI, ADC and FLAIR in MNI space with an infarct on the patient's left."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    grid = Grid(ingest.shape, ingest.spacing_mm)
    brain = template_brain(grid)
    x, y, z = np.meshgrid(*[np.arange(edge) for edge in ingest.shape], indexing="ij")
    centre = np.array(ingest.shape) * (0.33, 0.5, 0.6)
    radius = np.array(ingest.shape) * 0.1
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radius, strict=True)) < 1
    lesion = inside & brain
    noise = rng.normal(0, 8, ingest.shape)
    arrays = {
        "dwi": np.where(brain, 200 + noise + 250 * lesion, 0),
        "adc": np.where(brain, 850 + noise - 450 * lesion, 0),
        "flair": np.where(brain, 300 + noise + 80 * lesion, 0),
    }
    paths = {}
    for name, array in arrays.items():
        paths[name] = folder / f"{name}.nii.gz"
        image = nib.Nifti1Image(array.clip(0).astype(np.int16), grid.affine)
        image.set_qform(grid.affine, code=4)
        image.set_sform(grid.affine, code=4)
        nib.save(image, paths[name])
    return paths


@dataclass
class LocalModel:
    """The real model in this process, as `serving.app.Model` holds it in a replica."""

    loaded: object
    seen: list[Case] = field(default_factory=list)

    async def predict(self, case: Case) -> object:
        self.seen.append(case)
        return self.loaded.predict([case])[0]  # type: ignore[attr-defined]

    async def describe(self) -> object:
        return self.loaded.describe()  # type: ignore[attr-defined]


@dataclass
class LocalEndpoint:
    """The endpoint without Ray: its settings, its parts, and a client that calls it through ASGI."""

    settings: Settings
    endpoint: object
    client: httpx.AsyncClient
    bundle: Bundle


@contextmanager
def local_endpoint(
    root: Path,
    settings: Settings | None = None,
    deploy: DeployParams | None = None,
    report: ReportParams | None = None,
    ingest: IngestParams = SMALL,
    peer: str = "127.0.0.1",
) -> Iterator[LocalEndpoint]:
    """Assemble an endpoint as the ingress does, over the published bundle."""
    from serving.api import create_api
    from serving.config import ServeConfig
    from serving.endpoint import Endpoint
    from serving.metrics import Metrics
    from serving.model import LoadedBundle
    from serving.retention import Retention
    from willis.casework import Caseworker
    from willis.stores.objects import open_store
    from willis.stores.predictions import PredictionLog

    now = settings or test_settings(root)
    bundle = small_bundle(root / "bundle", ingest)
    publish(bundle, now)
    config = ServeConfig(
        version=bundle.version,
        deploy=deploy or DeployParams(),
        ingest=ingest,
        report=report or ReportParams(),
    )
    log = PredictionLog(now.database_url.get_secret_value())
    with ThreadPoolExecutor(4) as workers:
        endpoint = Endpoint(
            config=config,
            settings=now,
            caseworker=Caseworker(config.ingest, config.report, now),
            model=LocalModel(LoadedBundle(bundle.version, now)),  # type: ignore[arg-type]
            log=log,
            objects=open_store(now.object_store, now),
            metrics=Metrics(),
            workers=workers,
            retention=Retention(log, now.retention_days),
        )
        transport = httpx.ASGITransport(create_api(endpoint), raise_app_exceptions=False, client=(peer, 5))
        yield LocalEndpoint(
            now, endpoint, httpx.AsyncClient(transport=transport, base_url="http://willis"), bundle
        )


def call(served: LocalEndpoint, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request to the application in this process."""

    async def send() -> httpx.Response:
        return await served.client.request(method, path, **options)

    return asyncio.run(send())
