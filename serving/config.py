"""What `deploy` tells the application: the `args` of the Serve config."""

from pydantic import BaseModel, ConfigDict

from willis.casework import DeployParams, IngestParams, ReportParams
from willis.errors import SettingsError
from willis.settings import Settings


class ServeConfig(BaseModel):
    """The application's arguments. Secrets are no part of them: Ray's dashboard shows these to everyone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    deploy: DeployParams = DeployParams()
    ingest: IngestParams = IngestParams()
    report: ReportParams = ReportParams()
    secrets: tuple[str, ...] = ()

    def check_secrets(self, settings: Settings) -> None:
        """Refuse to start without a secret that was set where `deploy` ran.

        Raises:
            SettingsError: names the variables; an endpoint without its keys would be open.
        """
        missing = [name for name in self.secrets if name not in settings.model_fields_set]
        if missing:
            names = ", ".join(f"WILLIS_{name.upper()}" for name in missing)
            raise SettingsError(
                f"{names} was set where `willis deploy` ran, and is not set in this replica; start Ray with "
                "it, or put it into a file of WILLIS_SECRETS_DIR"
            )
