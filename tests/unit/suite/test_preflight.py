"""A result is handed back for the weights and files that made it, on hardware that is here; else it is said what differs."""

import shutil
from pathlib import Path

import pytest
from made_up import write

from mora.config import ConfigError, source
from mora.config.cached_composition import compose_cached as compose
from mora.config.data_schema import FileSource
from mora.config.run_id import run_id
from mora.data.sources import resolve_source
from mora.errors import DamagedFileError, MoraError
from mora.io import cache_dir, data_dir, output_dir
from mora.models.shapes import UnknownShape, shape_of
from mora.suite import launch, preflight
from mora.train.input_digests import digest, same_as_before

OWN = ["method=mora", "r=8", "model=llama2_7b"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setenv("MORA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(launch, "_starter", lambda config: ["/bin/false"])


def checkpoint(folder, weights="weights"):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "config.json").write_text("{}")
    return folder


def done(config, **more):
    write(config, {"validation_loss": 1.0}, steps=(1,), last_step=1, **more)


def model_of(config):
    return {"model": {"path": config.model.path, "sha256": digest(config.model)}}


def own(tmp_path, name="model", task="metamath", *more):
    return compose([f"task={task}", *OWN, f"model.path={tmp_path / name}", *more])


def test_the_result_of_these_weights_is_handed_back(tmp_path, capsys):
    checkpoint(tmp_path / "model")
    config = own(tmp_path)
    done(config, data=model_of(config))
    assert launch.launch(config) == 0
    assert "already done" in capsys.readouterr().out


def test_a_place_where_no_result_can_be_written_is_told_before_the_run(tmp_path):
    checkpoint(tmp_path / "model")
    (tmp_path / "file").touch()
    for place, why in {
        tmp_path / "file" / "runs": f"expected a folder that can be written or made; {tmp_path}/file is none",
        tmp_path / ("x" * 300): "File name too long; expected a folder",
    }.items():
        with pytest.raises(ConfigError, match=rf"^scale.results_dir='.*': {why}$"):
            launch.launch(own(tmp_path, "model", "metamath", f"scale.results_dir={place}"))
    assert not (tmp_path / "outputs").exists()


def test_the_same_weights_in_another_folder_are_the_same(tmp_path):
    for name in ("model", "moved"):
        checkpoint(tmp_path / name)
    config = own(tmp_path)
    done(config, data=model_of(config))
    assert run_id(own(tmp_path, "moved")) == run_id(config)
    assert launch.launch(own(tmp_path, "moved")) == 0


@pytest.mark.parametrize("recorded", [True, False])
def test_other_weights_of_that_name_are_refused(tmp_path, recorded):
    checkpoint(tmp_path / "model")
    checkpoint(tmp_path / "other", "other weights")
    config = own(tmp_path)
    done(config, **({"data": model_of(config)} if recorded else {}))
    with pytest.raises(ConfigError, match=r"is not this run's result: .*model\.path.*model\.name="):
        launch.launch(own(tmp_path, "other"))


def test_weights_that_have_changed_in_their_folder_are_refused(tmp_path):
    config = own(checkpoint(tmp_path / "model").parent)
    done(config, data=model_of(config))
    checkpoint(tmp_path / "model", "trained on")
    with pytest.raises(ConfigError, match="does not hold the weights that the result was made with"):
        launch.launch(config)


def test_a_folder_that_does_not_exist_is_said_before_anything_is_handed_back(tmp_path):
    config = own(tmp_path, "nowhere")
    done(config)
    with pytest.raises(ConfigError, match=r"nowhere' does not exist"):
        launch.launch(config)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            Path.mkdir,
            "is a folder: expected the GGUF file with the sha256 of smollm2_135m; another model is model=custom",
        ),
        (Path.touch, "has sha256 e3b0c44298"),
        (str, "does not exist: expected the GGUF file"),
    ],
)
def test_a_place_without_the_known_file_is_said_before_its_result_is_handed_back(tmp_path, there, said):
    config = compose(["task=uuid", "method=mora", "r=1", "scale=lite", f"model.path={tmp_path / 'mine'}"])
    there(tmp_path / "mine")
    done(config)
    with pytest.raises(MoraError, match=said):
        launch.launch(config)


def test_a_folder_is_the_same_for_the_worker_which_works_elsewhere(tmp_path, monkeypatch):
    """Whatever the name of that folder, and of those for outputs and the cache."""
    (checkpoint(tmp_path / "custom") / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("MORA_OUTPUT_DIR", "MORA_CACHE_DIR", "MORA_DATA_DIR"):
        monkeypatch.setenv(name, "there")
    config = compose(["task=metamath", "method=mora", "r=8", "model=custom", "model.path=custom"])
    folders = [output_dir(), cache_dir(), data_dir()]
    monkeypatch.chdir("/")
    assert folders == [tmp_path / "there"] * 3
    assert config.model.path == str(tmp_path / "custom")
    assert config.model.name == "custom"
    assert config.model.sha256, "configs/model/custom.yaml is no model of that name"


def test_a_hub_id_is_no_folder(tmp_path):
    preflight.check(compose(["task=metamath", *OWN, "model.path=some/model"]))


def test_a_data_file_with_another_content_is_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    config = compose(["task=metamath", "method=lora", "r=8", "scale=smoke"])
    from mora.io import sha256

    facts = {"files": str(rows), "sha256": {rows.name: sha256(rows)}, "max_rows": None}
    done(config, data={"fingerprints": {"sources": {"corpus": [facts]}}})
    assert launch.launch(config) == 0
    rows.write_text("{}\n{}\n")
    with pytest.raises(
        ConfigError, match=r"rows\.jsonl has changed since .*; give other rows a file name of their own, or"
    ):
        launch.launch(config)
    rows.unlink()
    with pytest.raises(ConfigError, match=r"rows\.jsonl no longer exists; put it back, or move the result away"):
        launch.launch(config)


def test_data_files_of_one_name_are_those_of_the_result_and_the_first_is_compared_too(tmp_path):
    for part in "ab":
        (tmp_path / part).mkdir()
        (tmp_path / part / "rows.jsonl").write_text("{}\n")
    source = FileSource(kind="files", files=str(tmp_path / "*/rows.jsonl"), format="metamath", max_rows=None)
    config = compose(["task=metamath", "method=lora", "r=8", "scale=smoke"])
    done(config, data={"fingerprints": {"sources": {"corpus": [resolve_source(source).facts]}}})
    assert launch.launch(config) == 0
    (tmp_path / "a" / "rows.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl has changed since "):
        launch.launch(config)


def test_a_folder_for_outputs_that_cannot_be_made_is_named_with_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "file"))
    with pytest.raises(
        ConfigError, match=r"the run's folder .*/file/uuid-lora-.* cannot be made .*: set MORA_OUTPUT_DIR"
    ):
        launch.launch(compose(["task=uuid", "method=lora", "r=8", "scale=smoke"]))


