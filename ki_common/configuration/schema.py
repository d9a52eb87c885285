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
    schema = model.model_json_schema(schema_generator=_WithoutFieldTitles)
    _tidy(schema)
    return schema


def _tidy(part: Any) -> None:
    """Joins the lines of every paragraph of a description, and leaves out defaults that repeat those of a model within.

    Lines were broken for the width of the source; the fields of an inner model say their own defaults.
    """
    if isinstance(part, dict):
        text = part.get('description')
        if isinstance(text, str):
            part['description'] = '\n\n'.join(' '.join(each.split()) for each in text.split('\n\n'))
        if isinstance(part.get('default'), dict | list) and '$ref' in {*part, *part.get('items', ())}:
            del part['default']
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _tidy(each)
