"""What is typed in a conversation: messages, commands, and what is neither."""

import io
import json
import signal
import stat
from contextlib import contextmanager, nullcontext

import pytest

from gptoss_tune.chat.saving import save_conversation
from gptoss_tune.chat.server import open_served
from gptoss_tune.chat.talk import Talk
from gptoss_tune.cli.chat.commands import COMMANDS, command_in, message_in
from gptoss_tune.cli.chat.history import KeptHistory, history_file
from gptoss_tune.cli.chat.screen import Screen
from gptoss_tune.cli.chat.session import Session
from gptoss_tune.cli.chat.terminal import one_interrupt
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.answering.sampling import Sampling
from gptoss_tune.evaluate.channels import ChannelReader
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.vocabulary import load_vocabulary


class Typist:
    """An editor in which lines are typed by the test; an exception is raised."""

    keys = (("some key", "does something"),)

    def __init__(self, *lines):
        self.lines = list(lines)

    def read(self):
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def waiting(self):
        return nullcontext()


@pytest.fixture
def typed(stand_in):
    """Return a function from typed lines to the conversation and the screen."""

    def run(*lines, **settings):
        talk = Talk(open_served(stand_in.url, None, None), Sampling(40, 0.0), **settings)
        out = io.StringIO()
        editor = Typist(*lines)
        Session(talk, Screen(out, out), None, editor).run(editor)
        talk.left = editor.lines
        return talk, out.getvalue()

    return run


def questions(talk):
    return [turn.question.text for turn in talk.turns]


@pytest.mark.parametrize("word", ["/exit", "exit", " /quit ", "quit", "/EXIT"])
def test_words_that_leave(typed, word):
    talk, _ = typed("hello", word, "never")
    assert questions(talk) == ["hello"] and talk.left == ["never"]


@pytest.mark.parametrize(
    "text", ["exit the loop", "/etc/hosts is what?", "/ etc", "a\n/exit", "/exit.now", "1/2"]
)
def test_messages_that_are_no_commands(typed, text):
    assert questions(typed(text)[0]) == [text]


def test_a_text_that_begins_with_a_slash(typed):
    assert questions(typed("//help me", "///x")[0]) == ["/help me", "//x"]
    assert command_in("//help") is None and message_in("/") == "/"


def test_an_unknown_command_is_said_and_not_sent(typed, stand_in):
    _, shown = typed("/efort low", "/exitnow", "/etc")
    assert "there is no /efort, and nothing was sent; did you mean /effort?" in shown
    assert "there is no /etc" in shown and not stand_in.asked


def test_help_names_every_command_and_the_keys(typed):
    _, shown = typed("/help")
    lines = shown.splitlines()
    assert lines[0] == "/exit or Ctrl-D leaves, /help lists more"
    for name, command in COMMANDS.items():
        assert any(line.startswith(f"/{name}") for line in lines) == command.is_listed
    assert any(line.startswith("some key  ") for line in lines)


def test_ctrl_c_twice_on_an_empty_line_leaves_and_once_does_not(typed):
    ctrl_c = KeyboardInterrupt()
    talk, shown = typed(ctrl_c, "hello", ctrl_c, "", ctrl_c, ctrl_c, "never")
    assert talk.left == ["never"] and questions(talk) == ["hello"]
    assert shown.count("Ctrl-C once more, /exit or Ctrl-D leaves") == 3


def test_undo_retry_and_reset(typed, stand_in):
    talk, shown = typed("one", "two", "/undo", "three", "/retry", instructions="Be brief.")
    assert questions(talk) == ["one", "three"] and "taken back: two" in shown
    assert [body["messages"][-1]["content"] for body in stand_in.asked] == [
        *("one", "two", "three", "three")
    ]
    assert len(stand_in.asked[-1]["messages"]) == 4, "the answer that was retried is not sent"
    talk, shown = typed("one", "/reset", "two", "/undo", "/undo", "/undo", instructions="Be brief.")
    assert talk.turns == [] and talk.instructions == "Be brief."
    assert "1 question is forgotten (the instructions stay)" in shown
    assert shown.count("error: nothing was said yet") == 2
    assert [m["content"] for m in stand_in.asked[-1]["messages"]] == ["Be brief.", "two"]


