"""gpt-oss's built-in tool: cells in the sandbox that find what the cells before have defined."""

import pytest

from gptoss_tune.environments.python_tool import MOST_SHOWN, PythonTool
from gptoss_tune.grading.code.protection import protection

pytestmark = pytest.mark.skipif(not protection().sufficient, reason="; ".join(protection().lines()))


@pytest.fixture(scope="module")
def run():
    """Return a function that runs the cells of one episode and gives what each showed."""

    def cells(*codes, seconds=10.0):
        tool = PythonTool(seconds)
        return [tool.run(code) for code in codes]

    return cells


def test_cells_share_names_and_show_only_their_own_output(run):
    shown = run(
        "import math\nx = 6\nprint('first')\nx",
        "def f(n):\n    return n * 7\nprint(f(x))\nmath.floor(2.5)",
        "1 / 0",
        "y = f(1); undefined",
        "print(y)",
    )
    assert shown[0] == "first\n6"
    assert shown[1] == "42\n2"
    assert "ZeroDivisionError: division by zero" in shown[2]
    assert "NameError" in shown[3] and "supervisor" not in shown[3]
    # What a cell had defined before its error is there.
    assert shown[4] == "7"


def test_cells_before_write_nothing_past_python_and_their_handlers_are_heard(run):
    shown = run(
        "import logging, os\nlogging.basicConfig(level='INFO')\nos.write(1, b'once\\n');",
        "logging.info('told')",
    )
    assert "once" in shown[0] and shown[1] == "INFO:root:told"


def test_a_cell_that_says_nothing_does_not_parse_ends_or_floods(run):
    shown = run(
        "x = 1",
        "def broken(:",
        "import sys; sys.exit(3)",
        "import os; os._exit(0)",
        f"print('a' * {4 * MOST_SHOWN})",
        "print(x)",
    )
    assert shown[0].startswith("(no output")
    assert "SyntaxError" in shown[1]
    assert "SystemExit: 3" in shown[2]
    assert "ended with code 0; this cell is not kept" in shown[3]
    assert len(shown[4]) < MOST_SHOWN + 100 and "characters left out" in shown[4]
    assert shown[5] == "1"


def test_a_cell_without_end_costs_its_time_and_is_not_repeated(run):
    shown = run("x = 1", "while True: pass", "print(x)", seconds=3.0)
    assert "timed out after 1.5 seconds" in shown[1]
    assert shown[2] == "1"


def test_the_network_and_files_of_others_are_denied(run):
    shown = run(
        "import socket\nsocket.socket()",
        "open('/etc/passwd').read()",
        "open('own.txt', 'w').write('kept')\nopen('own.txt').read()",
    )
    assert "Error" in shown[0] and "Error" in shown[1]
    assert shown[2] == "'kept'"
