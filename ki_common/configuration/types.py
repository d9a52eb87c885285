"""Types of fields that several configurations have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from ki_common.configuration.model import Config


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

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The same as JSON Schema, for editors."""
        return {**handler(schema), 'pattern': f'^({self.pattern})$', 'maxLength': self.longest}

    def _checked(self, text: str) -> str:
        if len(text) > self.longest or not re.fullmatch(self.pattern, text):
            raise ValueError(self.write)
        return text


@dataclass(frozen=True)
class OneOf:
    """In `Annotated[str, OneOf(TABLE)]`: one of names that are made elsewhere; where they are few, write `Literal`.

    Attributes:
        names: All of them.
    """

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As of a `Literal`."""
        return core_schema.literal_schema(list(self.names))


class _OneOrMore:
    """A word that stands alone where a list of words is wanted counts as a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda given: (given,) if isinstance(given, str) else given, handler(source)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {'anyOf': [handler(schema), {'type': 'string'}]}


# A list of words, or one word alone.
Words = Annotated[tuple[str, ...], _OneOrMore()]


@dataclass(frozen=True)
class ChangesOf:
    """In `Annotated[dict[str, Any], ChangesOf(Model)]`: some fields of a configuration, and of those inside it.

    Names, types and bounds are held like those of the configuration itself; rules between fields are for whoever puts
    the changes in. The value is plain data with the fields that were given.

    Attributes:
        model: Whose fields may be changed.
    """

    model: type[Config]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A table in which every field may be left out."""
        return core_schema.no_info_after_validator_function(
            lambda found: found.model_dump(exclude_unset=True) if isinstance(found, BaseModel) else found,
            handler.generate_schema(_all_optional(self.model)),
            serialization=core_schema.plain_serializer_function_ser_schema(dict),
        )


class _Changes(Config):
    """The base of models made here, which have no source that descriptions could be searched in."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def _all_optional(model: type[Config]) -> type[Config]:
    fields: dict[str, Any] = {}
    for name, about in model.model_fields.items():
        kind: Any = about.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            kind = _all_optional(kind)
        for bound in about.metadata:
            kind = Annotated[kind, bound]
        fields[name] = (kind, Field(default_factory=lambda: None, description=about.description))
    return create_model(f'{model.__name__}Changes', __base__=_Changes, __doc__=f'Fields of {model.__name__}.', **fields)
