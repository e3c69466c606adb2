"""Every key of another tool's file ends in one of three ways, and the recipe says the same."""

import pytest
import yaml

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe import RecipeMistakes

NAMES = [
    *("axolotl-lora", "axolotl-dpo", "axolotl-text"),
    *("llamafactory-sft", "llamafactory-simpo", "llamafactory-kto"),
    *("trl-sft", "trl-dpo"),
]
AXOLOTL = """\
base_model: openai/gpt-oss-20b
datasets: [{path: a.jsonl, type: chat_template}]
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
sequence_len: 4096
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.0002
"""
LLAMAFACTORY = """\
model_name_or_path: openai/gpt-oss-20b
stage: sft
finetuning_type: lora
dataset: brief
output_dir: runs/a
"""


def keys_of(value, path=()):
    """Yield every key that holds a value, as an outcome names it."""
    below = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        below = enumerate(value)
    found = False
    for key, entry in below:
        found = True
        yield from keys_of(entry, (*path, key))
    if not found:
        yield "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


def fates(made):
    return {outcome.key: outcome.fate for outcome in made.outcomes}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gpus", [1, 8])
def test_every_key_is_told_once(convert, folder, name, gpus):
    made = convert(name, gpus=gpus)
    told = [outcome.key for outcome in made.outcomes]
    assert len(told) == len(set(told))
    for key in keys_of(yaml.safe_load((folder / "source.yml").read_text())):
        above = [t for t in told if key == t or key.startswith((f"{t}.", f"{t}["))]
        assert len(above) == 1, (key, above)
    lines = (folder / "source.yml").read_text().splitlines()
    for outcome in made.outcomes:
        last = outcome.key.replace("]", "").replace("[", ".").split(".")[-1]
        assert last.isdigit() or last in lines[outcome.line - 1], outcome
        assert outcome.text
    # What is lost stands in the file too.
    for outcome in made.outcomes:
        if outcome.fate == "none":
            assert f"line {outcome.line}, {outcome.key}" in made.text


def test_an_axolotl_run(convert):
    made = convert("axolotl-lora")
    recipe, told = made.recipe, fates(made)
    assert made.tool == "Axolotl"
    assert (recipe.lora.rank, recipe.lora.alpha) == (8, 16)
    assert recipe.lora.target_parameters == ["gate_up_proj", "down_proj"]
    assert recipe.train.gradient_accumulation_steps == 4
    assert recipe.train.per_device_train_batch_size == 2
    assert recipe.train.optim == "adamw_8bit"
    assert recipe.train.learning_rate == 1e-4  # which YAML 1.1 reads as text
    assert recipe.train.lr_scheduler_type == "constant_with_warmup"
    assert recipe.train.activation_checkpointing == "offload"
    assert recipe.data.max_length == 2048
    assert recipe.data.eval_fraction == 0.05
    assert recipe.data.roles == {"klant": "user"}
    chats, alpaca, turns = recipe.data.train
    assert (chats.path, chats.columns) == ("somebody/thinking-chats", None)
    assert (alpaca.weight, set(alpaca.columns)) == (0.25, {"prompt", "completion"})
    assert turns.columns["messages"] == "{{ dialogue | tojson }}"
    assert (recipe.tracking.wandb, recipe.tracking.project) == ("online", "tunes")
    assert recipe.tracking.entity == "us"
    assert told["lora_dropout"] == told["something_new"] == told["evals_per_epoch"] == "none"
    assert told["fp16"] == told["flash_attention"] == told["special_tokens"] == "irrelevant"
    assert "  rank: 8  # lora_r\n" in made.text


