"""A configuration's fields as JSON Schema: editors complete files with it, and the reference is made from it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes of field names: they repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Types, defaults, bounds, choices and descriptions of every field (JSON Schema, draft 2020-12)."""
    return model.model_json_schema(schema_generator=_WithoutFieldTitles)
