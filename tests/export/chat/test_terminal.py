"""``gptoss-tune chat`` in a real terminal: keys, pastes, Ctrl-C; nothing but the conversation."""

import os
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

PASTE = "\x1b[200~{}\x1b[201~"
# What libraries do while a model answers: Python's warnings, logs, C's own writes.
NOISE = """
import ctypes, logging, os, sys, warnings
import gptoss_tune.chat.server as module

def noisy(name):
    whole = getattr(module.ServedModel, name)
    def call(*arguments, **more):
        print("NOISE by print")
        print("NOISE by print", file=sys.stderr)
        warnings.warn("NOISE of Python", UserWarning)
        logging.getLogger("transformers").error("NOISE of a logger")
        os.write(1, b"NOISE of descriptor 1\\n")
        os.write(2, b"NOISE of descriptor 2\\n")
        ctypes.CDLL(None).puts(b"NOISE that C has buffered")
        return whole(*arguments, **more)
    setattr(module.ServedModel, name, call)

noisy("open")
"""
MAIN = "from gptoss_tune.cli import main; main()"


@pytest.mark.slow
def test_keys_pastes_and_commands_in_one_conversation(in_terminal, stand_in):
    def asked():
        return [body["messages"][-1]["content"] for body in stand_in.asked]

    with in_terminal(stand_in.url, "--max-new-tokens", "40", code=NOISE + MAIN) as terminal:
        terminal.prompted()
        terminal.type("helo\x1b[Dl\r")  # an arrow key edits
        terminal.until("[final] You said: hello")
        terminal.prompted()
        terminal.type(PASTE.format("one\rtwo 北京\r\rthree"))
        terminal.until("three")
        terminal.type("\r")
        terminal.until("You said: one")
        terminal.prompted()
        terminal.type("by hand\x1b\rand\nCtrl-J\r")
        terminal.until("You said: by hand")
        terminal.prompted()
        terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A!\r")  # up to the first
        terminal.until("You said: hello!")
        assert asked() == ["hello", "one\ntwo 北京\n\nthree", "by hand\nand\nCtrl-J", "hello!"]
        terminal.prompted()
        terminal.type("/ef\t hi\t\r")
        terminal.until("reasoning effort high, from the next question on")
        terminal.prompted()
        terminal.type("/tokens\r")
        terminal.until("100 tokens (the server's count)")
        terminal.prompted()
        terminal.type("escapes\r")
        terminal.until("\\x1b]0;owned\\x07 \\u202e北京")
        terminal.prompted()
        terminal.resize(20, 30)
        terminal.type("long\r")
        terminal.until("[cut by the server after 30")
        terminal.prompted()
        terminal.type("\x04")
        assert terminal.ended() == 0
    assert "NOISE" not in terminal.raw and "WARNING" not in terminal.raw
    assert "owned\x07" not in terminal.raw
    assert stand_in.asked[-1]["reasoning_effort"] == "high"


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_session(in_terminal, stand_in):
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        terminal.type("slow\r")
        terminal.until("word3 ")
        marked = terminal.raw.rfind("\x1b[?2004h") > terminal.raw.rfind("\x1b[?2004l")
        assert marked, "the terminal is to say what is pasted into an answer"
        terminal.type("typed ahead")
        terminal.type("\x03\x03\x03")  # pressed again and again
        shown = terminal.until("[stopped by Ctrl-C]")
        assert "typed ahead" not in shown and "^C" not in shown
        assert stand_in.left.wait(20)
        terminal.prompted()
        terminal.type("given up\x03")
        terminal.prompted()
        terminal.type("next\r")
        terminal.until("You said: next")
        terminal.prompted()
        assert stand_in.asked[-1]["messages"][0]["content"] == "slow"
        assert len(stand_in.asked) == 2, "the line that was cleared is not sent"
        terminal.type("\x03")
        terminal.until("Ctrl-C once more, /exit or Ctrl-D leaves")
        terminal.prompted()
        terminal.type("\x03")
        assert terminal.ended() == 0


@pytest.mark.slow
def test_what_is_typed_while_an_answer_comes_is_the_next_message(in_terminal, stand_in):
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        terminal.type("pause\r")
        terminal.until("Thinking of it.")
        terminal.type("one\r" + PASTE.format("two\rlines") + "\r/exit\r")
        assert terminal.ended() == 0
    said = [body["messages"][-1]["content"] for body in stand_in.asked]
    assert said == ["pause", "one", "two\nlines"]


@pytest.mark.slow
def test_history_stays_between_sessions_unless_it_is_not_to(in_terminal, stand_in, tmp_path):
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        terminal.type("remember me\r")
        terminal.prompted()
        terminal.type(" a secret\r")
        terminal.prompted()
        terminal.type("/exit\r")
        assert terminal.ended() == 0
    kept = tmp_path / "cache" / "gptoss-tune" / "chat_history.jsonl"
    assert kept.read_text() == '"remember me"\n"/exit"\n'
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        terminal.type("\x1b[A\x1b[A\r")
        terminal.until("You said: remember me")
    before = kept.read_bytes()
    for arguments, environment in ((["--no-history"], {}), ([], {"GPTOSS_TUNE_NO_HISTORY": "1"})):
        with in_terminal(stand_in.url, *arguments, **environment) as terminal:
            terminal.prompted()
            terminal.type("forget me\r")
            terminal.until("You said: forget me")
            terminal.prompted()
            terminal.type("\x1b[A\x1b[A\x1b[A!\r")
            terminal.until("You said: forget me!")
    assert kept.read_bytes() == before


