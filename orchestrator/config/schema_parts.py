"""JSON Schema fragments that entries and the ``supervisor:`` section share.

Every scalar of the file may be a text with a variable, so each fragment also accepts a text that contains ``${``.
"""

from __future__ import annotations

from typing import Final

from tunnel.model.option_types import ANY_SCALAR, DURATION_SCHEMAS, JsonSchema, integer_schemas, word_schemas

VERSION: Final = "1"
"""The version of the file format."""
MAX_NAME_LENGTH: Final = 200

_BOOLEANS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def with_variable(schemas: tuple[JsonSchema, ...]) -> JsonSchema:
    """Return the schema of a value that is described by one of ``schemas``, or is a text with a variable."""
    if schemas == (ANY_SCALAR,):
        return dict(ANY_SCALAR)
    return {"anyOf": [*schemas, {"type": "string", "pattern": r"\$\{"}]}


def parse_bool(value: object) -> bool:
    """Parse true or false in all the spellings of YAML 1.1. Raises ValueError."""
    word = value.lower() if isinstance(value, str) else ""
    if word not in _BOOLEANS:
        raise ValueError("write true or false")
    return _BOOLEANS[word]


BOOLEAN: Final = with_variable(({"type": "boolean"}, word_schemas(tuple(_BOOLEANS))[1]))
DURATION: Final = with_variable(DURATION_SCHEMAS)


def integer(minimum: int, maximum: int) -> JsonSchema:
    """Return the schema of a whole number within bounds."""
    return with_variable(integer_schemas(minimum, maximum))
