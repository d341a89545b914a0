"""Models as data: names, ranks, caps, and the run ids of committed results."""

import json

import pytest

from mora.config import ConfigError, compose, run_id
from mora.config.load import load
from mora.config.source import ROOT
from mora.models import known
from mora.models.shapes import shape_of
from mora.planner.cost import cost
from mora.sizes import r_hat_for

RESULTS = sorted((ROOT / "results/runs").glob("*.json"))


def test_committed_results_keep_their_ids():
    assert len(RESULTS) > 100
    for path in RESULTS:
        result = json.loads(path.read_text())
        config = load(result["config"])
        assert run_id(config) == result["run_id"], path.name
        assert shape_of(config.model).parameters > 5e7


def test_names_are_those_of_complete_models():
    assert {"tiny", "smollm2_135m", "qwen25_coder_1b5", "llama2_7b"} <= {*known.names()}
    assert "custom" not in known.names()
    assert known.named("../method/lora") is None


@pytest.mark.parametrize(
    ("model", "ranks"),
    [
        ("llama2_7b", {8: 8, 256: 256}),
        ("smollm2_135m", {1: 8, 2: 16, 8: 64, 32: 256, 64: 512}),
        ("qwen25_coder_0b5", {1: 4, 2: 8, 8: 32, 64: 256}),
        ("qwen25_coder_1b5", {2: 4, 4: 8, 96: 256, 192: 512}),
    ],
)
def test_ranks_stand_for_ranks_of_the_papers_model(model, ranks):
    config = known.named(model)
    assert {r: config.stands_for(r) for r in ranks} == ranks


def test_a_scaled_rank_is_printed_with_the_papers():
    assert known.named("llama2_7b").rank_text(8) == "r=8"
    assert known.named("smollm2_135m").rank_text(1) == "r=1 (the paper's 8)"


def test_between_two_ranks_the_ratio_goes_over_from_one_to_the_other():
    model = known.named("qwen25_coder_1b5")
    between = [model.stands_for(r) / r for r in range(4, 97)]
    assert min(between) >= 8 / 4 - 0.1
    assert max(between) <= 256 / 96 + 0.1
    assert sorted(map(model.stands_for, range(4, 97))) == [model.stands_for(r) for r in range(4, 97)]


@pytest.mark.parametrize("name", known.names())
def test_caps_are_the_largest_ranks_whose_square_fits(name):
    model = known.named(name)
    highest = max(model.ranks, default=0)
    for linear in shape_of(model).linears:
        side = min(linear.in_features, linear.out_features)
        fits = max(
            r for r in range(1, side + 1) if r_hat_for(linear.in_features, linear.out_features, r, "floor") <= side
        )
        wanted = fits if fits < highest else None
        assert model.rank_caps.get(linear.name) == wanted, linear.name


@pytest.mark.parametrize(("model", "millions"), [("qwen25_coder_0b5", 494.0), ("qwen25_coder_1b5", 1543.7)])
def test_the_plan_knows_the_parameters_of_the_models(model, millions):
    """Those that Qwen states: 0.49 and 1.54 billion."""
    assert shape_of(known.named(model)).parameters == pytest.approx(millions * 1e6, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_every_method_has_the_capped_rank_and_the_plan_counts_it(method):
    run = ["task=uuid", f"method={method}", "scale=smoke", "task.operator=sharing"]
    plain = compose([*run, "r=8"])
    capped = compose([*run, "r=8", "+model.rank_caps={v_proj: 2}"])
    alone = compose([*run, "r=2", "method.adapter.target_modules=[v_proj]"])
    assert capped.rank_pattern == {"v_proj": 2}
    without_v = [name for name in plain.target_modules if name != "v_proj"]
    others = compose([*run, "r=8", f"method.adapter.target_modules=[{','.join(without_v)}]"])
    assert cost(capped).trainable == cost(others).trainable + cost(alone).trainable < cost(plain).trainable
    assert run_id(capped) != run_id(plain)

    import torch

    from mora.methods import parameter_lines, prepare
    from mora.models.load import load_model

    model = prepare(load_model(capped.model, "fp32")[0], capped)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == cost(capped).trainable
    if method == "lora":
        scalings = {layer.scaling["default"] for layer in model.modules() if hasattr(layer, "lora_A")}
        assert len(scalings) == 1
        assert "v_proj" in next(line for line in parameter_lines(model, "r=8") if "+0.00%" in line and "v_proj" in line)
    assert isinstance(model(input_ids=torch.tensor([[5, 6]])).logits, torch.Tensor)


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (None, [], "has no config.json"),
        ("{", [], "config.json cannot be read"),
        ('{"model_type": "t5", "is_encoder_decoder": true}', [], "is an encoder-decoder (t5)"),
        ('{"model_type": "llava", "vision_config": {}}', [], "is no language model alone (llava)"),
        ('{"model_type": "vit", "image_size": 224}', [], "is no language model alone (vit)"),
        ('{"model_type": "llama", "vocab_size": 9}', [], "has no weights: expected *.safetensors"),
        ('{"model_type": "llama", "vocab_size": 9}', ["model.safetensors"], "has no tokenizer: expected one of"),
    ],
)
def test_a_folder_that_is_no_language_model_is_refused_in_one_line(tmp_path, config, files, expected):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    for name in files:
        (tmp_path / name).write_bytes(b"0")
    with pytest.raises(ConfigError) as error:
        compose(["task=uuid", "method=fft", "model=custom", f"model.path={tmp_path}"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_has_its_own_name_and_fingerprint(tmp_path):
    def folder(name, weights):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama", "vocab_size": 9}')
        (tmp_path / name / "tokenizer.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        return compose(["task=uuid", "method=fft", "model=custom", f"model.path={tmp_path / name}"])

    one, other, same = (
        folder("a/mine", b"1" * 9999),
        folder("b/mine", b"1" * 9998 + b"2"),
        folder("c/mine", b"1" * 9999),
    )
    assert one.model.name == "mine"
    assert run_id(one) == run_id(same) != run_id(other)
    (tmp_path / "a/mine/model.safetensors").write_bytes(b"3" * 9999)
    with pytest.raises(ConfigError, match="the weights are not those that the run began with"):
        load(one.model_dump(mode="json"))


def test_a_gguf_file_given_as_a_folder_is_told_what_it_needs(tmp_path):
    (file := tmp_path / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"mine\.gguf' is a file: .*needs model\.source=gguf model\.sha256=DIGEST"):
        compose(["task=uuid", "method=fft", "model=custom", f"model.path={file}"])


def test_a_path_that_is_not_there_is_said_so():
    with pytest.raises(ConfigError, match=r"model\.path='/no/such': there is no such folder; give a folder or hub id"):
        compose(["task=uuid", "method=fft", "model=custom", "model.path=/no/such"])
    with pytest.raises(ConfigError, match="path=null: expected the folder or hub id"):
        compose(["task=uuid", "method=fft", "model=custom"])
    with pytest.raises(ConfigError, match="sha256=null: expected the digest of the GGUF file"):
        compose(["task=uuid", "method=fft", "model=smollm2_135m", "model.sha256=null"])