@pytest.mark.slow
def test_what_is_typed_before_ctrl_c_and_after_ctrl_z_is_kept_and_unseen(in_terminal, stand_in):
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        terminal.type("slow\r")
        terminal.until("word3 ")
        shell = termios.tcgetattr(terminal.main)
        terminal.process.send_signal(signal.SIGSTOP)
        shell[3] |= termios.ECHO | termios.ICANON  # as a shell sets it
        termios.tcsetattr(terminal.main, termios.TCSANOW, shell)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until("word20 ")
        assert not termios.tcgetattr(terminal.main)[3] & termios.ECHO
        terminal.type("typed ahead")
        terminal.until("word40 ")
        terminal.type("\x03")
        assert "typed" not in terminal.until("[stopped by Ctrl-C]")
        terminal.prompted()
        terminal.type("!\r")
        terminal.until("You said: typed ahead!")


@pytest.mark.slow
def test_a_busy_server_is_waited_for_aloud_and_ctrl_c_takes_the_question_back(
    in_terminal, stand_in
):
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        stand_in.busy, stand_in.after = 1, "50"
        terminal.type("Hi\r")
        terminal.until("waiting: the server answers HTTP 503; it is asked again every 50 s")
        terminal.until("minutes; Ctrl-C")
        terminal.type("\x03")
        terminal.until("[stopped by Ctrl-C; the question is taken back]")
        terminal.prompted()
        terminal.type("/retry\r")
        terminal.until("You said: Hi")


def chat_with(stand_in, words, **more):
    command = [sys.executable, "-c", MAIN, "chat", stand_in.url, *words]
    return subprocess.run(command, capture_output=True, timeout=60, **more)


def test_a_line_of_a_pipe_that_is_no_utf_8_is_refused_with_its_number(stand_in):
    done = chat_with(stand_in, [], input=b"one\n\ncaf\xe9\n")
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"line 3 of the standard input is no UTF-8 (byte 0xe9 at 4)" in done.stderr
    assert [body["messages"][-1]["content"] for body in stand_in.asked] == ["one"]


def test_a_closed_standard_input_is_one_sentence(stand_in):
    def close():
        os.close(0)

    done = chat_with(stand_in, [], preexec_fn=close)
    assert done.returncode == 3 and b"Traceback" not in done.stderr
    assert b"the standard input is closed" in done.stderr
    done = chat_with(stand_in, ["--prompt", "Hi"], preexec_fn=close)
    assert done.returncode == 0 and b"You said: Hi" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor(in_terminal, stand_in, kind):
    with in_terminal(stand_in.url, TERM=kind) as terminal:
        terminal.prompted()
        terminal.type("one\ntwo\n")
        terminal.until("You said: one")
        terminal.prompted()
        terminal.type("slow\n")
        terminal.until("word3 ")
        terminal.type("\x03")
        terminal.until("[stopped by Ctrl-C]")
        terminal.prompted()
        terminal.type("/help\n")
        terminal.until("a last one without Enter is the next")
        terminal.prompted()
        terminal.type("three\nfour")  # a paste that ends in the middle of a line
        terminal.until("You said: three")
        terminal.prompted()
        terminal.type("\n")
        terminal.until("You said: four")
        terminal.prompted()
        terminal.type("\x03")
        terminal.until("Ctrl-C once more")
        terminal.prompted()
        terminal.type("/exit\n")
        assert terminal.ended() == 0
    assert "\x1b" not in terminal.raw
    assert stand_in.asked[0]["messages"][-1]["content"] == "one\ntwo"


@pytest.mark.slow
def test_no_colour_where_none_is_wanted(in_terminal, stand_in):
    with in_terminal(stand_in.url, NO_COLOR="1") as terminal:
        terminal.prompted()
        terminal.type("long\r")
        terminal.until("[cut by the server after 30")
        terminal.prompted()
    colours = re.compile(r"\x1b\[[0-9;]*\b(3[0-8]|4[0-8]|9[0-7])[0-9;]*m")
    assert not colours.search(terminal.raw), colours.search(terminal.raw)


@pytest.mark.slow
def test_a_history_that_cannot_be_kept_is_said_once(in_terminal, stand_in, tmp_path):
    (tmp_path / "file").write_text("")
    with in_terminal(stand_in.url, XDG_CACHE_HOME=str(tmp_path / "file")) as terminal:
        terminal.until("what is typed is not kept")
        terminal.prompted()
        terminal.type("Hi\r")
        terminal.until("You said: Hi")
        terminal.prompted()
    assert terminal.text.count("not kept") == 1


