"""The same training as the usual stack does it: TRL's SFTTrainer, LoRA on attention, its own saves.

Written as the libraries' guides do: a checkpoint every two steps, the newest one found by
Transformers' own ``get_last_checkpoint``, the adapter saved at the end.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Mxfp4Config, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

FINAL = "final"


def train(
    base: Path,
    rows: list[dict],
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    save_steps: int,
) -> None:
    """Train, or continue what ``out`` holds."""
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out),
            max_steps=steps,
            save_steps=save_steps,
            save_total_limit=2,
            per_device_train_batch_size=1,
            gradient_checkpointing=False,
            learning_rate=5e-3,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataset_num_proc=None,
            ddp_timeout=20,
            max_length=256,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
        ),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.is_dir() else None)
    trainer.save_model(str(out / FINAL))
    trainer.save_state()


if __name__ == "__main__":
    from stacks import conversations, tokenizer

    work, out, steps, save_steps = sys.argv[1:]
    base = Path(work) / "base"
    loaded = tokenizer(base)
    train(base, conversations(), Path(out), loaded, steps=int(steps), save_steps=int(save_steps))
