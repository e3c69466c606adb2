"""Adapters of one tiny base, as different as a server has to tell apart."""

import shutil

import pytest

CHOSEN = {0: [1, 3], 1: [0, 2]}


@pytest.fixture(scope="session")
def several(base, tmp_path_factory, lab):
    """Three adapters by plain PEFT: two on everything, of two ranks, and one on attention alone."""
    folder = tmp_path_factory.mktemp("several")
    lab.adapter(base, folder / "support", seed=1, scale=0.3)
    ranks = {"r": 9, "lora_alpha": 9, "rank_pattern": {}, "alpha_pattern": {}}
    lab.adapter(base, folder / "sql", seed=2, scale=0.2, **ranks)
    lab.adapter(base, folder / "tone", seed=3, scale=0.3, r=2, target_parameters=None)
    return {name: folder / name for name in ("support", "sql", "tone")}


@pytest.fixture(scope="session")
def chosen(base, tmp_path_factory, lab):
    """An adapter on two of four experts of each layer: as trained, and padded as PEFT loads it."""
    folder = tmp_path_factory.mktemp("chosen")
    padded = lab.adapter(base, folder / "padded", seed=7, scale=0.3)
    experts, rank = 4, 3

    def factors(weights, *, keep_all):
        for name, factor in weights.items():
            if ".experts." not in name:
                continue
            held = CHOSEN[int(name.split(".layers.")[1].split(".")[0])]
            if "lora_A" in name:
                stack = factor.view(experts, rank, -1)
                others = [e for e in range(experts) if e not in held]
                stack[others] = 0
                weights[name] = factor if keep_all else stack[held].flatten(0, 1).contiguous()
            elif not keep_all:
                weights[name] = factor.view(-1, rank, experts)[..., held].flatten(1).contiguous()
        return weights

    compact = shutil.copytree(padded, folder / "compact")
    lab.edit_weights(padded, lambda weights: factors(weights, keep_all=True))
    lab.edit_weights(compact, lambda weights: factors(weights, keep_all=False))
    told = {str(layer): held for layer, held in CHOSEN.items()}
    lab.edit_json(compact / "adapter_config.json", chosen_experts=told)
    return compact, padded
