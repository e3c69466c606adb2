"""The engine: its errors, its silence, its draws, its end; and a conversation through it."""

import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from gptoss_tune.errors import CheckpointError, DataError, MachineError
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.llama_cpp.engine import LlamaCpp

pytestmark = pytest.mark.slow
GREEDY = Sampling(12, 0.0)
DRAWN = Sampling(12, 1.0, 0.9, seed=7)


@pytest.fixture
def prompt(answerer):
    return answerer.prompt({"messages": [{"role": "user", "content": "Hello there"}]})


def test_tokens_come_one_after_the_other_and_are_those_of_one_request(answerer, prompt):
    asked = {"prompt": prompt, "n_predict": 12, "temperature": 0, "return_tokens": True}
    at_once = answerer.engine.ask("/completion", asked)["tokens"]
    assert list(answerer.engine.stream(prompt, GREEDY)) == at_once and len(at_once) == 12


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦 \U0001f9ff", "हिन्दी", "\ue000", "é"])
def test_an_answer_has_every_id_of_a_character_that_is_spread_over_several(answerer, prompt, text):
    # llama.cpp's own stream gives no id of a token that ends within a character.
    wanted = answerer._vocabulary.encode(text)
    forced = [[token, 1000.0] for token in wanted]
    found: list[int] = []
    for n in range(len(wanted)):
        asked = {"prompt": [*prompt, *found], "n_predict": 1, "return_tokens": True}
        bias = {"logit_bias": [forced[n]], "temperature": 0}
        found += answerer.engine.ask("/completion", {**asked, **bias})["tokens"]
    assert found == wanted and answerer.engine.detokenize(found) == text


def test_a_seed_draws_the_same_and_another_does_not(answerer, prompt):
    def draw(**how):
        return list(answerer.engine.stream(prompt, Sampling(12, **how)))

    one = draw(temperature=1.5, seed=3)
    assert one == draw(temperature=1.5, seed=3)
    assert one != draw(temperature=1.5, seed=4)
    assert draw(temperature=1.5, seed=None) != draw(temperature=1.5, seed=None)


def test_top_p_is_taken_of_what_the_temperature_left(answerer, prompt):
    # So small a share is the likeliest token alone, however hot; without top_p it hardly ever is.
    greedy = list(answerer.engine.stream(prompt, GREEDY))
    hot = Sampling(12, 5.0, 1e-6, seed=1)
    assert list(answerer.engine.stream(prompt, hot)) == greedy
    assert list(answerer.engine.stream(prompt, Sampling(12, 5.0, 1.0, seed=1))) != greedy


def test_it_stops_between_two_tokens_when_asked(answerer, prompt):
    taken: list[int] = []
    for token in answerer.engine.stream(prompt, GREEDY, lambda: len(taken) == 3):
        taken.append(token)
    assert len(taken) == 3


def test_longer_conversations_are_asked_for_more_tokens_at_a_time(answerer, prompt, monkeypatch):
    one = list(answerer.engine.stream(prompt, GREEDY))
    monkeypatch.setattr(
        "gptoss_tune.evaluate.llama_cpp.engine._TOKENS_PER_REQUEST", len(prompt) // 4
    )
    asked: list[int] = []
    ask = answerer.engine.ask
    monkeypatch.setattr(
        answerer.engine,
        "ask",
        lambda path, body: (asked.append(body["n_predict"]), ask(path, body))[1],
    )
    assert list(answerer.engine.stream(prompt, GREEDY)) == one
    assert asked[0] >= 4 and sum(asked) == 12


def test_a_conversation_longer_than_the_context_is_refused(answerer, prompt):
    with pytest.raises(DataError, match=r"over the 512 that memory was taken for"):
        answerer.stream(prompt, Sampling(500))


def test_an_idle_connection_that_the_server_closed_is_opened_anew(answerer, prompt):
    answerer.engine.tokenize("a")
    answerer.engine._connection.sock.shutdown(socket.SHUT_RDWR)
    assert answerer.engine.tokenize("a") == answerer._vocabulary.encode("a")


