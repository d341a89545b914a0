"""Turn a MoRA adapter into files that need neither PEFT nor this package, and serve them.

    python examples/merge_and_serve.py ADAPTER OUTPUT [LORA_RANK]

OUTPUT/merged is an ordinary checkpoint. OUTPUT/lora is a PEFT LoRA, for servers that hold several adapters on one base.
Prefer the merged model: the LoRA is exact only for the sharing operator, at a rank of r_hat or more.
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
    vllm serve {output}/merged
Or one base with several adapters:
    vllm serve BASE --enable-lora --max-lora-rank {rank} --lora-modules tuned={output}/lora
"""


def main(adapter: str, output: str, lora_rank: str = "64") -> None:
    export(adapter, f"{output}/merged", to="merged")
    export(adapter, f"{output}/lora", to="lora", rank=int(lora_rank))  # prints the error at each rank

    subprocess.run([sys.executable, "-c", GENERATE.format(model=f"{output}/merged")], check=True)
    print(SERVE.format(output=output, rank=lora_rank))


if __name__ == "__main__":
    main(*sys.argv[1:])
