"""The base of every typed config: frozen, no unknown keys, and errors that name the nearest key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from cmray.core.errors import nearest

#: marks a field that does not change what a run computes, so that it is left out of the content hash
NOT_IDENTITY: Any = {"identity": False}


class Strict(BaseModel):
    """A frozen pydantic model that rejects unknown keys with the closest allowed one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key", "unknown key; {hint}", {"key": str(key), "hint": nearest(key, cls.model_fields)}
                    )
        return value
