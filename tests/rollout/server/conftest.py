"""A stand-in for vLLM 0.33: its answers, its refusals and its ways to fail, with a real model.

What it computes with is plain transformers and PEFT on the folder that it was given, as a server
does that shares no code with the training.
"""

import base64
import io
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gptoss_tune.model.build import build
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.schema import GrpoSection
from gptoss_tune.rollout.server.open import open_server_sampler
from gptoss_tune.train.resume.adapter_files import save_adapter
from gptoss_tune.weights import open_checkpoint

BASE_NAME = "tiny"


def plain_model(path):
    from transformers import AutoModelForCausalLM, Mxfp4Config

    packed = "quantization_config" in json.loads((Path(path) / "config.json").read_text())
    arguments = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **arguments).eval()


class Engine:
    """What vLLM's engine is asked for: one token after the other, each with its experts."""

    def __init__(self, base):
        self.base, self.shipped, self.adapters = base, None, {}

    def model(self, name):
        if name in self.adapters:
            return self.adapters[name]
        if self.shipped is None:
            self.shipped = plain_model(self.base)
        return self.shipped

    def load_adapter(self, name, path):
        from peft import PeftModel

        assert (Path(path) / "adapter_config.json").is_file(), f"no adapter at {path}"
        self.adapters[name] = PeftModel.from_pretrained(plain_model(self.base), path).eval()

    def checksum(self):
        model = self.model(BASE_NAME)
        return {n: str(p.detach().double().abs().sum().item()) for n, p in model.named_parameters()}

    @torch.no_grad()
    def generate(self, name, asked):
        model, ids = self.model(name), list(asked["prompt"])
        generator = torch.Generator().manual_seed(asked["seed"])
        chosen = []
        routers = [m for n, m in model.named_modules() if n.endswith("mlp.router")]

        def keep(_, __, out):
            chosen.append(out[-1].reshape(-1, out[-1].shape[-1]))

        hooks = [router.register_forward_hook(keep) for router in routers]
        tokens, logps = [], []
        try:
            for _ in range(asked["max_tokens"]):
                chosen.clear()
                logits = model(torch.tensor([ids + tokens])).logits[0, -1].float()
                scale = asked["temperature"] or 1.0
                told = (logits / scale).log_softmax(-1)
                drawn = (
                    int(logits.argmax())
                    if asked["temperature"] == 0
                    else int(torch.multinomial(told.exp(), 1, generator=generator))
                )
                tokens.append(drawn)
                logps.append(float(told[drawn]))
                if drawn in asked["stop_token_ids"]:
                    break
        finally:
            for hook in hooks:
                hook.remove()
        experts = torch.stack(chosen, 1).to(torch.uint8).numpy()  # [N + M - 1, L, K]
        return tokens, logps, experts


