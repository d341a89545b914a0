"""`mora merge` and `mora generate` on what a run leaves."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mora.__main__ import main
from mora.config import compose
from mora.methods import prepare
from mora.models.load import load_any, load_model
from mora.train.save_model import save_model

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def leave(tmp_path, monkeypatch):
    """Makes a run's folder as if it had ended. Returns its name."""
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path))

    def made(*overrides):
        config = compose(["task=uuid", "scale=smoke", *overrides])
        folder = tmp_path / "the_run"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        model, tokenizer = load_model(config.model, "fp32")
        model = prepare(model, config)
        with torch.no_grad():
            for p in (p for p in model.parameters() if p.requires_grad):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        save_model(model, tokenizer, config, folder)
        return folder.name

    return made


@pytest.mark.parametrize("run", ["method=mora r=4", "method=lora r=4"])
def test_a_merged_run_is_a_checkpoint_like_any_other(run, leave, tmp_path, capsys):
    name = leave(*run.split())
    assert main(["merge", name]) == 0
    merged = tmp_path / name / "merged"
    assert capsys.readouterr().out.splitlines()[-1] == str(merged)
    expected, _ = load_any(str(tmp_path / name / "adapter"), "fp32")
    loaded = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert torch.equal(loaded(IDS).logits, expected(IDS).logits)
    assert AutoTokenizer.from_pretrained(merged)("a1")["input_ids"] == [13, 4]
    assert main(["merge", str(tmp_path / name), str(merged)]) == 2
    assert f"{merged} exists already" in capsys.readouterr().err
    assert not list(merged.parent.glob(".*"))


def test_a_whole_model_is_not_merged_again(leave, capsys):
    assert main(["merge", leave("method=fft")]) == 2
    assert "is a whole model already" in capsys.readouterr().err


def test_an_answer_is_that_of_the_run_by_whatever_name(leave, tmp_path, capsys):
    name = leave("method=mora", "r=4")
    assert main(["merge", name]) == 0
    capsys.readouterr()
    answers = []
    for run in (name, str(tmp_path / name), str(tmp_path / name / "adapter"), str(tmp_path / name / "merged")):
        assert main(["generate", run, "a1b2", "77", "--max-tokens", "6", "--device", "cpu"]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1
    assert len(answers[0].splitlines()) == 2
    assert main(["generate", "tiny", "a1b2", "77", "--max-tokens", "6", "--device", "cpu"]) == 0
    assert capsys.readouterr().out != answers[0]


def test_what_is_drawn_is_the_seeds(leave, capsys):
    name = leave("method=mora", "r=4")
    drawn = []
    for seed in ("1", "1", "2"):
        assert main(["generate", name, "a1", "--temperature", "5", "--seed", seed, "--device", "cpu"]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_run_that_left_nothing_is_named(leave, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").touch()
    for command in (["merge", "empty"], ["generate", "empty", "a"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "empty holds neither adapter/ nor model/: the run has not finished, trained nothing, or" in error
        assert "or was to leave none (hardware.save_model=false, as a table's searches)" in error


def test_an_almost_known_model_is_suggested(capsys):
    assert main(["generate", "smollm2", "a", "--device", "cpu"]) == 2
    assert "did you mean smollm2_135m?" in capsys.readouterr().err


def test_a_name_of_nothing_is_told_what_runs_there_are(leave, capsys):
    name = leave("method=mora", "r=4")
    assert main(["generate", name[:-1], "a", "--device", "cpu"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{name[:-1]!r}: expected a run's id or folder, or a folder with an adapter; " in said
    assert f"holds 1 runs, such as {name}; as a hub id: model {name[:-1]!r} cannot be loaded" in said


def test_the_card_of_an_adapter_says_what_loads_it(leave, tmp_path):
    card = (tmp_path / leave("method=mora", "r=4") / "adapter" / "README.md").read_text()
    for needed in (
        "`import mora` before PEFT",
        "`mora merge FOLDER`",
        "`mora generate FOLDER PROMPT`",
        "Its base is tiny",
    ):
        assert needed in card
