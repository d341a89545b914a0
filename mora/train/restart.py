"""The restarts of a run, as its configuration asks for them. `mora.restarts.restart` is what a restart does."""

from __future__ import annotations

from mora.config.schema import RunConfig
from mora.restarts.restart import Restarts

from .failpoint import failpoint
from .interface import Engine


class RunRestarts(Restarts):
    """The restarts of one run. Inactive for methods without a `restart` block. All ranks must call every method."""

    def __init__(self, engine: Engine, config: RunConfig):
        super().__init__(engine, config.method.restart, [], config.seed)
        self.config = config
        if self.settings is not None:
            assert config.method.adapter is not None
            self.layers = config.method.adapter.restarted_layers(self._model)

    def apply(self) -> dict[str, float]:
        facts = super().apply()
        self._failpoint("after_restart")
        return facts

    def resume(self, done: int) -> None:
        """Resume after the engine has loaded a checkpoint of `done` updates, whose masters stand in for stale ones."""
        if self.settings is not None and self.settings.stale_masters and self.due(done, self.config.last_step):
            self._reinitialise()

    def _merge(self) -> dict[str, float]:
        facts = super()._merge()
        self._failpoint("between_merge_and_reinit")
        return facts

    def _failpoint(self, point: str) -> None:
        assert self.settings is not None
        failpoint(point, self.count * self.settings.every_steps)
