"""Submit a compiled pipeline to a Kubeflow Pipelines host (the library's only importer of kfp)."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from willis.errors import ParamsError, ServiceError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Submission(BaseModel):
    """A run that the host has accepted."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    url: str


def submit(package: Path, host: str, cohort: str, experiment: str) -> Submission:
    """Create a run from a compiled package.

    Args:
        package: YAML that `python -m pipelines.training` wrote.
        host: address of the KFP API; https unless it is loopback.
        cohort: the pipeline's `cohort` argument, a path or URI that the cluster can read.
        experiment: name under which the host files the run.

    Raises:
        ParamsError: no such package, or a remote host without https.
        ServiceError: the host does not answer or refuses the run.
    """
    if not package.is_file():
        raise ParamsError(
            f"{package} does not exist; write it with `python -m pipelines.training --out {package}`"
        )
    address = urlsplit(host)
    if address.scheme != "https" and address.hostname not in LOOPBACK:
        raise ParamsError(f"--host is {host!r}; a host that is not loopback needs https")
    from kfp import Client

    try:
        client = Client(host=host)
        run = client.create_run_from_pipeline_package(
            str(package), arguments={"cohort": cohort}, experiment_name=experiment
        )
    except Exception as error:  # kfp raises urllib3, OpenAPI and plain errors alike
        raise ServiceError(
            f"{host} did not accept {package.name}: {error}; is the KFP API up there?"
        ) from error
    return Submission(run_id=run.run_id, url=f"{host}/#/runs/details/{run.run_id}")
