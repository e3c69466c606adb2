"""What fits: heads, context, GPU memory, and the instances of Azure."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.bundle import TARGETS, notes, write_bundle
from gptoss_tune.export.serve.served import Served
from gptoss_tune.export.serve.sizes.azure import INSTANCES, instance_for
from gptoss_tune.export.serve.sizes.memory import need
from gptoss_tune.plan.gpus import card

GIB = 2**30


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_gpus_that_divide_the_heads(bundles, gpus):
    assert Served("model", "x", gpus=gpus, config=bundles.release)


@pytest.mark.parametrize("gpus", [3, 5, 6, 7, 12, 16, 64, 128])
def test_gpus_that_do_not_divide_the_heads(bundles, gpus):
    with pytest.raises(CheckpointError, match=r"expected one of 1, 2, 4, 8$"):
        Served("model", "x", gpus=gpus, config=bundles.release)
    with pytest.raises(CheckpointError, match="64 attention heads and 8"):
        Served("model", "x", gpus=gpus)


def test_more_gpus_than_key_value_heads_would_leave_none():
    with pytest.raises(CheckpointError, match=r"expected one of 1, 2$"):
        Served("model", "x", gpus=4, config={"num_attention_heads": 8, "num_key_value_heads": 2})


def test_a_context_beyond_the_models_is_refused(bundles):
    assert Served("model", "x", context=131_072, config=bundles.release)
    with pytest.raises(CheckpointError, match="the model reads at most 131072 tokens"):
        Served("model", "x", context=131_073, config=bundles.release)
    with pytest.raises(CheckpointError, match="at most 4096"):
        Served("model", "x", config={**bundles.release, "max_position_embeddings": 4096})


def test_what_a_gpu_needs_by_hand(bundles):
    """120b on 1 and on 8 GPUs, 131,072 tokens: the numbers worked out with pen and paper."""
    whole = bundles.large(context=131_072).needed
    assert whole.weights == 65_248_815_744
    # 18 layers keep everything, 18 a window of 128 and a step of 8,192: K and V of 8 heads of 64.
    assert whole.request == 2 * 8 * 64 * 2 * 18 * (131_072 + 8_320)
    eighth = bundles.large(context=131_072, gpus=8).needed
    rest = 65_248_815_744 - 60_993_699_840
    assert eighth.weights == pytest.approx(rest / 8 + 60_993_699_840 * 12 / 90, abs=2)
    assert eighth.request == whole.request // 8
    # A context below the window keeps no more than itself.
    assert bundles.large(context=100).needed.request == 2 * 8 * 64 * 2 * 36 * 100


def test_layer_types_of_the_configuration_are_counted():
    config = {"layer_types": ["full_attention"] * 3 + ["sliding_attention"], "sliding_window": 128}
    found = need(config, weights=0, expert_weights=0, context=20_000, gpus=1)
    assert found.request == 2 * 8 * 64 * 2 * (3 * 20_000 + 8_320)


def test_a_gpu_that_does_not_hold_the_model_is_refused_with_numbers(bundles):
    fits = bundles.large(context=131_072, gpu=card("h100-80gb"))
    assert fits.needed.requests_in(card("h100-80gb").memory_bytes) == 2
    with pytest.raises(CheckpointError, match=r"44\.4 GiB.*60\.8 GiB for weights.*h100-80gb"):
        bundles.large(gpu=card("l40s-48gb"))
    assert bundles.large(gpu=card("l40s-48gb"), gpus=2)
    with pytest.raises(CheckpointError, match="for one request of 131072 tokens"):
        bundles.large(context=131_072, weights=72 * GIB, gpu=card("h100-80gb"))
    with pytest.raises(CheckpointError, match="has no bf16"):
        bundles.large(gpu=card("t4-16gb"), gpus=8)
    with pytest.raises(CheckpointError, match="no NVIDIA GPU"):
        bundles.large(gpu=card("mi300x"))


@pytest.mark.parametrize(
    "gpus, instance", [(1, "NC40ads"), (2, "NC80adis"), (4, "NC96ads_A100"), (8, "ND96isr_H100")]
)
def test_the_instance_of_azure_has_the_gpus_that_are_asked_of_it(bundles, gpus, instance, tmp_path):
    served = Served("model", "x", gpus=gpus, config=bundles.release)
    files = bundles.write(served, "azure-ml", tmp_path / "out")
    assert instance in yaml.safe_load(files["deployment.yaml"])["instance_type"]
    entry = files["environment/Dockerfile"].splitlines()[-1].removeprefix("ENTRYPOINT ")
    assert bundles.option(json.loads(entry), "--tensor-parallel-size") == str(gpus)


def test_azure_is_chosen_by_memory_and_kind(bundles):
    bf16 = {"weights": 233 * GIB, "expert_weights": 228 * GIB}  # 120b in bf16
    assert instance_for(1, card("a100-80gb"), bundles.large().needed).name.startswith(
        "Standard_NC24ads"
    )
    with pytest.raises(CheckpointError, match=r"needs 116\.5 GiB for weights.*largest of.*93\.1"):
        instance_for(2, None, bundles.large(gpus=2, **bf16).needed)
    assert instance_for(4, None, bundles.large(gpus=4, **bf16).needed).gpus == 4
    # 40 GB are too few of 8 GPUs for two thirds of a terabyte, 80 are not.
    huge = {"weights": 400 * GIB, "expert_weights": 0}
    with pytest.raises(CheckpointError, match=r"Standard_ND96asr_v4 has 39\.4"):
        instance_for(8, card("a100-40gb"), bundles.large(gpus=8, **huge).needed)
    assert instance_for(8, None, bundles.large(gpus=8, **huge).needed).gpu == "h100-80gb"


@pytest.mark.parametrize("gpu, gpus", [("h200-141gb", 8), ("a100-40gb", 1), ("b200-180gb", 4)])
def test_azure_has_no_such_instance(bundles, tmp_path, gpu, gpus):
    with pytest.raises(CheckpointError, match="Azure ML has no such instance type, but"):
        write_bundle(Served("model", "x", gpus=gpus, gpu=card(gpu)), "azure-ml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_instance_names_a_known_gpu_and_a_count_that_divides(bundles):
    for one in INSTANCES:
        assert card(one.gpu).name == one.gpu
        assert Served("model", "x", gpus=one.gpus, config=bundles.release)


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"azure-ml", "transformers"}))
def test_numbers_are_said(bundles, target):
    said = "\n".join(notes(bundles.large(context=131_072, gpu=card("h100-80gb")), target))
    if target in ("ollama", "lm-studio", "llama.cpp"):
        return
    assert "60.8 GiB of weights and 4.8 GiB for one request of 131072 tokens" in said
    assert "hold 2 such requests" in said


@pytest.mark.parametrize(
    "options, refusal",
    [
        (["--gpus", "3"], "expected one of"),
        (["--gpu", "toaster"], "not listed"),
        (["--gpu", "t4-16gb"], "no bf16"),
        (["--image", "vllm/vllm-openai:latest"], "tag or a digest"),
        (["--image", "vllm/vllm-openai"], "tag or a digest"),
        (["--context", "999999"], "reads at most"),
        (["--host", "a b"], "expected an address"),
    ],
)
def test_the_command_refuses_before_it_reads_weights(tmp_path, options, refusal):
    """The model's folder does not exist: what is wrong with the options is said first."""
    arguments = ["serve-config", str(tmp_path / "no"), "--target", "vllm"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), *options])
    assert done.exit_code != 0 and refusal in f"{done.output} {done.exception}"


def test_a_card_that_is_not_known_hides_no_other_mistake(tmp_path):
    options = ["--gpu", "toaster", "--gpus", "3", "--context", "999999", "--name", "a b"]
    arguments = ["serve-config", str(tmp_path / "no"), "--target", "vllm", *options]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    said = str(done.exception).splitlines()
    assert [line.split()[0] for line in said] == ["--gpu:", "--context", "--gpus", "--name"]


def test_all_mistakes_are_said_at_once(bundles):
    with pytest.raises(CheckpointError) as caught:
        bundles.large(context=999_999, gpus=3, gpu=card("t4-16gb"), host="a b", image="x:latest")
    said = str(caught.value).splitlines()
    assert [line.split(" is ")[0] for line in said] == [
        "--context",
        "--gpus",
        "--gpu",
        "--host",
        "--image",
    ]
