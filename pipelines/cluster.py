"""What a cluster must tell a task: limits, retries, and every setting, from one config map and one secret.

A key is the setting's name with hyphens, the variable `WILLIS_` and the name in capitals; secrets are what
`willis/settings.py` types as such. infra/k8s/settings.yaml holds both, to fill in.
"""

from typing import get_args

from kfp import dsl, kubernetes
from pydantic import SecretStr

from willis.settings import Settings

CONFIG_MAP = SECRET = "willis"
RAY_VARIABLE = "RAY_AUTH_TOKEN"  # Ray's own client reads the token there
CPU, MEMORY = "4", "16Gi"
LOCAL = {
    "data_dir": "read by tests and benchmarks alone",
    "kfp_token": "read where `willis pipeline submit` runs",
    "secrets_dir": "a folder of the node that Ray runs on, set there",
}
"""Settings that no task is given, each with the reason."""


def _is_secret(name: str) -> bool:
    annotation = Settings.model_fields[name].annotation
    return SecretStr in (annotation, *get_args(annotation))


def _keys(*, secret: bool, optional: bool) -> dict[str, str]:
    """Key -> variable; a setting whose default is None may be absent, any other must be said."""
    return {
        name.replace("_", "-"): f"WILLIS_{name.upper()}"
        for name, field in Settings.model_fields.items()
        if name not in LOCAL and _is_secret(name) is secret and (field.default is None) is optional
    }


SECRET_KEYS = {optional: _keys(secret=True, optional=optional) for optional in (False, True)}
CONFIG_KEYS = {optional: _keys(secret=False, optional=optional) for optional in (False, True)}
"""Whether a key may be absent -> key -> variable."""


def on_cluster(task: dsl.PipelineTask) -> None:
    """Give a task limits, retries and its settings."""
    task.set_cpu_limit(CPU).set_memory_limit(MEMORY)
    task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    for optional, keys in SECRET_KEYS.items():
        kubernetes.use_secret_as_env(task, SECRET, keys, optional=optional)
    kubernetes.use_secret_as_env(task, SECRET, {"ray-auth-token": RAY_VARIABLE}, optional=True)
    for optional, keys in CONFIG_KEYS.items():
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, keys, optional=optional)