def test_an_error_takes_the_question_back_and_retry_asks_it(typed, stand_in):
    talk, shown = typed("one", "refuse", "/effort low", "/retry", "two")
    assert questions(talk) == ["one", "two"]
    assert shown.count("error: ") == shown.count("the question is taken back; /retry asks") == 2
    assert r"the answer is\x1b[2J no" in shown and "\x1b" not in shown
    assert [body["messages"][-1]["content"] for body in stand_in.asked[1:3]] == ["refuse"] * 2
    # Another answer that does not come leaves the one that is there.
    talk, _ = typed("one", "/nothing")
    stand_in.refused = "temperature"
    session = Session(talk, Screen(io.StringIO(), io.StringIO()), None, Typist())
    with pytest.raises(Exception, match="unknown field temperature"):
        COMMANDS["retry"].run(session, "")
    assert questions(talk) == ["one"]


def test_effort_instructions_and_length_hold_from_the_next_question_on(typed, stand_in):
    _, shown = typed(
        *("/effort", "/effort HIGH", "/effort", "/effort huge", "one"),
        *("/instructions", "/system Be\nbrief.", "/instructions", "two"),
        *(
            "/instructions none",
            "/max-new-tokens 7",
            "/max-new-tokens",
            "/max-new-tokens 0",
            "three",
        ),
    )
    one, two, three = stand_in.asked
    assert one["reasoning_effort"] == "high" and one["max_tokens"] == 40
    assert two["messages"][0] == {"role": "developer", "content": "Be\nbrief."}
    assert three["messages"][0]["role"] == "user" and three["max_tokens"] == 7
    assert "reasoning effort as the server has it\n" in shown and "effort high\n" in shown
    assert "'huge' is no effort; expected low, medium, high" in shown
    assert "no developer instructions" in shown and "'0' is no length; expected a number" in shown


def test_how_an_answer_ended(typed, stand_in):
    stand_in.came = 40
    _, shown = typed("long", "/continue", "tool", "/tokens x", "filtered")
    assert "[ended by the server: content_filter; the answer may not be whole]" in shown
    assert "[cut after 40 tokens, thoughts included; /max-new-tokens allows more, then" in shown
    assert "error: a server's chat API cannot continue an answer" in shown
    assert "[a call of a tool, which nothing here runs; /undo takes it back]" in shown
    assert "/tokens takes nothing behind it; got 'x'" in shown


def test_an_answer_that_the_server_cut_shorter_than_it_might_be(typed, stand_in):
    stand_in.came = 2
    _, shown = typed("long")
    assert "[cut by the server after 2 tokens, 40 were allowed: its own limit, or" in shown
    stand_in.counts = False
    _, shown = typed("long")
    assert "[cut by the server; where that is before 40 tokens, by its limit]" in shown


def test_a_command_runs_while_keys_wait(typed, stand_in, monkeypatch):
    waits = []

    @contextmanager
    def waiting(_):
        waits.append("begins")
        yield
        waits.append("ends")

    monkeypatch.setattr(Typist, "waiting", waiting)
    typed("/tokens")
    assert waits == ["begins", "ends"]


def test_each_form_of_a_conversation_is_a_row_of_its_own(typed, tmp_path):
    path = tmp_path / "rows.jsonl"
    _, shown = typed(
        *("/effort high", "one", "/effort low", "/system Be brief.", "two", "/effort high"),
        *("/system none", "three", "/effort medium", f"/save {path}"),
    )
    assert "saved as rows 1 to 2 of" in shown and "6, 5 messages; one row for each" in shown
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert (first["reasoning_effort"], second["reasoning_effort"]) == ("high", "low")

    def weights(row, place):
        read = read_chat(row, f"rows.jsonl:{place}")
        found = [(m.text, m.weight) for m in read.messages if m.header.channel == "final"]
        return read.instructions, found

    one, two, three = (f"You said: {word}" for word in ("one", "two", "three"))
    assert weights(first, 1) == (None, [(one, 1.0), (two, 0.0), (three, 1.0)])
    assert weights(second, 2) == ("Be brief.", [(one, 0.0), (two, 1.0)])


