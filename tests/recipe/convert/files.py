"""Configurations of other tools, written for these tests in the shape that such files have."""

AXOLOTL_LORA = """\
# A run on one card, as people write it.
base_model: openai/gpt-oss-20b
model_quantization_config: Mxfp4Config
model_quantization_config_kwargs: {dequantize: true}
use_kernels: true
strict: false
plugins:
  - axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin

datasets:
  - path: somebody/thinking-chats
    type: chat_template
    field_thinking: thinking
    template_thinking_key: thinking
    split: train
  - path: data/qa.jsonl
    ds_type: json
    type: alpaca
    shards: 4
  - path: data/turns.jsonl
    type: chat_template
    field_messages: dialogue
    message_property_mappings: {role: from, content: value}
    roles: {user: [human, klant], assistant: [gpt]}
    roles_to_train: [assistant]
dataset_prepared_path: last_run
val_set_size: 0.05
output_dir: ./outputs/lora

sequence_len: 2048
sample_packing: true
pad_to_sequence_len: true
adapter: lora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_target_parameters:
  - mlp.experts.gate_up_proj
  - mlp.experts.down_proj

wandb_project: tunes
wandb_entity: us
wandb_name:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: adamw_torch_8bit
lr_scheduler: constant_with_warmup
learning_rate: 1e-4
warmup_ratio: 0.1
bf16: auto
fp16: no
tf32: true
flash_attention: true
gradient_checkpointing: true
activation_offloading: true
logging_steps: 5
evals_per_epoch: 2
saves_per_epoch: 1
save_total_limit: 3
seed: 7
weight_decay: 0.01
special_tokens:
eot_tokens: ["<|end|>"]
early_stopping_patience: 3
something_new: {a: 1, b: 2}
"""

AXOLOTL_DPO = """\
base_model: openai/gpt-oss-120b
rl: dpo
rl_beta: 0.2
rpo_alpha: 0.1
datasets:
  - path: pairs.jsonl
    type: chatml.intel
test_datasets:
  - path: held.jsonl
    type: chatml.intel
adapter: qlora
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_target_modules: [q_proj, v_proj, mlp.gate]
peft_use_rslora: true
sequence_len: 4096
micro_batch_size: 1
batch_size: 16
max_steps: 200
num_epochs: 2
optimizer: adamw_bnb_8bit
learning_rate: 0.000005
lr_scheduler: cosine
warmup_steps: 10
eval_steps: 50
save_steps: 50
deepspeed: deepspeed_configs/zero3.json
"""

AXOLOTL_TEXT = """\
base_model: openai/gpt-oss-20b
datasets:
  - path: json
    data_files: [one.jsonl, two.jsonl]
    type: completion
    field: body
  - path: own.jsonl
    type:
      system_prompt: "It's brief."
      field_instruction: vraag
      field_output: antwoord
      format: "[INST] {instruction} [/INST]"
      no_input_format: "[INST] {instruction} [/INST]"
adapter:
sequence_len: 8192
micro_batch_size: 1
gradient_accumulation_steps: 8
num_epochs: 1
learning_rate: 2e-5
fsdp_version: 2
fsdp_config:
  offload_params: true
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
"""

LLAMAFACTORY_SFT = """\
### model
model_name_or_path: openai/gpt-oss-20b
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all

### dataset
dataset: brief,chats
template: gpt
cutoff_len: 3072
max_samples: 500
overwrite_cache: true
preprocessing_num_workers: 4
dataloader_num_workers: 2

### output
output_dir: saves/first
logging_steps: 10
save_steps: 250
plot_loss: true
overwrite_output_dir: true
report_to: wandb
run_name: first

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 100
"""

LLAMAFACTORY_SIMPO = """\
model_name_or_path: openai/gpt-oss-20b
stage: dpo
finetuning_type: lora
lora_target: q_proj,v_proj
pref_beta: 2.5
pref_loss: simpo
dataset: better
cutoff_len: 2048
output_dir: saves/simpo
learning_rate: 5.0e-6
lr_scheduler_type: cosine_with_restarts
neat_packing: true
quantization_bit: 4
deepspeed: examples/deepspeed/ds_z3_config.json
"""

LLAMAFACTORY_KTO = """\
model_name_or_path: openai/gpt-oss-20b
stage: kto
finetuning_type: lora
lora_rank: 8
pref_beta: 0.1
kto_rejected_weight: 2.0
dataset: liked
output_dir: saves/kto
num_train_epochs: 1.0
"""

DATASET_INFO = """\
{
  "brief": {"file_name": "brief.json"},
  "chats": {"hf_hub_url": "somebody/chats", "formatting": "sharegpt", "split": "train",
            "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                     "assistant_tag": "assistant", "system_tag": "system"}},
  "better": {"file_name": "better.json", "ranking": true,
             "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen",
                         "rejected": "rejected"}},
  "liked": {"file_name": "liked.json", "formatting": "sharegpt",
            "columns": {"messages": "conversations", "kto_tag": "liked"}}
}
"""

TRL_SFT = """\
model_name_or_path: openai/gpt-oss-20b
attn_implementation: eager
torch_dtype: bfloat16
dataset_name: somebody/chats
dataset_config: small
dataset_train_split: train
dataset_test_split: test
dataset_num_proc: 4
learning_rate: 2.0e-4
gradient_checkpointing: true
num_train_epochs: 1.0
logging_steps: 1
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
eval_strategy: steps
eval_steps: 20
use_peft: true
lora_r: 32
lora_alpha: 64
lora_dropout: 0.0
lora_target_modules: all-linear
lora_target_parameters: ["7.mlp.experts.gate_up_proj", "7.mlp.experts.down_proj"]
max_length: 4096
warmup_ratio: 0.03
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
output_dir: tuned
report_to:
- trackio
seed: 42
"""

TRL_DPO = """\
model_name_or_path: openai/gpt-oss-20b
dataset_name: somebody/pairs
use_peft: true
lora_r: 16
beta: 0.05
loss_type: sigmoid
max_length: 2048
max_prompt_length: 512
learning_rate: 5.0e-6
per_device_train_batch_size: 2
output_dir: tuned-dpo
save_strategy: epoch
"""

FILES = {
    name.lower().replace("_", "-"): text
    for name, text in list(globals().items())
    if name.startswith(("AXOLOTL", "LLAMAFACTORY", "TRL"))
}