def test_pairs(convert):
    recipe = convert("axolotl-dpo").recipe
    assert (recipe.method.name, recipe.method.beta, recipe.method.sft_weight) == ("dpo", 0.2, 0.1)
    assert recipe.lora.alpha == 32 * 16**0.5  # rank-stabilised: alpha / sqrt(rank)
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.lora.target_parameters == []
    assert recipe.data.max_length == 8192  # both answers stand in it
    assert recipe.train.gradient_accumulation_steps == 16
    assert (recipe.train.max_steps, recipe.train.num_train_epochs) == (200, None)
    assert recipe.data.eval[0].columns["prompt"] == "{{ question }}"
    spread = convert("axolotl-dpo", gpus=4).recipe
    assert (spread.distributed.strategy, spread.distributed.num_processes) == ("fsdp2", 4)
    assert (spread.train.optim, spread.model.linear_precision) == ("adamw", "bf16")
    assert spread.train.gradient_accumulation_steps == 4


def test_texts(convert):
    made = convert("axolotl-text")
    recipe, told = made.recipe, fates(made)
    one, two, own = recipe.data.train
    assert (one.path, two.path) == ("one.jsonl", "two.jsonl")
    assert one.columns == two.columns == {"text": "{{ body }}"}
    assert own.columns["prompt"] == "{{ vraag }}"
    assert own.columns["system"] == "{{ 'It\\'s brief.' }}"
    assert told["datasets[1].type.format"] == "none"
    assert recipe.lora == type(recipe.lora)()  # every weight there, all adapters here
    spread = convert("axolotl-text", gpus=8).recipe
    assert spread.distributed.strategy == "fsdp2"


def test_llamafactory(convert):
    sft = convert("llamafactory-sft").recipe
    brief, chats = sft.data.train
    assert (brief.path, brief.limit) == ("data/brief.json", 500)
    assert brief.columns["completion"] == "{{ output }}"
    assert (chats.path, chats.columns) == ("somebody/chats", None)
    assert sft.lora.alpha == 32
    assert sft.data.too_long == "truncate"
    assert (sft.train.eval_steps, sft.data.eval_fraction) == (100, 0.1)
    simpo = convert("llamafactory-simpo").recipe
    assert (simpo.method.name, simpo.method.beta, simpo.method.gamma) == ("simpo", 2.5, 0.5)
    assert simpo.train.lr_scheduler_type == "cosine_with_restarts"
    kto = convert("llamafactory-kto").recipe
    assert (kto.method.name, kto.method.undesirable_weight) == ("kto", 2.0)
    assert kto.data.train[0].columns["label"] == "{{ liked | tojson }}"
    assert kto.train.save_steps == 500
    assert kto.train.learning_rate == 5e-5  # its default, not ours


def test_trl(convert):
    sft = convert("trl-sft").recipe
    assert (sft.data.train[0].name, sft.data.eval[0].split) == ("small", "test")
    assert (sft.model.attention, sft.tracking.trackio) == ("eager", "local")
    assert sft.train.lr_scheduler_type == "cosine_with_min_lr"
    assert sft.train.lr_scheduler_kwargs.min_lr_rate == 0.1
    dpo = convert("trl-dpo").recipe
    assert (dpo.method.name, dpo.method.beta, dpo.data.max_length) == ("dpo", 0.05, 4096)
    assert dpo.lora.target_modules == ["q_proj", "v_proj"]  # PEFT's default


def test_the_columns_write_rows_that_are_read(convert):
    from gptoss_tune.harmony.formats.registry import read_row
    from gptoss_tune.harmony.sources.columns import ColumnTemplates

    columns = convert("axolotl-lora").recipe.data.train[1].columns
    templates = ColumnTemplates(columns)
    for row, asked in (
        ({"instruction": "Add", "input": "1 1", "output": "2"}, "Add\n\n1 1"),
        ({"instruction": "Add", "input": "", "output": "2"}, "Add"),
        ({"instruction": "Add", "output": "2"}, "Add"),
    ):
        read = read_row(templates.apply(row, "a:1"), "a:1")
        assert [message.text for message in read.messages] == [asked, "2"]