class Scripted:
    """An answerer in process whose answers are tokens of the test."""

    name, context = "scripted", 4096

    def __init__(self, *answers):
        self.answers = list(answers)

    def render(self, conversation):
        return []

    def stream(self, prompt, sampling, should_stop, begun=()):
        encoding = load_vocabulary().encoding
        ids = encoding.encode(self.answers.pop(0), allowed_special="all")
        return Tokens(ChannelReader(encoding), ids)


class Tokens:
    """The answer that some tokens are."""

    def __init__(self, reader, ids):
        self.reader, self.ids = reader, ids

    def __iter__(self):
        for token in self.ids:
            yield from self.reader.take(token)
        yield from self.reader.end()

    by_channel = property(lambda self: self.reader.by_channel)
    messages = property(lambda self: self.reader.messages())
    ended = property(lambda self: self.reader.ended())


def test_what_no_row_can_hold_is_left_out_and_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    said = "<|channel|>final<|message|>Yes.<|return|>"
    thought = "<|channel|>analysis<|message|>Hm"
    talk = Talk(Scripted("no harmony at all", said, "nor this<|return|>", thought))
    talk.ask("lost", print)
    with pytest.raises(DataError, match="no answer so far is one that a row can hold"):
        save_conversation(talk, path, "low")
    assert not path.exists()
    for question in ("kept", "lost too", "thought of"):
        talk.ask(question, print)
    told = save_conversation(talk, path, "low").describe()
    assert "row 1 of" in told and "3 messages; 1 thoughts without" in told
    assert "2 answers left the format" in told and "2 questions at the end" in told
    row = json.loads(path.read_text())
    assert [m["content"] for m in row["messages"]] == ["lost", "kept", "Yes."]
    assert read_chat(row, "rows.jsonl:1").effort == "low"


def test_a_file_of_a_user_that_is_not_there_ends_no_session(typed):
    talk, shown = typed("one", "/save ~nobody-of-this-name/x.jsonl", "two")
    assert "there is no such user's home" in shown and questions(talk) == ["one", "two"]


def test_a_saved_conversation_is_a_row_that_training_reads(typed, stand_in, tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    _, shown = typed(
        *("/save " + str(path), "/save", "one 北京", f"/save {path}"),
        *("/effort low", "long", f"/save {path}"),
        instructions="Be brief.",
    )
    assert "nothing was said yet, so there is nothing to save" in shown
    assert f"saved as row 1 of {path}: 3 messages\n" in shown
    assert "rows 2 to 3 of" in shown and "1 answers were cut off, look at them before" in shown
    first, _, last = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    read = read_chat(last, "rows.jsonl:3")
    assert read.effort == "low" and read.instructions == "Be brief."
    said = [(m.header.role, m.header.channel, m.text) for m in read.messages]
    assert said[:3] == [
        ("user", None, "one 北京"),
        ("assistant", "analysis", "Thinking of it."),
        ("assistant", "final", "You said: one 北京"),
    ]
    assert "reasoning_effort" not in first
    other = tmp_path / "notes.md"
    other.write_text("mine")
    _, shown = typed("one", f"/save {other}")
    assert "is there already and no .jsonl file" in shown and other.read_text() == "mine"


def test_history_is_its_users_alone_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = history_file()
    history = KeptHistory(path)
    assert path.parent.parent == tmp_path and history.trouble is None
    for text in ("one", " secret", "two\nlines", "key hf_" + "a" * 30, "北京"):
        history.append_string(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(KeptHistory(path).load_history_strings()) == ["北京", "two\nlines", "one"]
    path.chmod(0o644)
    assert KeptHistory(path).trouble is None and stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("a") as file:
        file.write("damaged\n3\n" + '"x"\n' * 2500)
    kept = list(KeptHistory(path).load_history_strings())
    assert kept == ["x"] * 1000 and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_that_cannot_be_written_is_said_and_kept_in_memory(tmp_path):
    (tmp_path / "file").write_text("")
    history = KeptHistory(tmp_path / "file" / "below" / "history.jsonl")
    assert "what is typed is not kept" in history.trouble and "Not a directory" in history.trouble
    history.append_string("one")
    assert history.get_strings() == ["one"]
    assert KeptHistory(None).trouble is None


def test_one_ctrl_c_of_many_ends_an_answer():
    with one_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
