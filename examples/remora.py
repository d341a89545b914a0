"""Train with ReMoRA: merge the adapter into the base weights at intervals and start it again.

    python examples/remora.py MODEL ROWS.jsonl OUTPUT [RESTART_EVERY_STEPS]

ROWS holds one JSON object per line with "text". With PEFT's LoraConfig in place of MoraConfig, the same callback is
ReLoRA. Training changes the base weights, so OUTPUT/merged receives the whole model; run the command again and
training resumes, with the merged base of the last checkpoint.
"""

import sys

import torch
from datasets import load_dataset
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from mora import MoraConfig, RestartCallback


def main(model_name: str, rows: str, output: str, restart_every_steps: str = "2000") -> None:
    every_steps = int(restart_every_steps)
    restarts = RestartCallback(
        every_steps=every_steps,
        warmup_steps=every_steps // 20,  # steps in which the learning rate climbs back after a restart
    )
    trainer = SFTTrainer(
        model=model_name,
        args=SFTConfig(
            output_dir=output,
            per_device_train_batch_size=8,
            num_train_epochs=1,
            learning_rate=3e-4,
            lr_scheduler_type="cosine",
            max_length=128,
            gradient_checkpointing=False,  # a small model has room for its activations
            logging_steps=5,
            save_steps=10,
            bf16=torch.cuda.is_available(),  # SFTConfig asks for bf16, which the Trainer refuses on a CPU
            report_to=[],
        ),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        # Sharing is the operator whose groups ReMoRA switches at each restart (Appendix B of the paper).
        peft_config=MoraConfig(r=8, target_modules="all-linear", operator="sharing", task_type="CAUSAL_LM"),
        callbacks=[restarts],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    print(f"{len(restarts.history)} restarts")

    merged = trainer.model.merge_and_unload()  # a saved adapter would need restarts.safetensors, the merged base
    merged.save_pretrained(f"{output}/merged")
    trainer.processing_class.save_pretrained(f"{output}/merged")


if __name__ == "__main__":
    main(*sys.argv[1:])