@pytest.mark.parametrize(
    ("line", "setting", "value", "fate"),
    [
        ("gradient_checkpointing: false", "train.activation_checkpointing", "none", "converted"),
        ("gradient_checkpointing: true", "train.activation_checkpointing", "full", "converted"),
        ("optimizer: lion_8bit", "train.optim", "adamw", "none"),
        ("lr_scheduler: rex", "train.lr_scheduler_type", "cosine", "none"),
        ("bf16: false", "model.dtype", "float32", "converted"),
        ("fp16: true", "model.dtype", "bfloat16", "none"),
        ("warmup_steps: 0", "train.warmup_steps", None, "irrelevant"),
        ("save_steps: 0.1", "train.save_steps", None, "none"),
        ("eval_steps: 10", "train.eval_steps", None, "irrelevant"),
        ("load_in_8bit: true", "model.linear_precision", "bf16", "none"),
        ("load_in_8bit: false", "model.linear_precision", "bf16", "irrelevant"),
        ("max_steps: -1", "train.max_steps", None, "irrelevant"),
        ("val_set_size: 100", "data.eval_fraction", None, "none"),
        ("train_on_inputs: true", "data.turns", "all", "none"),
        ("hf_use_auth_token: hf_abcdefghijklmnopqrst", "model.revision", None, "irrelevant"),
        ("lora_model_dir: old/run", "lora.init_from", "old/run", "converted"),
        ("peft_layers_to_transform: [1, 2]", "lora.layers", [1, 2], "converted"),
        ("default_system_message: Be brief.", "data.roles", {}, "none"),
        ("flex_attention: true", "model.attention", "flex", "converted"),
        ("adam_eps: 1e-6", "train.adam_epsilon", 1e-6, "converted"),
        ("use_tensorboard: true", "tracking.report_to", ["tensorboard"], "converted"),
        ("use_mlflow: false", "tracking.report_to", [], "irrelevant"),
        ("wandb_entity: us", "tracking.entity", None, "irrelevant"),
        ("unheard_of: 3", "data.turns", "all", "none"),
        ("unheard_of: no", "data.turns", "all", "irrelevant"),
    ],
)
def test_single_keys(convert, line, setting, value, fate):
    made = convert(AXOLOTL + line + "\n")
    key = line.split(":")[0]
    assert fates(made)[key] == fate
    section, name = setting.split(".")
    assert getattr(getattr(made.recipe, section), name) == value


def test_no_credential_is_shown(convert):
    made = convert(AXOLOTL + "hub_token: hf_abcdefghijklmnopqrst\nmy_api_key: 0123456789\n")
    shown = made.text + "".join(outcome.text + outcome.value for outcome in made.outcomes)
    assert "abcdefghij" not in shown
    assert "0123456789" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\n", "is no configuration that is known here"),
        ("model: {}\ndata: {}\ntrain: {}\n", "is a recipe already"),
        (AXOLOTL.replace("openai/gpt-oss-20b", "meta/llama"), "source.yml:1:1: base_model: got"),
        (AXOLOTL + "rl: grpo\n", "source.yml:11:1: rl: got 'grpo', expected dpo, ipo, simpo, orpo"),
        (AXOLOTL.replace("lora_r: 16", "lora_r: many"), "source.yml:4:1: lora.rank: got 'many'"),
        (AXOLOTL.replace("a.jsonl", "s3://b/a.jsonl"), "source.yml:2:13: data.train[0]: got"),
        (AXOLOTL + "reward_model: true\n", "source.yml:11:1: reward_model: got true"),
        (AXOLOTL.replace("4096", "500_000"), "data.max_length: got 500000, expected"),
        (AXOLOTL + "lora_r: 8\n", "source.yml:11:1: lora_r: got the key a second time"),
        (AXOLOTL.replace("datasets", "#"), "datasets: got nothing (null), expected a list"),
        (LLAMAFACTORY.replace("sft", "ppo"), "stage: got 'ppo', expected sft, pt, dpo or kto"),
        (LLAMAFACTORY.replace("brief", "other"), "dataset: got 'other', expected data sets that"),
        (LLAMAFACTORY + "dataset_dir: gone\n", "--dataset-info FILE"),
    ],
)
def test_what_cannot_be_converted(convert, text, expected):
    with pytest.raises(RecipeError) as caught:
        convert(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        *("rl: [dpo]", "optimizer: {a: 1}", "lr_scheduler: [cosine]", "adapter: [lora]"),
        *("lora_alpha: {a: 1}", "warmup_ratio: x", "val_set_size: {}", "report_to: 3"),
        *("deepspeed: {zero_optimization: 3}", "gradient_checkpointing: [1]", "wandb_tags: 3"),
        *("lora_target_modules: {a: 1}", "lora_target_parameters: 3", "peft_use_rslora: many"),
        *("test_datasets: 3", "datasets: {path: a.jsonl, roles: [a], shards: x}"),
        *("datasets: [{path: a/b, type: [1], message_property_mappings: x, data_files: 3}]",),
        *("datasets: [{path: a.jsonl, type: {field_instruction: 3}, field_messages: 7}]",),
    ],
)
def test_values_of_another_kind_are_told_or_refused(convert, line):
    key = line.split(":")[0]
    kept = [entry for entry in AXOLOTL.splitlines() if not entry.startswith(f"{key}:")]
    for gpus in (1, 8):
        try:
            assert convert("\n".join([*kept, line, ""]), gpus=gpus).text
        except RecipeError as error:
            assert "source.yml" in str(error)