def test_hardware_is_looked_at_first(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "visible", lambda: ["0"])
    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke", "hardware=gpu8"])
    done(config)
    with pytest.raises(ConfigError, match=r"hardware\.processes=8 \(hardware=gpu8\): there are 1 here"):
        launch.launch(config)


def test_a_checkpoint_of_other_inputs_is_not_resumed(tmp_path):
    first, other = {"model": None, "data": {"prepared": "a"}}, {"model": None, "data": {"prepared": "b"}}
    same_as_before(tmp_path, first)
    same_as_before(tmp_path, other)  # nothing was trained yet
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    same_as_before(tmp_path, other)
    with pytest.raises(DamagedFileError, match=r"checkpoint made of other inputs \(data\)"):
        same_as_before(tmp_path, first)


def test_another_model_does_not_inherit_a_revision():
    assert compose(["task=metamath", "method=fft"]).model.revision is not None
    assert compose(["task=metamath", "method=fft", "model.path=/a/local/llama"]).model.revision is not None
    mine = ["model.name=mine", "model.path=some/model"]
    assert compose(["task=metamath", "method=fft", *mine]).model.revision is None
    assert compose(["task=metamath", "method=fft", *mine, "model.revision=v2"]).model.revision == "v2"


def with_room(monkeypatch, gib):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(gib * 2**30)))


FULL = ["task=uuid", "scale=mid", "method=fft", "lr=1e-4"]  # a checkpoint of 17.3 GiB, a model of 5.8
SEARCH = ["task.train.shorten_by=3", "task.evaluation.tasks=[]"]  # with one checkpoint, at step 250 of 334


@pytest.mark.parametrize(("more", "needed"), [([], 34.5), (SEARCH, 23.0)])
def test_a_run_whose_disk_is_too_small_is_refused_before_it_begins(tmp_path, monkeypatch, more, needed):
    config = compose([*FULL, *more])
    with_room(monkeypatch, needed - 0.1)
    room = rf"has room for {needed - 0.1:.1f} GiB, and .* need {needed} GiB: remove .*, or set MORA_OUTPUT_DIR"
    with pytest.raises(ConfigError, match=room):
        preflight.check_room(config, tmp_path)
    with_room(monkeypatch, needed + 0.1)
    preflight.check_room(config, tmp_path)


def test_what_a_run_has_written_already_counts_as_its_room(tmp_path, monkeypatch):
    config = compose(["task=uuid", "scale=lite", "method=lora", "r=1", "lr=1e-3"])
    with_room(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"has room for 0\.0 GiB"):
        preflight.check_room(config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with open(tmp_path / "checkpoints" / "state.pt", "wb") as file:
        file.truncate(2**30)  # sparse
    preflight.check_room(config, tmp_path)


def test_where_nothing_trains_or_the_shape_is_unknown_no_room_is_asked_for(tmp_path, monkeypatch):
    with_room(monkeypatch, 0)
    preflight.check_room(compose(["task=uuid", "scale=lite", "method=none"]), tmp_path)
    preflight.check_room(
        compose(["task=metamath", "method=mora", "r=8", "model.name=mine", "model.path=me/mine"]), tmp_path
    )


def test_the_room_is_counted_while_another_process_removes_files_and_without_what_links_lead_to(tmp_path, monkeypatch):
    config = compose(["task=uuid", "scale=lite", "method=lora", "r=1", "lr=1e-3"])
    (tmp_path / "run").mkdir()
    (tmp_path / "large").touch()
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**30)  # sparse
    (tmp_path / "run" / "link").symlink_to(tmp_path / "large")
    with_room(monkeypatch, 0)
    walk = preflight.os.walk
    monkeypatch.setattr(preflight.os, "walk", lambda top: ((w, d, [*f, "removed"]) for w, d, f in walk(top)))
    with pytest.raises(ConfigError, match=r"has room for 0\.0 GiB"):
        preflight.check_room(config, tmp_path / "run")


def test_a_model_whose_shape_cannot_be_read_from_its_configuration_is_left_to_the_worker(tmp_path):
    checkpoint(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").touch()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 8}')
    config = compose(["task=metamath", "method=mora", "r=8", "model.name=mine", f"model.path={tmp_path / 'model'}"])
    preflight.check_room(config, tmp_path)
    with pytest.raises(
        UnknownShape, match=r"^model.path='.*': its config.json does not give its shape \(.*say it in model"
    ):
        shape_of(config.model)
