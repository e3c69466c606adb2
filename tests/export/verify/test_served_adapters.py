"""verify --bundle against a stand-in server of several names, backed by transformers and PEFT."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import peft
import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, MachineError, UndecidedError
from gptoss_tune.export.serve.adapters.bundle import open_adapters, read_bundle
from gptoss_tune.export.verify.completions import CompletionsServer
from gptoss_tune.export.verify.layerwise import LayerwiseModel, last_logits_of_each
from gptoss_tune.export.verify.served_adapters import ask_each, local_answers, verify_each
from gptoss_tune.export.verify.server import SERVED_PROMPTS
from gptoss_tune.export.verify.verify import Check, Verification
from gptoss_tune.weights import open_checkpoint

NOWHERE = "http://127.0.0.1:1"

pytestmark = pytest.mark.slow


def answers_of(base, model):
    """The likeliest next token of every prompt with its log-probability: transformers, bf16."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    answers = {}
    for prompt in SERVED_PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        token = int(row.argmax())
        answers[prompt] = tokenizer.decode([token], skip_special_tokens=False), float(row[token])
    return answers


@pytest.fixture(scope="module")
def known(base, several, tmp_path_factory, lab):
    """What the base answers, the base with each adapter, and with one whose experts are dropped."""
    folder = tmp_path_factory.mktemp("known")
    dropped = shutil.copytree(several["support"], folder / "dropped")

    def no_experts(weights):
        return {n: w.zero_() if ".experts." in n else w for n, w in weights.items()}

    lab.edit_weights(dropped, no_experts)
    found = {"base": answers_of(base, lab.plain_model(base))}
    for name, adapter in {**several, "dropped": dropped}.items():
        found[name] = answers_of(
            base, peft.PeftModel.from_pretrained(lab.plain_model(base), adapter)
        )
    return found


