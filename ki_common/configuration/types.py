"""Types of fields that several configurations have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Matches:
    """In `Annotated[str, Matches(...)]`: the whole text must match, and the refusal says what to write.

    Attributes:
        pattern: A regular expression that Python and JSON Schema read alike.
        write: What to write instead, such as `write a ROS topic name`.
        longest: Most characters.
    """

    pattern: str
    write: str
    longest: int = 256

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checks after pydantic's own check that it is text."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Mapping[str, Any]:
        """The same as JSON Schema, for editors."""
        return {**handler(schema), 'pattern': f'^({self.pattern})$', 'maxLength': self.longest}

    def _checked(self, text: str) -> str:
        if len(text) > self.longest or not re.fullmatch(self.pattern, text):
            raise ValueError(self.write)
        return text
