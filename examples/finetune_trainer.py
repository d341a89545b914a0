"""Fine-tune a causal language model with MoRA and the Hugging Face Trainer.

    python examples/finetune_trainer.py MODEL ROWS.jsonl OUTPUT

MODEL is a folder or a Hub id. ROWS holds one JSON object per line with "instruction" and "output". OUTPUT receives the
Trainer's checkpoints and, in OUTPUT/adapter, the adapter; run the command again and training resumes.
"""

import sys

from datasets import load_dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from mora import MoraConfig

MAX_LENGTH = 128


def main(model_name: str, rows: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name)

    # r is the rank of the LoRA with at least as many trainable parameters.
    model = get_peft_model(model, MoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.print_trainable_parameters()

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        """Tokenize a row; label -100 keeps the prompt out of the loss."""
        prompt = tokenizer(row["instruction"] + "\n")["input_ids"]
        answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        labels = [-100] * len(prompt) + answer
        return {"input_ids": (prompt + answer)[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}

    data = load_dataset("json", data_files=rows, split="train")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=8,
            num_train_epochs=1,
            learning_rate=3e-4,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            logging_steps=5,
            save_steps=10,
            report_to=[],
        ),
        train_dataset=data.map(encode, remove_columns=data.column_names),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    model.save_pretrained(f"{output}/adapter")


if __name__ == "__main__":
    main(*sys.argv[1:])
