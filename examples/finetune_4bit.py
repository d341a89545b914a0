"""Fine-tune on a base in 4 bits: QLoRA with MoRA in LoRA's place.

    python examples/finetune_4bit.py MODEL ROWS.jsonl OUTPUT

Needs bitsandbytes. ROWS holds one JSON object per line with "instruction" and "output". The adapter is written to
OUTPUT/adapter, the base with the adapter merged, still in 4 bits, to OUTPUT/merged_4bit; run the command again and
training resumes from the last checkpoint in OUTPUT.
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from mora import MoraConfig


def as_prompt(row: dict[str, str]) -> dict[str, str]:
    """Rename the columns to TRL's; the loss is on the completion alone."""
    return {"prompt": row["instruction"] + "\n", "completion": row["output"]}


def main(model_name: str, rows: str, output: str) -> None:
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    args = SFTConfig(
        output_dir=output,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        learning_rate=3e-4,
        warmup_steps=3,
        max_length=128,
        save_steps=10,
        bf16=on_gpu,  # SFTConfig asks for bf16, which the Trainer refuses on a CPU
        report_to=[],
    )
    data = load_dataset("json", data_files=rows, split="train")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_name, quantization_config=nf4, dtype=dtype),
        args=args,
        train_dataset=data.map(as_prompt, remove_columns=data.column_names),
        peft_config=MoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    trainer.save_model(f"{output}/adapter")

    # A warning says how much of the update 4 bits round away. `mora-export` merges into MODEL itself, without that error.
    trainer.model.merge_and_unload().save_pretrained(f"{output}/merged_4bit")


if __name__ == "__main__":
    main(*sys.argv[1:])
