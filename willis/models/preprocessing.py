"""preprocessing.json: how a study's files became what a model learned from, so that it is served alike."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from willis.cohort.schema import Sequence
from willis.errors import SettingsError
from willis.params import IngestParams

PREPROCESSING = "preprocessing.json"
_OF_INGEST = (
    "sequences", "planes", "spacing_mm", "shape", "adc_below_mm2_s", "min_lesion_ml",
    "min_registration_quality",
)  # fmt: skip


class AtlasIdentity(BaseModel):
    """An arterial atlas, by its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "AtlasIdentity":
        """Identify an atlas file.

        Raises:
            SettingsError: it cannot be read.
        """
        try:
            return cls(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        except OSError as error:
            raise SettingsError(
                f"WILLIS_ATLAS {path} cannot be read ({error.strerror}); name the atlas file, or unset it"
            ) from None


class Preprocessing(BaseModel):
    """Everything between the files and the model that changes volumes or facts (params.yaml: ingest).

    Attributes:
        atlas: the cohort's own arterial atlas; None means Willis's approximation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: tuple[Sequence, ...]
    planes: tuple[Literal["flair"], ...]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    adc_below_mm2_s: float
    min_lesion_ml: float
    min_registration_quality: float
    atlas: AtlasIdentity | None = None

    @classmethod
    def of(cls, params: IngestParams, atlas: Path | None) -> "Preprocessing":
        """The contract of a run of `ingest`.

        Raises:
            SettingsError: the atlas cannot be read.
        """
        values = {name: getattr(params, name) for name in _OF_INGEST}
        return cls(**values, atlas=AtlasIdentity.of(atlas) if atlas else None)

    def applied_to(self, params: IngestParams) -> IngestParams:
        """The caller's params with everything that changes volumes or facts taken from here."""
        return params.model_copy(update={name: getattr(self, name) for name in _OF_INGEST})

    def differences(self, params: IngestParams) -> tuple[str, ...]:
        """Say where the caller's params are not what the model learned from, one sentence per field."""
        return tuple(
            f"ingest.{name} is {_text(getattr(params, name))} in the params, and the bundle's own "
            f"{_text(getattr(self, name))} is used"
            for name in _OF_INGEST
            if getattr(params, name) != getattr(self, name)
        )

    def unlike(self, other: "Preprocessing") -> tuple[str, ...]:
        """Names of the fields in which two contracts differ."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) != getattr(other, name))

    def check_atlas(self, atlas: Path | None) -> None:
        """Refuse to measure by another atlas than the model's facts.

        Raises:
            SettingsError: names both and what to set.
        """
        given = AtlasIdentity.of(atlas) if atlas else None
        if given and not self.atlas:
            raise SettingsError(
                f"WILLIS_ATLAS is {atlas}; the bundle's facts were measured by Willis's approximation: "
                "unset it"
            )
        if self.atlas and (given is None or given.sha256 != self.atlas.sha256):
            raise SettingsError(
                f"WILLIS_ATLAS is {atlas}; the bundle's facts were measured by {self.atlas.name} (sha256 "
                f"{self.atlas.sha256[:12]}...): set it to that file of the cohort (derivatives/atlas)"
            )

    def atlas_among(self, *found: Path | None) -> Path | None:
        """The atlas of the model's facts among files at hand.

        Raises:
            SettingsError: none of them is it.
        """
        if self.atlas is None:
            return None
        for path in found:
            if path is not None and AtlasIdentity.of(path).sha256 == self.atlas.sha256:
                return path
        self.check_atlas(None)
        return None


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(each) for each in value) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)
