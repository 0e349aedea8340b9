"""Deployment facts, read from `WILLIS_*` environment variables here and nowhere else.

A laptop, CI and a cluster run the same code and differ in these values alone.
"""

import os
from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from willis.errors import SettingsError

DEMO_PSEUDONYM_KEY = "willis-demo-only"
"""Known to everybody who reads this file."""


class Settings(BaseSettings):
    """One field per environment variable: `WILLIS_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="WILLIS_", frozen=True, extra="ignore")

    ray_address: str = Field("auto", description="Ray cluster that training and batch inference join.")
    ray_dashboard_url: str = Field(
        "http://127.0.0.1:8265", description="Ray dashboard, where `deploy` puts the Serve config."
    )
    ray_auth_token: SecretStr | None = Field(
        None, description="Token of the Ray cluster, where it asks for one (RAY_AUTH_MODE=token)."
    )
    endpoint_url: str = Field("http://127.0.0.1:8000", description="Where the deployed application answers.")
    serve_bind: str = Field(
        "127.0.0.1:8000",
        pattern=r"^[^:\s]+:\d{1,5}$",
        description="host:port that the ingress of the application listens on; other hosts need API keys.",
    )
    metrics_dir: Path = Field(
        Path("build/metrics"), description="Where replicas on one node share their counters for /metrics."
    )
    secrets_dir: Path | None = Field(
        None,
        description="Folder with one file per secret, named as its variable in small letters.",
    )
    registry: str = Field("build/registry", description="Bundle registry: a folder or s3://bucket/prefix.")
    bundle_cache: Path = Field(Path("build/bundles"), description="Local folder for fetched bundles.")
    object_store: str = Field(
        "build/objects", description="Where requests may refer to volumes: a folder or s3://bucket/prefix."
    )
    atlas: Path | None = Field(
        None,
        description="Arterial atlas that the bundle's cohort brought along (derivatives/atlas/*.nii.gz); "
        "unset means Willis's own approximation.",
    )
    s3_endpoint_url: str | None = Field(None, description="S3 endpoint; unset means AWS's own.")
    s3_access_key: SecretStr | None = Field(None, description="S3 access key; unset means boto3's own chain.")
    s3_secret_key: SecretStr | None = Field(None, description="S3 secret key.")
    dvc_remote: str = Field("build/dvc-remote", description="DVC remote: a folder or s3://bucket/prefix.")
    database_url: SecretStr = Field(
        SecretStr("sqlite:///build/predictions.db"), description="SQLAlchemy URL of the prediction log."
    )
    feast_dir: Path = Field(
        Path("build/feast"), description="Feast's registry, SQLite online store and offline files."
    )
    feast_online: str = Field("sqlite", description="Feast online store: `sqlite` or redis://host:port.")
    feature_repo: Path = Field(
        Path("feature_repo"), description="Folder of Feast's definitions, features.py."
    )
    report_store: Path = Field(
        Path("build/reports.sqlite"), description="Every report ever written, so that none is paid for twice."
    )
    report_url: str = Field(
        "http://127.0.0.1:8100/v1",
        description="OpenAI-compatible server behind the LLM report writer, or several, comma-separated; "
        "other hosts need https and a key.",
    )
    report_api_key: SecretStr | None = Field(None, description="Key for that server.")
    vllm_python: Path = Field(
        Path(".venv-vllm/bin/python"), description="Python with vLLM, for `willis reports serve`."
    )
    vllm_options: str = Field(
        "--dtype float32 --enforce-eager --max-num-seqs 16",
        description="Further options of vLLM's server; the default suits its CPU build.",
    )
    vllm_start_s: int = Field(300, ge=1, description="Seconds until vLLM must be healthy.")
    kfp_token: SecretStr | None = Field(
        None, description="Bearer token for the KFP host of `willis pipeline submit`, where it asks for one."
    )
    api_keys: SecretStr | None = Field(
        None, description="Comma-separated keys that callers may use; unset means loopback callers only."
    )
    pseudonym_key: SecretStr = Field(
        SecretStr(DEMO_PSEUDONYM_KEY),
        description="Key of the hash that replaces patient ids at intake, in the prediction log and in "
        "bundles. The default is public, so that anybody could find patients by it: `deploy` refuses it "
        "where the endpoint listens to other hosts.",
    )
    monitor_dir: Path = Field(Path("build/monitoring"), description="Evidently workspace and drift reports.")
    retention_days: int = Field(365, ge=1, description="Days that a prediction stays in the log.")
    data_dir: Path | None = Field(None, description="Real data for the tests and benchmarks that need it.")


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: a variable is malformed; names the variable, the value and the rule.
    """
    try:
        return Settings(_secrets_dir=os.environ.get("WILLIS_SECRETS_DIR"))  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = "WILLIS_" + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name} is {first['input']!r}: {first['msg']} (environment)") from None
