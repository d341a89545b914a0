"""Any method of PEFT's, from the settings of its adapter_config.json."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mora.errors import ConfigError, one_line

from .base import Family, Size, Targets

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn

# Exceptions that PEFT raises for bad settings.
REFUSED = (TypeError, ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError)


class AnyPeft(Family):
    """Any other method of PEFT's whose update can be merged. Read by `mora/families/any_peft.py`."""

    has_rank: ClassVar[bool] = False
    captures_graphs: ClassVar[bool] = False  # its layers may do what no graph can hold

    kind: Literal["peft"]
    """This kind of adapter."""
    settings: dict[str, Any]
    """The fields of its adapter_config.json, read from `method.config` or written here."""

    @property
    def peft_type(self) -> str:
        return str(self.settings["peft_type"])

    @property
    def step_family(self) -> str:
        return f"peft_{self.peft_type.lower()}"

    @property
    def dropouts(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if "dropout" in name and value}

    def label(self, method: str) -> str:
        """Return the method's name, for method peft with the kind of PEFT method that its file names."""
        return f"{method}_{self.peft_type.lower()}" if method == "peft" else method

    @property
    def modules(self) -> Targets:
        return self.settings.get("target_modules") or "all-linear"

    def wrap(self, model: nn.Module, size: Size, seed: int) -> PeftModel:
        """Return the PEFT model, which is merged once: what cannot be merged would be found after hours.

        Raises:
            ConfigError: PEFT refuses: a size that does not divide a module's, a target that is not there.
        """
        from peft import get_peft_model

        from .tools.merging import merged

        config = self.peft_config(size)
        try:
            wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
        except REFUSED as error:
            raise self._refused(error) from error
        targeted = getattr(wrapped.base_model, "targeted_module_names", [])
        for target in size.target_modules if isinstance(size.target_modules, list) else []:
            # PEFT passes over it as long as another is there
            if not any(f".{name}".endswith(f".{target}") for name in targeted):
                raise ConfigError(f"method.config: target_modules: {self.peft_type} finds no module called {target!r}")
        try:
            with merged(wrapped, next(wrapped.parameters()).dtype):
                return wrapped
        except REFUSED as error:
            raise self._refused(error) from error

    def peft_config(self, size: Size) -> PeftConfig:
        """Return PEFT's own configuration.

        Raises:
            ConfigError: PEFT does not have the method, or it adapts no modules, or has no such field.
        """
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        known = {kind.value: kind_config for kind, kind_config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if (kind_config := known.get(self.peft_type)) is None:
            raise ConfigError(
                f"method.config: peft_type={self.peft_type!r}: expected one of {', '.join(sorted(known))}"
            )
        names = {field.name for field in fields(kind_config)}
        settings = {key: value for key, value in self.settings.items() if key != "peft_type"}
        if unknown := sorted(settings.keys() - names):
            raise ConfigError(
                f"method.config: {self.peft_type} has no field {unknown[0]!r}; there are {', '.join(sorted(names))}"
            )
        if "target_modules" in names:
            settings["target_modules"] = size.target_modules
        try:
            config = kind_config(task_type="CAUSAL_LM", **settings)
        except REFUSED as error:
            raise self._refused(error) from error
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ConfigError(
                f"method.config: {self.peft_type} adds to the prompt: expected a method that adapts modules"
            )
        return config

    def _refused(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"method.config: {self.peft_type} refuses these settings on this model ({one_line(error):.300})"
        )