def test_an_end_from_outside_gives_the_keys_back(in_terminal, stand_in):
    with in_terminal(stand_in.url) as terminal:
        terminal.prompted()
        terminal.type("slow\r")
        terminal.until("word3 ")
        assert not termios.tcgetattr(terminal.main)[3] & termios.ECHO
        terminal.process.terminate()
        assert terminal.process.wait(30) == 143
        time.sleep(0.1)
        assert termios.tcgetattr(terminal.main)[3] & termios.ECHO


# A model that says what the test gives it, a token at a time; the libraries' words come between.
SCRIPT = """
import time
import gptoss_tune.cli.chat.subjects as subjects
from gptoss_tune.harmony.vocabulary import load_vocabulary

def stream(model, prompt, sampling, should_stop):
    encoding = load_vocabulary().encoding
    asked = encoding.decode(prompt).split("<|message|>")[-1].split("<|end|>")[0]
    begun = encoding.decode(prompt).rpartition("<|start|>assistant")[2]
    said = "<|channel|>analysis<|message|>Let me count.<|end|><|start|>assistant"
    said += "<|channel|>final<|message|>" + "one two three " * 40 + "<|return|>"
    ids = encoding.encode(said, allowed_special="all")
    for token in ids[len(encoding.encode(begun, allowed_special="all")):][:sampling.max_new_tokens]:
        noise()
        time.sleep(0.05)
        yield token

opened = subjects.open_subject

def open_subject(*arguments):  # torch is imported by the command, not before it
    subject = opened(*arguments)
    import gptoss_tune.evaluate.conversation as module
    module.stream_tokens = stream
    return subject

subjects.open_subject = open_subject
"""
NOISE_OF_LIBRARIES = """
import ctypes, logging, os, sys, warnings

def noise():
    print("NOISE by print")
    warnings.warn("NOISE of Python", UserWarning)
    logging.getLogger("transformers").error("NOISE of a logger")
    os.write(2, b"NOISE of descriptor 2\\n")
    ctypes.CDLL(None).puts(b"NOISE that C has buffered")
"""


@pytest.mark.slow
def test_a_conversation_with_a_model_in_a_terminal(in_terminal, merged):
    code = NOISE_OF_LIBRARIES + SCRIPT + MAIN
    with in_terminal(merged, "--max-new-tokens", "20", code=code) as terminal:
        terminal._until(re.compile(r"reasoning\s+effort\s+medium,\s+the\s+usual"), 90)
        terminal.prompted()
        terminal.type("Count.\r")
        terminal.until("[analysis] Let me count.")
        terminal.until("[final] one")
        terminal.until("[cut after 20 tokens, thoughts included; /continue goes on")
        terminal.prompted()
        terminal.type("/max-new-tokens 500\r/continue\r")
        terminal.until("[final]")
        terminal.until("three one two three")
        terminal.type("\x03")
        terminal.until("[stopped by Ctrl-C; /continue goes on]")
        terminal.prompted()
        terminal.type("/tokens\r")
        whole = terminal.until("below --max-new-tokens 500")
        assert re.search(r"conversation  \d+ tokens, of 131,072; beside an answer", whole)
        assert re.search("analysis 4, final [0-9]+, headers and ends [0-9]", terminal.prompted())
        terminal.type("/reset\r")
        terminal.until("a new conversation; 1 question is forgotten")
        terminal.prompted()
        terminal.type("exit\r")
        assert terminal.ended() == 0
    assert "NOISE" not in terminal.raw and "gemm_4bit" not in terminal.raw
    assert "Warning" not in terminal.raw


@pytest.fixture(scope="session")
def gguf(base, adapter, tmp_path_factory):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from gptoss_tune.workflows.finished_run import merge

    out = tmp_path_factory.mktemp("chat") / "gguf"
    return merge([adapter], out, format="gguf", base=base, accept_loss=True).folder


@pytest.mark.slow
def test_a_conversation_with_a_gguf_file_in_a_terminal(in_terminal, gguf):
    options = ["--temperature", "0", "--max-new-tokens", "6", "--context", "9000"]
    with in_terminal(gguf, *options) as terminal:
        terminal._until(re.compile(r"llama\.cpp,\s[^;]*context\s+9,000\s+tokens;\s+reasoning"), 90)
        terminal.prompted()
        terminal.type("Hi\r")
        terminal.until("[cut after 6 tokens, thoughts included; /continue goes on")
        terminal.prompted()
        terminal.type("/max-new-tokens 6000\r")
        terminal.prompted()
        terminal.type("/continue\r")
        terminal.until("/continue")
        time.sleep(2)
        terminal.type("\x03")
        terminal.until("[stopped by Ctrl-C; /continue goes on]")
        terminal.prompted()
        terminal.type("/tokens\r")
        terminal.until("of 9,000; beside an answer")
        terminal.prompted()
        terminal.type("/retry\r")
        terminal.until("/retry")
        time.sleep(2)
        terminal.type("\x03")
        terminal.until("[stopped by Ctrl-C")
        terminal.prompted()
        terminal.type("\x04")
        assert terminal.ended() == 0
    assert "llama_" not in terminal.raw and "ggml" not in terminal.raw
