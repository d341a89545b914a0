"""The restarts of a run: when they are due, and how an interrupted run resumes. `mora.restarts` is what they do."""

from __future__ import annotations

from mora.config.schema import RunConfig
from mora.restarts.restart import Restart, RestartFailed, describe, round_stochastically

from .failpoint import failpoint
from .interface import Engine

__all__ = ["RestartFailed", "Restarts", "describe", "round_stochastically"]


class Restarts(Restart):
    """The restarts of one run. Inactive for methods without a `restart` block. All ranks must call every method."""

    def __init__(self, engine: Engine, config: RunConfig):
        super().__init__(engine, config.method.restart, [], config.seed)
        self.config, self._done = config, 0
        if self.settings is not None:
            assert config.method.adapter is not None
            self.layers = config.method.adapter.restarted_layers(self._model)

    def due(self, done: int, last: int | None = None) -> bool:
        """Return whether a restart is due after `done` updates. None is due after the last: it would empty the adapter."""
        return super().due(done, self.config.last_step if last is None else last)

    def apply(self, done: int = 0) -> dict[str, float]:
        """Apply `Restart.apply` after `done` updates."""
        self._done = done
        facts = super().apply()
        failpoint("after_restart", done)
        return facts

    def resume(self, done: int) -> None:
        """Resume after the engine has loaded a checkpoint of `done` updates, whose masters stand in for stale ones."""
        if self.settings is not None and self.settings.stale_masters and self.due(done):
            self._reinitialise()

    def _merge(self) -> dict[str, float]:
        facts = super()._merge()
        failpoint("between_merge_and_reinit", self._done)
        return facts
