"""Small Llamas of random weights, quantised in each way that can be installed, and what MoRA must do on all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mora import MoraConfig
from mora.adapter import kernels

Load = Callable[[], LlamaForCausalLM]

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GROUP = 64  # weights that share a scale, in the schemes that have groups


def save_llama(folder: Path) -> None:
    """A Llama with grouped-query attention, whose widths every scheme can quantise."""
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.1,
        )
    ).save_pretrained(folder)


def load(folder: Path, device: str, dtype: torch.dtype, settings: Any = None) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map={"": device}, dtype=dtype
    )


def bnb8(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return load(folder, device, dtype, BitsAndBytesConfig(load_in_8bit=True))


def bnb4(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    return load(folder, device, dtype, settings)


def torchao8(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return load(folder, device, dtype, TorchAoConfig(Int8WeightOnlyConfig()))


def torchao4(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """In the layout of torch's own kernel, which runs on a GPU alone, in bf16."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int4WeightOnlyConfig
    from transformers import TorchAoConfig

    settings = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    return load(folder, device, dtype, TorchAoConfig(settings))


def hqq4(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """By hqq itself: transformers 5 refuses its HqqConfig as not available yet."""
    quantize = pytest.importorskip("hqq.core.quantize")

    def rounded(linear: nn.Linear) -> nn.Module:
        settings = quantize.BaseQuantizeConfig(nbits=4, group_size=GROUP)
        return quantize.HQQLinear(linear, settings, compute_dtype=dtype, device=device)

    return each_linear(load(folder, device, dtype), rounded)


def gptq4(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    return each_linear(load(folder, device, dtype), lambda linear: packed(TorchLinear, linear))


def awq4(folder: Path, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    return each_linear(load(folder, device, dtype), lambda linear: packed(AwqTorchLinear, linear))


def packed(kind: type[nn.Module], linear: nn.Linear) -> nn.Module:
    """`linear`, rounded to the nearest of 16 steps per group, in a module of GPT-QModel, which runs anywhere."""
    weight = linear.weight.data.float().cpu()
    scales = weight.view(len(weight), -1, GROUP).abs().amax(-1) / 7
    module: Any = kind(4, GROUP, True, False, linear.in_features, linear.out_features)
    pack = getattr(module, "pack_original", None) or module.pack
    pack(linear.float().cpu(), scales, torch.full_like(scales, 8), torch.arange(linear.in_features) // GROUP)
    return module.to(weight.device)


def each_linear(model: LlamaForCausalLM, replace: Callable[[nn.Linear], nn.Module]) -> LlamaForCausalLM:
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, replace(child))
    return model


def check_training_and_files(load_base: Load, folder: Path) -> tuple[PeftModel, Tensor]:
    """MoRA trains, is saved, and is loaded with the same output. Returns the model and the tokens of that output."""
    torch.manual_seed(0)
    model = get_peft_model(load_base(), MoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False))
    tokens = torch.randint(48, (2, 9), device=model.device)
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(folder)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(load_base(), folder).eval()
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    return model, tokens


@torch.no_grad()
def check_merge(model: PeftModel, tokens: Tensor, off: float) -> None:
    """Merging says that it rounds, and changes the output by less than `off` of the adapter's effect."""
    adapted = model(tokens).logits
    with model.disable_adapter():
        effect = (model(tokens).logits - adapted).norm()
    assert effect > 0.1
    with pytest.warns(UserWarning, match="merged into a quantised base, whose rounding is"):
        merged = model.merge_and_unload(safe_merge=True)
    assert (merged(tokens).logits - adapted).norm() < off * effect


def check_gradient(load_base: Load) -> None:
    """The gradient of M is that of the reference form, in each form that a layer may take.

    It may differ by twice what one rounding of the embeddings changes.
    """
    torch.manual_seed(0)
    model = get_peft_model(load_base(), MoraConfig(r=4, target_modules=PROJECTIONS, init_weights=False)).eval()
    tokens = torch.randint(48, (2, 9), device=model.device)
    expected = gradient(model, tokens, "reference")
    got = {form: gradient(model, tokens, form) for form in ("auto", "fused", "products")}
    eps = torch.finfo(model.dtype).eps
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings *= 1 + eps * torch.randint_like(embeddings, 2)
    noise = (gradient(model, tokens, "reference") - expected).norm()
    assert expected.any()
    for form, values in got.items():
        assert (values - expected).norm() < 2 * max(noise, eps * expected.norm()), form


def gradient(model: nn.Module, tokens: Tensor, form: str) -> Tensor:
    model.zero_grad()
    with kernels.use(form):
        model(tokens, labels=tokens).loss.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])
