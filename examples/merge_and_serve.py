"""Turn a MoRA adapter into files that need neither PEFT nor this package, and serve them.

    python examples/merge_and_serve.py ADAPTER OUTPUT [LORA_RANK]

OUTPUT/merged is an ordinary checkpoint. With LORA_RANK, OUTPUT/lora is a PEFT LoRA, for servers that hold several adapters
on one base. Prefer the merged model: the LoRA is exact only for sharing and truncation, at a rank of the largest r_hat or
more. The adapter's README.md lists r_hat.
"""

import subprocess
import sys

from mora.adapter.export import export

# A new process, which knows nothing of MoRA, writes with the merged model.
GENERATE = """
from transformers import pipeline
generate = pipeline("text-generation", model={model!r})
print(generate("The capital of France is", max_new_tokens=20, do_sample=False)[0]["generated_text"])
"""
SERVE = """
Serve the merged model:
    vllm serve {output}/merged"""
SERVE_LORA = """
Or one base with several adapters:
    vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules tuned={output}/lora"""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def main(adapter: str, output: str, lora_rank: str | None = None) -> None:
    rank = None if lora_rank is None else int(lora_rank)
    export(adapter, f"{output}/merged", to="merged")
    subprocess.run([sys.executable, "-c", GENERATE.format(model=f"{output}/merged")], check=True)
    print(SERVE.format(output=output))
    if rank is not None:
        export(adapter, f"{output}/lora", to="lora", rank=rank)  # prints the error at each rank
        enough = next((served for served in VLLM_RANKS if served >= rank), None)
        print("vLLM serves no LoRA of this rank" if enough is None else SERVE_LORA.format(output=output, rank=enough))


if __name__ == "__main__":
    main(*sys.argv[1:])
