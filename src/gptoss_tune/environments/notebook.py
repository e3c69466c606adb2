"""The cells of a notebook as one program: those before run silently, the last one is heard.

gpt-oss is told that its code runs in a stateful notebook, so a name of one call is there in the
next. The sandbox keeps no process, on purpose: nothing of a model's outlives its run. So the cells
before are run again in front of the new one, what they print thrown away. A process that waits
between calls was the alternative: one for each of a hundred episodes, in the sandbox's memory, and
gone with the machine's next restart. Repeating costs the time of the cells before, and what they
draw without a seed is drawn anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

_NOTEBOOK: Final = """
import ast, json, os, sys, traceback
cells = json.loads({cells!r})
space = {{"__name__": "__main__", "__builtins__": __builtins__}}
def run(number, source, shown):
    tree = ast.parse(source, f"<cell {{number}}>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"<cell {{number}}>", "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"<cell {{number}}>", "eval"), space)
        if shown and value is not None:
            print(repr(value))
heard, silent = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
os.dup2(silent, 1), os.dup2(silent, 2)
for number, source in enumerate(cells[:-1], 1):
    try:
        run(number, source, False)
    except BaseException:
        pass
sys.stdout.flush(), sys.stderr.flush()
os.dup2(heard[0], 1), os.dup2(heard[1], 2)
for number in (*heard, silent):
    os.close(number)
try:
    run(len(cells), cells[-1], True)
except BaseException as error:
    sys.stdout.flush()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith("<cell ")]
    lines = ["Traceback (most recent call last):\\n"] if own else []
    lines += traceback.format_list(own) + traceback.format_exception_only(error)
    sys.stderr.write("".join(lines))
sys.exit({reached})
"""
REACHED: Final = 64
"""Exit code of a program whose last cell came to its end, by an error too."""


def notebook(cells: Sequence[str]) -> str:
    """Return a program that runs cells in one name space and shows what the last one gives.

    It prints what the last cell prints, then the value of its last expression unless that is
    ``None``; an error's traceback, that of ``sys.exit`` too, goes to standard error. Errors of the
    cells before are passed over: what they had defined until then is there, as in a notebook. It
    ends with the exit code ``REACHED``, unless a cell ends its process.
    """
    return _NOTEBOOK.format(cells=json.dumps(list(cells)), reached=REACHED)