def test_another_base_on_request(convert):
    text = AXOLOTL.replace("openai/gpt-oss-20b", "meta/llama")
    assert convert(text, model="openai/gpt-oss-20b").recipe.model.name_or_path.endswith("20b")


def test_what_preferences_do_not_have_is_told(convert):
    text = AXOLOTL + "excess_length_strategy: truncate\nrl: dpo\n"
    made = convert(text)
    assert made.recipe.data.too_long == "drop"
    assert fates(made)["excess_length_strategy"] == "none"
    told = {outcome.key: outcome.text for outcome in made.outcomes}
    assert told["sequence_len"].startswith("data.max_length: 8192;")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_stands_in_the_recipe(convert, name):
    made = convert(name)
    for outcome in made.outcomes:
        setting, _, value = outcome.text.partition(";")[0].partition(": ")
        section, _, key = setting.partition(".")
        if outcome.fate == "converted" and value and section in type(made.recipe).model_fields:
            found = getattr(getattr(made.recipe, section), key, None)
            if isinstance(found, int | float | str) and not isinstance(found, bool):
                same = value.strip("'") == str(found) or _number(value) == found
                assert same or _number(value) is None, outcome


def test_modules_that_gpt_oss_lacks(convert):
    text = AXOLOTL.replace("lora_target_linear: true", "lora_target_modules: [w1, in_proj]")
    made = convert(text)
    assert fates(made)["lora_target_modules"] == "none"
    assert made.recipe.lora.target_parameters == ["gate_up_proj", "down_proj"]


def test_shares_of_data_sets(convert):
    text = "model_name_or_path: openai/gpt-oss-20b\nuse_peft: true\nlora_r: 8\n"
    made = convert(text + "dataset_mixer: {us/one: 1.0, us/two: 0.5}\n")
    assert [source.weight for source in made.recipe.data.train] == [1, 0.5]


def test_a_named_list_of_data_sets(convert, folder):
    (folder / "data" / "dataset_info.json").rename(folder / "info.json")
    recipe = convert(LLAMAFACTORY, dataset_info="info.json").recipe
    assert recipe.data.train[0].path == "brief.json"


def test_mistakes_are_told_together(convert):
    text = AXOLOTL.replace("lora_r: 16", "lora_r: many").replace("num_epochs: 1", "num_epochs: -1")
    with pytest.raises(RecipeMistakes) as caught:
        convert(text)
    assert len(caught.value.mistakes) == 2
