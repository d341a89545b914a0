"""ReLoRA and ReMoRA for `transformers.Trainer` and trainers built on it, such as TRL's `SFTTrainer`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mora.adapter.merged_base import FILE, MergedBase, adapter_folder, attach_base, attached_base, load_base
from mora.adapter.model import MoraModel
from mora.choices import Groups, MergeRounding
from mora.ranks import barrier, rank

from .layers import Adapted, sharing_layers
from .reference_watch import ReferenceWatch
from .restart import Restarts, describe
from .rewarming import RewarmedSchedule
from .supported import check_supported
from .trainer_optimizer import restart_engine

logger = logging.getLogger(__name__)

WEIGHTS = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)  # of an adapter, as PEFT calls them


@dataclass(frozen=True)
class _Settings:
    every_steps: int
    warmup_steps: int
    groups: Sequence[Groups] | None
    merge_rounding: MergeRounding
    stale_masters: bool = False


class RestartCallback(TrainerCallback):
    """Merge the adapter into the base weights at intervals and start it again (section 5.3 of the paper).

        trainer = Trainer(model=get_peft_model(model, MoraConfig(...)), callbacks=[RestartCallback(every_steps=2000)],
        ...)

    With PEFT's LoRA this is ReLoRA, with MoRA ReMoRA. A restart merges in fp32, re-initialises the adapter with the same
    values on every rank, renews the optimizer's copies of it, zeroes its moments, and verifies all of that. The learning
    rate then climbs from zero back to its schedule. Works in one process, under DDP, and under DeepSpeed ZeRO-1 to 3.

    An adapter alone fits the merged base, not the one that training began with. So after a restart the merged base is
    saved beside it, as `restarts.safetensors` (fp32, as large as the adapted weights): in every checkpoint of the Trainer,
    from which training resumes, and by `trainer.save_model` and `model.save_pretrained`, for `mora-export` and
    `mora.restore_base`. `model.merge_and_unload()` gives the model that was trained.

    Args:
        every_steps: Optimizer updates between restarts. There is no restart after the last update.
        warmup_steps: Updates in which the learning rate climbs back after a restart. The first of them has rate 0. With 0
            updates it stays on its schedule.
        groups: Kinds of groups that a sharing MoRA goes through, one per restart, the adapter's own among them, which is
            the first wherever it stands. None keeps one kind.
        merge_rounding: How the exact sum is rounded to the dtype of the base: "nearest", or "stochastic" (bf16 only).
        resume_from: The checkpoint to resume from, if it is not in `args.output_dir`.

    Raises:
        ValueError: At the beginning of training: a restart could not be correct (FSDP, a quantised base, a second adapter
            on the same layers, an optimizer other than AdamW, ...). In a step: it ran the model without its adapter, as a
            reference, which a restart would move. The message says what to do instead.
        RestartFailed: A check of a restart does not hold. Training ends.
    """

    def __init__(
        self,
        every_steps: int,
        warmup_steps: int = 50,
        groups: Sequence[Groups] | None = ("modulo", "contiguous"),
        merge_rounding: MergeRounding = "nearest",
        resume_from: str | os.PathLike[str] | None = None,
    ):
        if not isinstance(every_steps, int) or isinstance(every_steps, bool) or every_steps <= 0:
            raise ValueError(f"every_steps={every_steps!r}: expected a positive number of updates")
        if not isinstance(warmup_steps, int) or not 0 <= warmup_steps < every_steps:
            raise ValueError(f"warmup_steps={warmup_steps!r}: expected 0 <= warmup_steps < every_steps={every_steps}")
        if merge_rounding not in get_args(MergeRounding):
            expected = " or ".join(map(repr, get_args(MergeRounding)))
            raise ValueError(f"merge_rounding={merge_rounding!r}: expected {expected}")
        _check_groups(groups)
        self._settings = _Settings(every_steps, warmup_steps, groups, merge_rounding)
        self._resume_from = resume_from
        self._restarts: Restarts | None = None
        self._base = MergedBase()
        self._schedule: RewarmedSchedule | None = None
        self._reference_watch: ReferenceWatch | None = None
        self.history: list[dict[str, float]] = []  # what `Restarts.apply` returned, by restart

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer, scheduler = kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"]
        layers = check_supported(args, model)
        self._base = attached_base(model) or MergedBase()  # of an earlier training of this model
        settings = self._settings_for(model, layers, self._base.count)
        engine = restart_engine(model, optimizer, layers)
        self._restarts = Restarts(engine, settings, layers, args.seed, self._base.count, self._base.shadow)
        self.history = []
        if state.global_step:
            self._resume(_checkpoint(args, state), state.global_step)
        elif self._base.count:
            self._restarts.check_base()
        self._note(state)
        attach_base(model, self._base)
        _check_loaded(model, layers[0].adapter_name)
        self._schedule = RewarmedSchedule(scheduler, settings, state.global_step)
        if self._reference_watch is not None:  # of a training that an error ended
            self._reference_watch.remove()
        self._reference_watch = ReferenceWatch(model, layers)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._schedule is not None
        assert self._reference_watch is not None
        self._schedule.follow(state.global_step)
        self._reference_watch.seen = None  # an evaluation between steps may run the model as it likes

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._reference_watch is not None
        self._reference_watch.check(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._restarts is not None
        if self._restarts.due(state.global_step, state.max_steps):
            self.history.append(facts := self._restarts.apply())
            if rank() == 0:
                logger.info("step %d: %s", state.global_step, describe(facts))
        self._note(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint(args, state)
        files = [place for place in self._places(folder) if (place / FILE).is_file()]
        there = [self._base.written.get(place.resolve()) for place in files]
        if rank() == 0 and state.global_step not in there:  # before the first restart
            self._base.save(folder)
        barrier()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._reference_watch is not None:
            self._reference_watch.remove()
        if self._restarts is not None and self._restarts.count and rank() == 0:
            logger.warning(
                "%d restarts went into the base weights: an adapter that is saved now holds them as %s, and needs it; a "
                "model of its own is model.merge_and_unload()",
                self._restarts.count,
                FILE,
            )

    def _note(self, state: TrainerState) -> None:
        """Bring the merged base that is saved beside adapters up to date."""
        assert self._restarts is not None
        base, restarts = self._base, self._restarts
        base.count, base.step, base.shadow, base.groups = (
            restarts.count, state.global_step, restarts.shadow, tuple(restarts.groups)
        )  # fmt: skip

    def _places(self, checkpoint: Path) -> list[Path]:
        """Return the folders in which the merged base of a checkpoint may be: its own, or its adapter's."""
        assert self._restarts is not None
        return list(dict.fromkeys([checkpoint, adapter_folder(checkpoint, self._restarts.layers[0].adapter_name)]))

    def _settings_for(self, model: PeftModel, layers: list[Adapted], count: int) -> _Settings:
        """Return the settings with the groups rotated, so that the adapter's own kind is the one after `count` restarts.

        They have no groups if no layer has any. Raises ValueError if the adapter's kind is not among the groups.
        """
        name, groups = layers[0].adapter_name, self._settings.groups
        if not groups or not sharing_layers(model, name):
            return replace(self._settings, groups=None)
        kind = model.peft_config[name].groups
        if kind not in groups:
            raise ValueError(f"groups={tuple(groups)}: the adapter's own kind, {kind!r}, must be among them")
        first = (list(groups).index(kind) - count) % len(groups)
        return replace(self._settings, groups=(*groups[first:], *groups[:first]))

    def _resume(self, checkpoint: Path, step: int) -> None:
        assert self._restarts is not None
        folder = Path(self._resume_from or checkpoint)
        self._check_adapter(folder)
        saved = load_base(next((place for place in self._places(folder) if (place / FILE).is_file()), folder), step)
        self._restarts.settings = self._settings_of(saved, folder)
        self._restarts.load_state_dict({"count": saved.count, "shadow": saved.shadow})

    def _check_adapter(self, folder: Path) -> None:
        """Check that the checkpoint is the one that the Trainer resumes, which a callback is not told.

        Raises:
            ValueError: Its adapter is not the model's.
        """
        assert self._restarts is not None
        there = [place for place in self._places(folder) if any((place / name).is_file() for name in WEIGHTS)]
        weights = load_peft_weights(str(there[0]), device="cpu") if there else {}
        for layer in self._restarts.layers:
            with self._restarts.engine.gathered(list(layer.adapter.values()), write=False):
                for name, p in layer.adapter.items():
                    saved = weights.get(f"{layer.name}.{name}.weight")
                    if saved is not None and not torch.equal(saved.to(p.dtype), p.detach().cpu()):
                        raise ValueError(
                            f"{name} of {layer.name} in {there[0]} is not what the Trainer has loaded, so the merged base "
                            "there is another training's: name the checkpoint that is resumed, "
                            "RestartCallback(resume_from=folder)"
                        )

    def _settings_of(self, saved: MergedBase, folder: Path) -> _Settings:
        """Return the settings with the groups in the checkpoint's order, which may begin with another kind.

        Raises:
            ValueError: The checkpoint has other groups, with which the saved M would mean something else.
        """
        assert self._restarts is not None
        settings: Any = self._restarts.settings
        groups = tuple(settings.groups or ())
        if saved.groups is None:  # written when the order was the argument's
            return replace(settings, groups=self._settings.groups) if groups and saved.count else settings
        orders = [groups[first:] + groups[:first] for first in range(len(groups))] if saved.count else [groups]
        if saved.groups not in (orders or [()]):
            raise ValueError(
                f"groups={groups or None}: {folder} was trained with groups={saved.groups or None}, the adapter's own kind "
                "first, and its M means another update with other groups: resume it with those"
            )
        return replace(settings, groups=saved.groups or None)


def _check_groups(groups: Sequence[Groups] | None) -> None:
    """Raise ValueError unless this is None or a sequence of kinds. A string would be a sequence of letters."""
    kinds = get_args(Groups)
    several = isinstance(groups, Sequence) and not isinstance(groups, str) and len(groups) > 0
    if groups is not None and not (several and all(kind in kinds for kind in groups)):
        raise ValueError(f"groups={groups!r:.200}: expected None or a sequence of {', '.join(map(repr, kinds))}")


def _check_loaded(model: PeftModel, adapter_name: str) -> None:
    """Raise ValueError if MoRA's weights were loaded onto a base other than theirs. From now on restarts change both."""
    tuner = model.base_model
    if isinstance(tuner, MoraModel):
        tuner.check_base()
        tuner.forget_load(adapter_name)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