class Names:
    """OpenAI's completions API, several models by name.

    Args:
        models: What each name answers to a prompt.
        logprobs: Whether log-probabilities are told.
        listing: What ``/v1/models`` answers instead of the names.
        status: With which status it does.
    """

    def __init__(self, models, *, logprobs=True, listing=None, status=200):
        listing = listing or {"object": "list", "data": [{"id": name} for name in models]}

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                self._answer(status, listing)

            def do_POST(self):
                wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if wanted["model"] not in models:
                    self._answer(404, {"error": {"message": f"no model {wanted['model']}"}})
                    return
                text, value = models[wanted["model"]][wanted["prompt"]]
                choice = {"text": text}
                if logprobs:
                    choice["logprobs"] = {"token_logprobs": [value]}
                self._answer(200, {"choices": [choice]})

            def _answer(self, status, value):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def bundle(base, several, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "out"
    arguments = ["adapter", *map(str, several.values()), "--base", str(base), "--for", "vllm"]
    result = CliRunner().invoke(app, [*arguments, "--bundle", str(out)])
    assert result.exit_code == 0, result.output
    return out


def opened(bundle):
    """What the files of a bundle compute."""
    told = read_bundle(bundle)
    checkpoint = open_checkpoint(told.base)
    places = {name: str(place) for name, place in told.adapters.items()}
    return local_answers(checkpoint, told.base_name, open_adapters(places, checkpoint))


@pytest.fixture(scope="module")
def local(bundle):
    return opened(bundle)


def asked(local, models, **options):
    """The verdict on each name, what the command would raise, and the words of each check."""
    with Names(models, **options) as server:
        answers = ask_each(CompletionsServer(server.url, "base"), list(local.names))
    checks = verify_each(answers, local)
    verdicts = {check.name.removeprefix("served "): check.passed for check in checks}
    details = {check.name.removeprefix("served "): check.detail for check in checks}
    try:
        Verification("bundle", tuple(checks)).require()
    except (CheckpointError, UndecidedError) as error:
        return verdicts, error, details
    return verdicts, None, details


def served(known, **changes):
    names = {name: known[name] for name in ("base", "support", "sql", "tone")}
    return {**names, **{name: known[by] for name, by in changes.items()}}


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_of_the_bundle_is_green(local, known, logprobs):
    verdicts, raised, details = asked(local, served(known), logprobs=logprobs)
    assert raised is None, details
    assert verdicts == {"base": True, "support": True, "sql": True, "tone": True}, details


def test_a_server_that_answers_every_name_with_the_base(local, known):
    models = served(known, support="base", sql="base", tone="base")
    verdicts, raised, details = asked(local, models)
    assert verdicts == {"base": True, "support": False, "sql": False, "tone": False}
    for name in ("support", "sql", "tone"):
        assert "they are those of base" in details[name]
        assert f"served {name}" in str(raised)
    assert isinstance(raised, CheckpointError) and raised.exit_code == 2


def test_two_adapters_in_each_others_places(local, known):
    verdicts, raised, details = asked(local, served(known, support="sql", sql="support"))
    assert verdicts == {"base": True, "support": False, "sql": False, "tone": True}
    assert "they are those of sql" in details["support"]
    assert "they are those of support" in details["sql"]
    assert isinstance(raised, CheckpointError)


def test_an_adapter_that_the_server_does_not_list(local, known):
    models = served(known)
    del models["tone"]
    verdicts, raised, details = asked(local, models)
    assert verdicts == {"base": True, "support": True, "sql": True, "tone": False}
    assert "lists no model 'tone'" in details["tone"] and isinstance(raised, CheckpointError)


def test_an_adapter_whose_experts_are_dropped(local, known):
    verdicts, raised, details = asked(local, served(known, support="dropped"))
    assert verdicts == {"base": True, "support": False, "sql": True, "tone": True}
    assert "they are those of support without its experts" in details["support"]
    assert isinstance(raised, CheckpointError)


def test_an_adapter_under_the_bases_name(local, known):
    verdicts, _, details = asked(local, served(known, base="tone"))
    assert verdicts == {"base": False, "support": True, "sql": True, "tone": True}
    assert "they are those of tone" in details["base"]


def test_a_model_that_nobody_knows(local, known):
    strange = {prompt: (text, value - 1.5) for prompt, (text, value) in known["sql"].items()}
    _, raised, details = asked(local, {**served(known), "sql": strange})
    assert "they are those of none that is known" in details["sql"]
    assert isinstance(raised, CheckpointError)


@pytest.fixture(scope="module")
def twins(base, several, tmp_path_factory, lab):
    """A bundle of an adapter and one that is nearly the same."""
    folder = tmp_path_factory.mktemp("twins")
    twin = shutil.copytree(several["tone"], folder / "twin")
    lab.edit_weights(twin, lambda weights: {n: w * 1.001 for n, w in weights.items()})
    arguments = ["adapter", str(several["tone"]), str(twin), "--base", str(base), "--for", "vllm"]
    result = CliRunner().invoke(app, [*arguments, "--bundle", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_what_cannot_be_told_apart_is_no_success(twins, known):
    models = {"base": known["base"], "tone": known["tone"], "twin": known["tone"]}
    verdicts, raised, details = asked(opened(twins), models)
    assert verdicts == {"base": True, "tone": None, "twin": None}
    assert "cannot tell it from twin" in details["tone"]
    assert isinstance(raised, UndecidedError) and raised.exit_code == 4


def command(bundle, models, **options):
    with Names(models, **options) as server:
        arguments = ["verify", "--bundle", str(bundle), "--served", server.url]
        return CliRunner().invoke(app, [*arguments, "--json"])


@pytest.mark.slow
def test_the_command(bundle, known):
    result = command(bundle, served(known))
    assert result.exit_code == 0, result.exception
    told = json.loads(result.stdout)
    assert told["passed"] is True and told["folder"] == str(bundle)
    assert [check["name"] for check in told["checks"]] == [
        *("served base", "served sql", "served support", "served tone")
    ]
    red = command(bundle, served(known, tone="base"))
    assert isinstance(red.exception, CheckpointError) and "served tone" in str(red.exception)


@pytest.mark.parametrize("listing", [{"models": []}, {"data": "none"}, ["base"]])
def test_an_odd_list_of_models(bundle, known, listing):
    raised = command(bundle, served(known), listing=listing).exception
    assert isinstance(raised, MachineError) and raised.exit_code == 3
    assert "expected data, a list of models" in str(raised)


def asked_at(bundle, url, *options):
    arguments = ["verify", "--bundle", str(bundle), "--served", url, *map(str, options)]
    return CliRunner().invoke(app, arguments).exception


def test_no_server_or_one_that_lists_nothing_gives_no_list_of_models(bundle):
    for status in (None, 401, 404):
        with Names({}, status=status or 200) as server:
            url = server.url if status else NOWHERE
            raised = str(asked_at(bundle, url))
        assert raised.startswith(f"{url}/v1/models: gave no list of models (")
        assert "model ''" not in raised and "--served-name" not in raised
        assert {None: "refused", 401: "--api-key-env", 404: "HTTP 404"}[status] in raised


def test_a_red_server_is_blamed_for_what_the_bundle_holds(local, known, bundle):
    with Names(served(known, sql="support")) as server:
        answers = ask_each(CompletionsServer(server.url, "base"), list(local.names))
    checks = tuple(verify_each(answers, local))
    with pytest.raises(CheckpointError) as raised:
        Verification("ab", checks, server="http://me:secret@host:8000").require()
    first, line = str(raised.value).splitlines()
    assert first == "the server at http://[hidden]@host:8000 does not serve what ab holds:"
    assert line.startswith("  served sql: ")
    torn = (*checks, Check("files", False, "torn"))
    with pytest.raises(CheckpointError, match=r"^ab does not hold what was trained:"):
        Verification("ab", torn, server="http://host").require()


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copied")


def test_adapters_that_were_swapped_on_disk(copied):
    adapters = copied / "adapters"
    (adapters / "sql").rename(adapters / "kept")
    (adapters / "support").rename(adapters / "sql")
    (adapters / "kept").rename(adapters / "support")
    raised = asked_at(copied, NOWHERE)
    assert isinstance(raised, CheckpointError) and raised.exit_code == 2
    for name in ("sql", "support"):
        assert f"'{name}': adapter_model.safetensors is not the file" in str(raised)
    assert "tone" not in str(raised)


def test_files_that_are_changed_or_gone_are_all_named(copied):
    with (copied / "adapters/sql/adapter_config.json").open("a") as file:
        file.write(" ")
    (copied / "adapters/tone/adapter_model.safetensors").unlink()
    shutil.rmtree(copied / "adapters/support")
    with pytest.raises(CheckpointError) as raised:
        read_bundle(copied)
    told = str(raised.value)
    assert "'sql': adapter_config.json is not the file" in told
    assert "'tone': names.json names 'adapter_model.safetensors', which is missing" in told
    assert "names 'adapters/support', which is missing" in told


def test_a_base_of_other_weights_than_the_bundles(copied, base, tmp_path, lab):
    other = shutil.copytree(base, tmp_path / "other")
    shard = min(other.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    raised = asked_at(copied, NOWHERE, "--base", other)
    assert isinstance(raised, CheckpointError)
    assert "was written for a base whose weights differ" in str(raised)
    accepted = asked_at(copied, NOWHERE, "--base", other, "--other-base")
    assert isinstance(accepted, MachineError), "the server is asked"


def test_a_base_that_lies_elsewhere_is_given_with_base(copied, base, tmp_path):
    told = json.loads((copied / "names.json").read_text())
    told["base"]["path"] = "/gone/base"
    (copied / "names.json").write_text(json.dumps(told))
    raised = asked_at(copied, NOWHERE)
    assert isinstance(raised, CheckpointError)
    assert "/gone/base: no such folder" in str(raised) and "with --base" in str(raised)
    assert isinstance(asked_at(copied, NOWHERE, "--base", base), MachineError)
    lost = str(asked_at(copied, NOWHERE, "--base", tmp_path / "lost"))
    assert "lost: no such folder" in lost and "names.json" not in lost


def test_models_side_by_side_are_the_models_alone(base, several, lab):
    checkpoint, adapters = lab.open(base, several["support"], several["tone"])
    prompts = [[200006, 1428, 200008, 40, 41], [200006, 77]]
    models = [LayerwiseModel(checkpoint, [each]) for each in adapters]
    models.append(LayerwiseModel(checkpoint, dtype=torch.bfloat16))
    together = last_logits_of_each(models, prompts)
    assert not torch.equal(together[0], together[1])
    for model, rows in zip(models, together, strict=True):
        assert torch.equal(model.last_logits(prompts), rows)


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (("--bundle", "B"), "--served URL"),
        (("F", "--bundle", "B", "--served", "http://x"), "its own adapters and names"),
        (("--adapter", "A", "--bundle", "B", "--served", "http://x"), "its own adapters and names"),
        (("--served", "http://x"), "name a merged checkpoint, or --bundle"),
    ],
)
def test_what_does_not_go_together(arguments, hint):
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == 2 and hint.split()[0] in result.output


def test_a_folder_that_is_no_bundle(tmp_path):
    arguments = ["verify", "--bundle", str(tmp_path), "--served", "http://localhost:1"]
    result = CliRunner().invoke(app, arguments)
    assert "holds no names.json" in str(result.exception)
    (tmp_path / "names.json").write_text('{"base": {"name": "b"}, "adapters": {}}')
    result = CliRunner().invoke(app, arguments)
    assert "expected base (name, path, revision, fingerprint)" in str(result.exception)
    (tmp_path / "names.json").write_text(
        json.dumps(
            {
                "base": {"name": "b", "path": "p", "revision": None, "fingerprint": {}},
                "adapters": {"a": {"folder": "../a", "files": {"x": {}}}},
            }
        )
    )
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CheckpointError) and "../a" in str(result.exception)
