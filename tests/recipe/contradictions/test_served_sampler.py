"""A recipe whose episodes a server samples: where it is, and weights that both hold."""

import pytest

SERVED = ("method.sampler=server", "method.server_url=http://h:8000", "method.server_folder=/srv")
GRPO = ("method.name=grpo", "method.max_new_tokens=64")


@pytest.fixture
def asked(sound, mistakes):
    return lambda *overrides: mistakes(sound, *GRPO, *overrides)


@pytest.fixture
def fine(sound, load):
    return lambda *overrides: load(sound, *GRPO, *overrides)


def test_a_server_needs_an_address_and_a_folder(asked, fine):
    folder, url = sorted(asked("method.sampler=server"))
    assert "method.server_url: got none" in url and "http://localhost:8000/v1" in url
    assert "method.server_folder: got none" in folder and "by the same path" in folder
    assert fine(*SERVED).method.server_folder == "/srv"


@pytest.mark.parametrize("sampler", ["own", "batched"])
def test_other_samplers_have_neither(asked, sampler):
    found = asked(*SERVED[1:], f"method.sampler={sampler}")
    assert ["server_url" in line for line in found] == [True, False]
    assert all(f"{sampler} samples in this process" in line for line in found)


@pytest.mark.parametrize(
    "url, told",
    [
        ("localhost:8000", "address of a server"),
        ("http://me:secret@h", "without a name, a password"),
        ("http://h/v1?key=1", "a query"),
    ],
)
def test_an_address_that_is_none_is_refused_with_the_recipe(asked, url, told):
    (found,) = asked(SERVED[0], f"method.server_url={url}", SERVED[2])
    assert "server_url" in found and told in found and "variable of the environment" in found


@pytest.mark.parametrize(
    "override, told",
    [
        ("model.linear_precision=nf4", "training would hold others"),
        ("model.head_precision=int8", "training would hold others"),
        ("lora.target_parameters=[down_proj]", "vLLM reads adapters of both"),
    ],
)
def test_what_the_server_computes_otherwise_is_refused(asked, fine, override, told):
    (found,) = asked(*SERVED, override)
    assert override.split("=")[0] in found and told in found
    fine("method.sampler=own", override)


def test_one_projection_is_shipped_where_it_is_rounded(fine):
    fine(*SERVED, "lora.target_parameters=[down_proj]", "lora.merge_aware=true")
