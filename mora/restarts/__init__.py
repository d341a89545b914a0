"""Restarts for any training: ReLoRA and ReMoRA (section 5.3). Knows PEFT and torch, nothing of the suite."""
