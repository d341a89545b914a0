"""Any method of PEFT's, from the settings of its adapter_config.json."""

from __future__ import annotations

from dataclasses import fields

from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from mora.config.schema import PeftAdapter
from mora.errors import ConfigError, one_line

REFUSED = (TypeError, ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError)  # by PEFT, of settings


def peft_config(adapter: PeftAdapter, target_modules: list[str] | str) -> PeftConfig:
    """Raises: ConfigError for a method that PEFT does not have, or one that adapts no modules, or a field it has not."""
    known = {kind.value: found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if (found := known.get(adapter.peft_type)) is None:
        raise ConfigError(
            f"method.config: peft_type={adapter.peft_type!r:.200}: expected one of {', '.join(sorted(known))}"
        )
    names = {field.name for field in fields(found)}
    settings = {key: value for key, value in adapter.settings.items() if key != "peft_type"}
    if unknown := sorted(settings.keys() - names):
        raise ConfigError(
            f"method.config: {adapter.peft_type} has no field {unknown[0]!r}; there are {', '.join(sorted(names))}"
        )
    if "target_modules" in names:
        settings["target_modules"] = target_modules
    try:
        config = found(task_type="CAUSAL_LM", **settings)
    except REFUSED as error:
        raise refused(adapter, error) from error
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ConfigError(
            f"method.config: {adapter.peft_type} adds to the prompt: expected a method that adapts modules"
        )
    return config


def adapted(model: nn.Module, adapter: PeftAdapter, target_modules: list[str] | str) -> PeftModel:
    """Raises: ConfigError where PEFT refuses: a size that does not divide a module's, a target that is not there."""
    config = peft_config(adapter, target_modules)
    try:
        made = get_peft_model(model, config)  # type: ignore[arg-type]
    except REFUSED as error:
        raise refused(adapter, error) from error
    found = getattr(made.base_model, "targeted_module_names", [])
    for target in target_modules if isinstance(target_modules, list) else []:
        if not any(
            f".{name}".endswith(f".{target}") for name in found
        ):  # PEFT passes over it as long as another is there
            raise ConfigError(f"method.config: target_modules: {adapter.peft_type} finds no module called {target!r}")
    return made


def refused(adapter: PeftAdapter, error: Exception) -> ConfigError:
    return ConfigError(
        f"method.config: {adapter.peft_type} refuses these settings on this model ({one_line(error):.300})"
    )
