"""Tasks and methods that a user adds to configs/."""

import shutil

import pytest

from mora.config import ConfigError, compose, hints, hydra_compose, run_id
from mora.config.source import CONFIG_DIR


def test_a_task_is_one_folder(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, folder)
    (folder / "task/mine").mkdir()
    for scale in ("paper", "smoke"):
        text = (CONFIG_DIR / "task/tulu2" / f"{scale}.yaml").read_text()
        (folder / "task/mine" / f"{scale}.yaml").write_text(text.replace("tulu2", "mine"))
    for module in (hydra_compose, hints):
        monkeypatch.setattr(module, "CONFIG_DIR", folder)
    for scale, model in (("paper", "llama2_7b"), ("smoke", "tiny")):
        config = compose(["task=mine", "method=mora", "r=8", f"scale={scale}"])
        assert run_id(config).startswith("mine-mora-r8-")
        assert config.model.name == model
    with pytest.raises(ConfigError, match=r"^scale=lite: task mine has no such scale; it has paper, smoke$"):
        compose(["task=mine", "method=mora", "r=8", "scale=lite"])


def test_a_file_that_builds_on_anothers_has_a_name_of_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, folder)
    (folder / "task/mine").mkdir()
    (folder / "task/mine/smoke.yaml").write_text("# @package _global_\ndefaults: [/task/tulu2/smoke, _self_]\n")
    (folder / "method/mine.yaml").write_text("defaults: [lora, _self_]\nadapter: {lr_ratio: 2.0}\n")
    for module in (hydra_compose, hints):
        monkeypatch.setattr(module, "CONFIG_DIR", folder)
    with pytest.raises(ConfigError, match=r"^task=mine: .*task\.name='tulu2'.*; expected `name: mine` below `task:`"):
        compose(["task=mine", "method=lora", "r=8", "scale=smoke"])
    with pytest.raises(
        ConfigError, match=r"^method=mine: .*method\.name='lora'.*; expected `name: mine` in its own file"
    ):
        compose(["task=uuid", "method=mine", "r=8", "scale=smoke"])
