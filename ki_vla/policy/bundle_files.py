"""What the JSON files of a bundle hold: its manifest, and `config.json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator
from typing_extensions import Self

from ki_common.configuration.types import Matches
from ki_vla.errors import VlaError
from ki_vla.model.config import ModelConfig, VlaConfig
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.serving import Serving

FORMAT = 1
# Fields of `processing` that older bundles do not have; their defaults are what those bundles mean.
YOUNGER = {
    'flow_scale', 'subtasks', 'state_normalisation', 'rules', 'state_text_columns', 'state_text_lowest', 'jpeg_decode',
}  # fmt: skip


class FileEntry(VlaConfig):
    """One file of a bundle."""

    bytes: NonNegativeInt
    """Its size."""
    sha256: Annotated[str, Matches(r'[0-9a-f]{64}', 'write 64 hex digits')]
    """sha256 of its content."""


class ManifestFile(VlaConfig):
    """`manifest.json`: every file of the policy, and where it comes from."""

    format: Literal[1]
    """Version of the form of the folder; a newer one needs a newer KI Stack."""
    name: str = Field(min_length=1)
    """What people call the policy."""
    files: dict[str, FileEntry]
    """By path inside the folder."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Data, steps, versions; free, but for `trained` (see `Bundle.trained_parts`)."""


class ConfigFile(VlaConfig):
    """`config.json`: what the policy is, apart from its weights and its robot."""

    model: ModelConfig
    """Structure of the model."""
    processing: Processing
    """How data are processed."""
    serving: Serving | None = None
    """How it was made to be served; left out, the default for its horizon."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """How it was trained, as plain data."""

    @model_validator(mode='after')
    def _nothing_is_assumed(self) -> Self:
        """A policy says how its data are processed and how it is served: a default that changed would change it."""
        for name, part, younger in (('processing', self.processing, YOUNGER), ('serving', self.serving, {'decode'})):
            missing = set() if part is None else set(type(part).model_fields) - part.model_fields_set - younger
            if missing:
                raise ValueError(f'{name} has no field {", ".join(sorted(missing))}; a policy says all of them')
        return self

    @model_validator(mode='after')
    def _serving_fits_the_horizon(self) -> Self:
        if self.serving is not None:
            try:
                self.serving.check_horizon(self.model.horizon)
            except VlaError as error:
                raise ValueError(str(error)) from None
        return self