class StandIn:
    """The server; its attributes are how it behaves.

    Attributes:
        lora: Whether adapters may be loaded; dev: whether it has the calls of its developers' mode.
        before: Called with the number of a completion and its fields; returns None to go on, a
            ``(status, body)`` to answer, or a function that changes the answer.
        asked: Every completion's fields; calls: every other call.
    """

    def __init__(self, engine):
        self.engine, self.lora, self.dev = engine, True, True
        self.tells_experts, self.tells_versions, self.mode = True, True, "raw_logprobs"
        self.key, self.loads = None, True
        self.before = lambda number, fields: None
        self.asked, self.calls, self.label, self.paused = [], [], "default", False
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body):
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                with suppress(OSError):  # who asked has left
                    self.send_response(status)
                    self.send_header("content-length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def do_GET(self):
                self.answer(*self.refusal() or stand_in.get(self.path))

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                self.answer(*self.refusal() or stand_in.post(self.path, json.loads(body)))

            def refusal(self):
                told = self.headers.get("authorization")
                if stand_in.key is not None and told != f"Bearer {stand_in.key}":
                    return 401, {"error": f"Unauthorized, got {told}"}
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def get(self, path):
        if path == "/v1/models":
            names = [BASE_NAME, *self.engine.adapters]
            return 200, {"data": [{"id": name} for name in names]}
        if not self.dev:
            return 404, {"detail": "Not Found"}
        if path.startswith("/server_info"):
            return 200, {"vllm_config": {"model_config": {"logprobs_mode": self.mode}}}
        if path == "/weight_info":
            return 200, {"weight_version": self.label}
        return 404, {"detail": "Not Found"}

    def post(self, path, fields):
        if path == "/v1/completions":
            return self.complete(fields)
        call = path.split("?")[0].strip("/").removeprefix("v1/")
        self.calls.append((call, fields))
        known = self.lora if "lora" in call else self.dev
        if not known:
            return 404, {"detail": "Not Found"}
        return getattr(self, call)(fields)

    def complete(self, fields):
        with self.lock:
            number = len(self.asked)
            self.asked.append(fields)
        odd = self.before(number, fields)
        if isinstance(odd, tuple):
            return odd
        if self.paused:
            return 503, {"error": {"message": "Generation is paused"}}
        if fields["model"] != BASE_NAME and fields["model"] not in self.engine.adapters:
            return 404, {
                "error": {"message": f"The model `{fields['model']}` does not exist.", "code": 404}
            }
        with self.lock:
            tokens, logps, experts = self.engine.generate(fields["model"], fields)
        answer = {
            "model": fields["model"],
            "choices": [self.choice(fields, tokens, logps, experts)],
        }
        return 200, odd(answer) or answer if odd else answer

    def choice(self, fields, tokens, logps, experts):
        file = io.BytesIO()
        np.save(file, experts)
        stopped = tokens[-1] in fields["stop_token_ids"]
        span = {"version": self.label, "start": 0, "end": len(tokens)}
        versions = self.tells_versions and fields.get("return_weight_versions")
        return {
            "index": 0,
            "text": "not looked at",
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": tokens[-1] if stopped else None,
            "token_ids": tokens if fields["return_token_ids"] else None,
            "prompt_token_ids": fields["prompt"] if fields["return_token_ids"] else None,
            "logprobs": {
                "tokens": [f"token_id:{token}" for token in tokens],
                "token_logprobs": logps,
                "top_logprobs": [{}] * len(tokens),
            },
            "routed_experts": (
                base64.b64encode(file.getvalue()).decode() if self.tells_experts else None
            ),
            "weight_versions": [span] if versions else None,
        }

    def load_lora_adapter(self, fields):
        self.engine.load_adapter(fields["lora_name"], fields["lora_path"])
        return 200, b"Success: LoRA adapter added."

    def unload_lora_adapter(self, fields):
        if self.engine.adapters.pop(fields["lora_name"], None) is None:
            return 404, {"error": {"message": "cannot be found"}}
        return 200, b"Success: LoRA adapter removed."

    def weight_checker(self, fields):
        return 200, {"checksums": self.engine.checksum()}

    def pause(self, fields):
        self.paused = True
        return 200, {"status": "paused"}

    def resume(self, fields):
        self.paused = False
        return 200, {"status": "resumed"}

    def update_weight_version(self, fields):
        self.label = fields["new_version"]
        return 200, {"success": True}

    def reset_prefix_cache(self, fields):
        return 200, {"success": True}

    def collective_rpc(self, fields):
        assert fields["method"] == "reload_weights"
        assert self.paused and self.label.endswith("-incomplete")
        if self.loads:
            self.engine.shipped = plain_model(fields["kwargs"]["weights_path"])
        return 200, {"results": [None]}


@pytest.fixture(scope="module")
def policies(base, rows, write_recipe, tmp_path_factory, request):
    """What is trained: the model with random adapters, of each merge_aware."""
    folder = tmp_path_factory.mktemp("policies")
    path = write_recipe(folder)
    checkpoint = open_checkpoint(base)
    made = {}

    def policy(merge_aware):
        if merge_aware not in made:
            recipe = load_recipe(path, [f"lora.merge_aware={str(merge_aware).lower()}"])
            made[merge_aware] = (recipe, build(recipe, checkpoint, "cpu").model.eval())
        recipe, model = made[merge_aware]
        return SimpleNamespace(recipe=recipe, model=model, checkpoint=checkpoint)

    return policy


@pytest.fixture(scope="module")
def engine(base):
    return Engine(base)


@pytest.fixture
def stand_in(engine):
    engine.adapters.clear()
    engine.shipped = None  # as it was started
    server = StandIn(engine)
    yield server
    server.close()


@pytest.fixture
def open_sampler(stand_in, policies, randomise_adapters, tmp_path, monkeypatch):
    """Return a function that opens the sampler of a policy; ``move(seed)`` trains it."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def opened(*, merge_aware=False, hurried=True, **section):
        policy = policies(merge_aware)
        settings = {
            "name": "grpo",
            "sampler": "server",
            "server_url": stand_in.url,
            "server_folder": str(tmp_path / "handed"),
            "rollout_batch": 2,
            **section,
        }
        record = {
            "base": {"name": str(policy.checkpoint.path)},
            "recipe": policy.recipe.model_dump(mode="json"),
        }
        sampler = open_server_sampler(
            GrpoSection(**settings),
            policy.checkpoint,
            record,
            save=lambda folder: save_adapter(policy.model, folder),
            merge_aware=merge_aware,
        )
        if hurried:
            sampler._pause_s, sampler._seconds, sampler._seconds_per_token = 0.01, 20.0, 0.0
        policy.move = lambda seed: randomise_adapters(policy.model, seed=seed)
        return sampler, policy

    return opened
