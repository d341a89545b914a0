"""Fine-tune a causal language model with MoRA and TRL's SFTTrainer.

    python examples/finetune_sft.py MODEL ROWS.jsonl OUTPUT

MODEL is a folder or a Hub id. ROWS holds one JSON object per line with "instruction" and "output". The adapter is
written to OUTPUT/adapter; run the command again and training resumes from the last checkpoint in OUTPUT.
"""

import sys

import torch
from datasets import load_dataset
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from mora import MoraConfig


def as_prompt(row: dict[str, str]) -> dict[str, str]:
    """Rename the columns to TRL's; the loss is on the completion alone."""
    return {"prompt": row["instruction"] + "\n", "completion": row["output"]}


def main(model_name: str, rows: str, output: str) -> None:
    data = load_dataset("json", data_files=rows, split="train")
    trainer = SFTTrainer(
        model=model_name,
        args=SFTConfig(
            output_dir=output,
            per_device_train_batch_size=8,
            num_train_epochs=1,
            learning_rate=3e-4,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            max_length=128,
            gradient_checkpointing=False,  # a small model has room for its activations
            logging_steps=5,
            save_steps=10,
            bf16=torch.cuda.is_available(),  # SFTConfig asks for bf16, which the Trainer refuses on a CPU
            report_to=[],
        ),
        train_dataset=data.map(as_prompt, remove_columns=data.column_names),
        peft_config=MoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    trainer.save_model(f"{output}/adapter")


if __name__ == "__main__":
    main(*sys.argv[1:])
