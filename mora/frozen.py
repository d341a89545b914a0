"""The base class of objects that are read from files and must not change, such as configurations and experiments."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class FrozenModel(BaseModel):
    """Typed values. Unknown fields are errors, values cannot be changed, numbers are finite, and True is not taken for 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if (
                isinstance(value, bool)
                and name in cls.model_fields
                and not _takes_bool(cls.model_fields[name].annotation)
            ):
                raise ValueError(f"{name}={value}: expected no truth value")
        return values


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) for part in get_args(annotation))
