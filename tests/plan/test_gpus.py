"""Cards: names as people write them, and the cards of this machine as its drivers tell them."""

import json

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.plan.gpus import GPUS, card, detected_gpus, known_gpu


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("4090", "rtx4090-24gb"),
        ("RTX 4090", "rtx4090-24gb"),
        ("rtx4090", "rtx4090-24gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24gb"),
        ("H100", "h100-80gb"),
        ("h 100", "h100-80gb"),
        ("H100 NVL", "h100nvl-94gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("a100-80", "a100-80gb"),
        ("a100_80", "a100-80gb"),
        ("A100 80GB", "a100-80gb"),
        ("A100 80 GB", "a100-80gb"),
        ("a10080gb", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("l40s", "l40s-48gb"),
        ("5090", "rtx5090-32gb"),
        ("mi300x", "mi300x-192gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
        ("RTX PRO 6000", "rtxpro6000-96gb"),
        ("NVIDIA H200 NVL", "h200-141gb"),
        ("Tesla T4", "t4-16gb"),
    ],
)
def test_a_card_is_understood_as_people_write_it(written, meant):
    assert card(written).name == meant


def test_every_card_is_understood_in_its_own_spellings():
    for known in GPUS:
        for written in (known.name, known.name.upper(), f"{known.model} {known.sold_gb} GB"):
            assert card(written) is known


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("A100", r"got 'A100', which is sold with .*; write a100-40gb or a100-80gb$"),
        ("v100", r"write v100-16gb or v100-32gb$"),
        ("gh200", r"write gh200-96gb or gh200-144gb$"),
        ("h200 80gb", r"expected the memory it is sold with; write h200-141gb$"),
        ("rtx4060", r"nearest: rtx4090-24gb, rtx4080-16gb"),
        ("RTX 6000 Ada 48GB", r"\(nearest: l40s-48gb\); "),
        ("24GB", r"\(nearest: l4-24gb, a10g-24gb, rtx3090-24gb, rtx4090-24gb\); "),
        ("h1000", r"\(nearest: h100-80gb.*expected one of .*h100-80gb"),
        ("4090 Laptop", r"nearest: rtx4090-24gb"),
        ("", r"got '', which is not listed; expected one of"),
    ],
)
def test_what_is_unknown_or_means_several_gets_the_nearest_names(written, said):
    with pytest.raises(RecipeError, match=said):
        card(written)


@pytest.mark.parametrize(
    ("name", "mib", "meant"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090-24gb"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, None),
        ("NVIDIA GeForce RTX 3090 Ti", 24564, "rtx3090-24gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80gb"),
        ("NVIDIA H100 PCIe", 81559, "h100-80gb"),
        ("NVIDIA H100 NVL", 95830, "h100nvl-94gb"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100-40gb"),
        ("NVIDIA GH200 480GB", 97871, "gh200-96gb"),
        ("Tesla V100-SXM2-16GB", 16160, "v100-16gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "rtxpro6000-96gb"),
        ("NVIDIA L40", 46068, None),
        ("NVIDIA A10", 23028, None),
        ("NVIDIA GB10", 0, "gb10-128gb"),
        ("AMD Instinct MI300X OAM", 196592, "mi300x-192gb"),
    ],
)
def test_a_driver_s_name_and_memory_mean_one_card_or_none(name, mib, meant):
    found = known_gpu(name, mib / 1024)
    assert (found.name if found else None) == meant


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that puts programs in place of a driver's tools, and nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def put(program, text):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return put


TWO = """echo 'GPU-aa, Disabled, NVIDIA H100 80GB HBM3, 81559'
echo 'GPU-bb, [N/A], NVIDIA GeForce RTX 4060 Ti, 16380'"""


def test_no_driver_is_no_card(machine):
    assert detected_gpus() == []
    machine("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert detected_gpus() == []


def test_the_cards_of_nvidia_s_driver(machine, monkeypatch):
    machine("nvidia-smi", TWO)
    large, small = detected_gpus()
    assert large.known is card("h100-80gb") and large.planned_as is large.known
    assert large.memory_gib == pytest.approx(79.6, abs=0.1)
    assert small.known is None and small.planned_as is card("4080")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert detected_gpus() == [small]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,0")
    assert detected_gpus() == [small, large]
    for nothing in ("", "-1", "7"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert detected_gpus() == []


def test_a_card_cut_into_parts_is_its_parts(machine):
    machine(
        "nvidia-smi",
        """if [ "$1" = -L ]; then
echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa)'
echo '  MIG 3g.40gb     Device  0: (UUID: MIG-11)'
echo '  MIG 1g.10gb+me  Device  1: (UUID: MIG-22)'
echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb)'
echo '  MIG 7g.80gb     Device  0: (UUID: MIG-33)'
else echo 'GPU-aa, Enabled, NVIDIA H100 80GB HBM3, 81559'; fi""",
    )
    found = detected_gpus()
    assert [gpu.name for gpu in found] == [
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me",
    ]
    assert [gpu.planned_as and gpu.planned_as.name for gpu in found] == ["rtx5090-32gb", None]


def test_the_cards_of_amd_s_driver(machine, monkeypatch):
    facts = {"Card Series": "AMD Instinct MI300X OAM", "VRAM Total Memory (B)": "206141652992"}
    told = json.dumps({"card0": facts, "card1": facts, "system": {"Driver version": "6.2"}})
    machine("rocm-smi", f"echo '{told}'")
    assert [gpu.known for gpu in detected_gpus()] == [card("mi300x")] * 2
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert len(detected_gpus()) == 1
    machine("rocm-smi", "echo broken")
    assert detected_gpus() == []
