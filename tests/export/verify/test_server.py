"""verify --served against servers on loopback: transformers' own, and one that tells logprobs."""

import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, UndecidedError
from gptoss_tune.export.verify.completions import CompletionsServer
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.export.verify.server import SERVED_PROMPTS, _judged, ask_server, verify_served
from gptoss_tune.run.record import read_record
from gptoss_tune.weights import open_checkpoint


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory, lab):
    """A change large enough that the first choices differ from the base's."""
    folder = tmp_path_factory.mktemp("served")
    adapter = lab.adapter(base, folder / "adapter", scale=0.3)
    lab.merge(base, adapter, folder / "merged")
    return folder


@functools.cache
def first_choices(path):
    """The likeliest next token of every prompt with its log-probability, in bf16 as a server's."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = [tokenizer.encode(p, add_special_tokens=False).ids for p in SERVED_PROMPTS]
    rows = LayerwiseModel(open_checkpoint(path), dtype=torch.bfloat16).last_logits(prompts)
    values, tokens = rows.log_softmax(-1).max(-1)
    texts = [tokenizer.decode([t], skip_special_tokens=False) for t in tokens.tolist()]
    return dict(zip(SERVED_PROMPTS, zip(texts, values.tolist(), strict=True), strict=True))


class Completions:
    """The completions API over one checkpoint's own logits."""

    def __init__(self, checkpoint, *, logprobs=True, offset=0.0):
        answers = first_choices(checkpoint.path)

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if wanted.get("logprobs") and not logprobs:
                    self.send_response(422)
                    self.end_headers()
                    return
                text, value = answers[wanted["prompt"]]
                choice = {"text": text}
                if logprobs:
                    choice["logprobs"] = {"token_logprobs": [value + offset]}
                data = json.dumps({"choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def told(checkpoint, *, logprobs=True, offset=0.0):
    """What a server of ``checkpoint`` answers, without the server."""
    answers = [first_choices(checkpoint.path)[prompt] for prompt in SERVED_PROMPTS]
    return [(text, value + offset if logprobs else None) for text, value in answers]


@pytest.fixture(scope="module")
def opened(base, tuned, lab):
    """The tuned model and its base."""
    return lab.open(tuned / "merged")[0], lab.open(base)[0]


@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [True, False])
def test_the_right_model_is_green_and_the_base_red(opened, logprobs):
    merged, bare = opened
    with Completions(merged, logprobs=logprobs) as server:
        right = verify_served(ask_server(CompletionsServer(server.url, "m")), merged, bare)
    assert right.passed is True, right
    assert ("distance" in right.figures) == logprobs
    wrong = verify_served(told(bare, logprobs=logprobs), merged, bare)
    assert wrong.passed is False, wrong
    assert wrong.figures["gap"] > 10 * right.figures["gap"] + 0.1


@pytest.mark.slow
def test_other_log_probabilities_are_red(opened):
    check = verify_served(told(opened[0], offset=-0.5), *opened)
    assert check.passed is False and check.of_server and check.figures["distance"] > 0.4


@pytest.mark.slow
def test_a_model_like_its_base_cannot_be_told_apart(opened):
    _, bare = opened
    check = verify_served(told(bare), bare, bare)
    assert check.passed is None and check.required and "cannot tell" in check.detail


@pytest.mark.slow
def test_a_server_of_random_tokens_is_red_even_where_the_base_is_near(opened):
    """The tuned model is the base itself: only the served gap can say anything."""
    _, bare = opened
    random = [(text, None) for text in ["a", " the", "!", "x"] * (len(SERVED_PROMPTS) // 4)]
    check = verify_served(random, bare, bare)
    assert check.passed is False and check.figures["gap"] > 0.1
    assert check.figures["gap_if_base"] == 0.0


NEAR = {"distance_noise": 0.001, "distance_if_base": 0.001}
FAR = {"distance_noise": 0.001, "distance_if_base": 0.5}


@pytest.mark.parametrize(
    "gap, gap_if_base, distances, passed",
    [
        (10.27, 0.0125, {}, False),  # random tokens
        (0.3, 0.0125, {}, False),  # another fine-tuning
        (0.3, 0.3, {}, False),  # the base
        (0.3, 0.3, {"distance": 0.0, **FAR}, False),
        (0.001, 0.3, {}, True),
        (0.001, 0.3, {"distance": 0.5, **FAR}, False),
        (0.001, 0.0125, {}, None),
        (0.001, 0.0125, {"distance": 0.001, **NEAR}, None),
        (0.001, 0.0125, {"distance": 0.001, **FAR}, True),
        (0.001, 0.0125, {"distance": 0.5, **FAR}, False),
        (0.001, 0.0125, {"distance": 0.5, **NEAR}, False),
    ],
)
def test_the_served_gap_is_judged_before_the_bases(gap, gap_if_base, distances, passed):
    figures = {"tokens": 24, "gap": gap, "noise": 0.0015, "gap_if_base": gap_if_base, **distances}
    assert _judged(figures).passed is passed


@pytest.mark.slow
def test_log_probabilities_decide_where_the_first_choices_cannot(base, lab, tmp_path):
    """A fine-tuning that changes no first choice of the prompts, and every probability."""
    adapter = lab.adapter(base, tmp_path / "small", scale=0.08)
    lab.merge(base, adapter, tmp_path / "merged")
    merged, bare = lab.open(tmp_path / "merged")[0], lab.open(base)[0]
    right = verify_served(told(merged), merged, bare)
    figures = right.figures
    assert figures["distance_if_base"] > 0.04, "the test needs a change that can be seen"
    assert right.passed is True
    assert verify_served(told(bare), merged, bare).passed is False


@pytest.mark.slow
def test_answers_that_are_not_one_token_prove_nothing(opened):
    check = verify_served([("word word", None)] * len(SERVED_PROMPTS), *opened)
    assert check.passed is None and check.required


@pytest.mark.slow
def test_command(base, tuned, lab):
    bare, _ = lab.open(base)
    arguments = ["verify", str(tuned / "merged"), "--adapter", str(tuned / "adapter")]
    arguments += ["--base", str(base), "--no-logits"]
    with Completions(bare) as server:
        result = CliRunner().invoke(app, [*arguments, "--served", server.url])
    assert isinstance(result.exception, CheckpointError) and "served" in str(result.exception)


@pytest.mark.slow
def test_what_cannot_be_told_has_an_exit_code_of_its_own(base, tuned, monkeypatch, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"run_id": "x"}')
    (tuned / "adapter").rename(run / "adapter")
    try:
        arguments = ["verify", str(tuned / "merged"), "--adapter", str(run), "--base", str(base)]
        monkeypatch.setattr(
            CompletionsServer, "first_token", lambda self, prompt: ("word word", None)
        )
        options = ["--no-logits", "--json", "--served", "http://localhost:1"]
        result = CliRunner().invoke(app, [*arguments, *options])
    finally:
        (run / "adapter").rename(tuned / "adapter")
    assert isinstance(result.exception, UndecidedError) and result.exception.exit_code == 4
    assert json.loads(result.stdout)["passed"] is False
    assert read_record(run)["verification"][0]["passed"] is False


@pytest.mark.slow
def test_transformers_serve(base, tuned, lab, transformers_serve):
    merged, _ = lab.open(tuned / "merged")
    bare, _ = lab.open(base)
    with transformers_serve(merged.path) as url:
        answers = ask_server(CompletionsServer(url, str(merged.path)))
        check = verify_served(answers, merged, bare)
        assert check.passed is True, check
