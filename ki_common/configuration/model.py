"""The base of every configuration: what it refuses, and how the refusal is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema
from typing_extensions import Self

from ki_common.configuration.refusal import sentence_of
from ki_common.configuration.yaml_reader import read_yaml
from ki_common.errors import ConfigError, KiError


def _take_lists_as_tuples(schema: Any) -> None:
    """Makes every tuple inside a schema take a list, which strict types would refuse; YAML and JSON have no tuples."""
    if isinstance(schema, dict):
        if schema.get('type') == 'tuple':
            schema['strict'] = False
        for part in schema.values():
            _take_lists_as_tuples(part)
    elif isinstance(schema, list):
        for part in schema:
            _take_lists_as_tuples(part)


class Config(BaseModel):
    """Fields that are read from YAML, JSON or ROS parameters, or given in code; an existing one is sound.

    Unknown fields are refused, types are strict (a whole number passes for a number; a boolean or a quoted number does
    not), numbers are finite, and nothing changes after construction. A field is documented by the string below it, with
    its unit; bounds are `Field(gt=0, le=1000)`, choices are `Literal`. Lists become tuples.

    A rule between fields is a `model_validator(mode='after')` that raises ValueError with one sentence, which begins
    with the field, `width is 640 without a height; give both or neither`. A rule of one field, an `AfterValidator`,
    raises ValueError with what to write instead: `write a ROS topic name`.

    Attributes:
        raises: The error of the room; a subclass of KiError. Set it once, in the room's own base class.
    """

    model_config = ConfigDict(
        extra='forbid',
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
    raises: ClassVar[type[KiError]] = ConfigError

    def __init__(self, **fields: Any) -> None:
        """Checks the fields; what does not fit is an error of the type `raises`."""
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise self.raises(sentence_of(error, type(self), fields, '')) from None

    # Tells pydantic that this is its own `__init__`, so that it builds nested models without a call of it: the errors
    # of a nested model then carry the whole path of the field.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _take_lists_as_tuples(schema)
        return schema

    @classmethod
    def parse(cls, data: object, where: str = '') -> Self:
        """This configuration from plain data, as YAML and JSON give it.

        Args:
            data: A mapping of fields, or an instance, which is taken as it is.
            where: What errors call the source, usually the file.

        Raises:
            KiError: of the type `raises`; one sentence with source, field, value and what to write instead.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise cls.raises(sentence_of(error, cls, data, where)) from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """This configuration from a YAML file."""
        return cls.parse(read_yaml(path, cls.raises), str(path))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields replaced, checked as a whole."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse`, YAML and JSON take back."""
        return self.model_dump(mode='json')