def test_nobody_else_is_answered(answerer):
    """The library listens on this machine; without this process's key it says nothing."""
    address = answerer.engine._server.listening_address
    assert address.startswith("http://127.0.0.1:")
    for path in ("/completion", "/tokenize", "/v1/chat/completions"):
        asked = urllib.request.Request(address + path, b'{"prompt": "x", "content": "x"}')
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked)


def test_damaged_and_missing_files_are_refused(random_gguf, tmp_path):
    (file,) = random_gguf.glob("*.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:2_000_000])
    with pytest.raises(CheckpointError, match=r"cut\.gguf: .*(read|whole|exceeds)"):
        LlamaCpp(cut)
    other = tmp_path / "other.gguf"
    other.write_text("hello")
    with pytest.raises(CheckpointError, match=r"other\.gguf: "):
        LlamaCpp(other)
    with pytest.raises(CheckpointError, match=r"none\.gguf: no such file"):
        LlamaCpp(tmp_path / "none.gguf")
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(other, two / name)
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        LlamaCpp(two)
    part = tmp_path / "x-00001-of-00002.gguf"
    shutil.copy(other, part)
    with pytest.raises(CheckpointError, match=r"x-00002-of-00002\.gguf"):
        LlamaCpp(part)


def test_the_words_of_llama_cpp_are_in_the_refusal(random_gguf, tmp_path, capfd):
    """A header that is whole, of a model without its settings: only llama.cpp can tell."""
    import gguf

    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "gpt-oss")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="key not found in model"):
        LlamaCpp(path)
    assert capfd.readouterr().err == ""


def test_another_vocabulary_is_refused(answerer, monkeypatch):
    from gptoss_tune.evaluate.llama_cpp.answerer import check_vocabulary

    check_vocabulary(answerer.engine, answerer._vocabulary)
    detokenize = answerer.engine.detokenize
    monkeypatch.setattr(
        answerer.engine, "detokenize", lambda ids: detokenize([ids[1], ids[0], *ids[2:]])
    )
    with pytest.raises(DataError, match="its vocabulary is not that of gpt-oss"):
        check_vocabulary(answerer.engine, answerer._vocabulary)
    monkeypatch.undo()
    monkeypatch.setattr(answerer.engine, "tokenize", lambda text: [1, 2])
    with pytest.raises(DataError, match=r"special token <\|startoftext\|> becomes \[1, 2\]"):
        check_vocabulary(answerer.engine, answerer._vocabulary)


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MachineError, match=r"gptoss-tune\[llama-cpp\]"):
        LlamaCpp(tmp_path / "x.gguf")


@pytest.mark.parametrize("variable, asked, taken", [("3", None, 3), ("3", 1, 1), ("", None, None)])
def test_the_threads_are_those_asked_for_else_of_the_variable(
    monkeypatch, random_gguf, variable, asked, taken
):
    library = pytest.importorskip("xllamacpp")
    usual = library.CommonParams().cpuparams.n_threads
    seen = []

    def server(wanted):
        seen.append((wanted.cpuparams.n_threads, wanted.cpuparams_batch.n_threads))
        raise RuntimeError

    monkeypatch.setattr(library, "Server", server)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    with pytest.raises(CheckpointError):
        LlamaCpp(random_gguf, threads=asked)
    assert seen[0] == ((usual if taken is None else taken,) * 2)


def test_nothing_of_llama_cpp_is_written(random_gguf):
    """In a process of its own: its logs go past Python, to the descriptors themselves."""
    code = (
        "import sys\n"
        "from gptoss_tune.evaluate.llama_cpp.engine import LlamaCpp\n"
        "from types import SimpleNamespace\n"
        "engine = LlamaCpp(sys.argv[1], context=256, threads=1)\n"
        "sampling = SimpleNamespace(max_new_tokens=3, temperature=0.0, top_p=1.0, seed=None)\n"
        "found = list(engine.stream([200006, 1428], sampling))\n"
        "engine.close()\n"
        "print(len(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(random_gguf)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)
