"""Code that does not solve its task and wants to pass all the same.

Each forgery is shown to fool the plain way to test code (one process runs the code, then the tests,
and its exit code is the verdict), and is judged wrong here.
"""

import json
import textwrap
import time

import pytest

from gptoss_tune.grading.code.sandbox import Job, Limits, PythonTests, run

TASK = "assert f(3) == 9\nassert f(4) == 16\n"

# Name -> the tests, and code that passes them by a trick.
FORGERIES = {
    "says that it passed and leaves": (
        TASK,
        """
        import os
        print("OK, 2 passed", flush=True)
        os._exit(0)
        """,
    ),
    "leaves by SystemExit": (
        TASK,
        """
        import sys
        sys.exit(0)
        """,
    ),
    "leaves when it is called": (
        TASK,
        """
        def f(x):
            raise SystemExit(0)
        """,
    ),
    "gives what is equal to everything": (
        TASK,
        """
        class Any:
            def __eq__(self, other):
                return True
        def f(x):
            return Any()
        """,
    ),
    "gives a number that is equal to everything": (
        TASK,
        """
        class Any(int):
            def __eq__(self, other):
                return True
            __hash__ = int.__hash__
        def f(x):
            return Any(0)
        """,
    ),
    "gives a list whose items are equal to everything": (
        "assert f(3) == [9]\n",
        """
        class Any(str):
            __eq__ = lambda self, other: True
            __hash__ = None
        def f(x):
            return [Any("x")]
        """,
    ),
    "replaces the hook that ends in failure": (
        TASK,
        """
        import os, sys
        sys.excepthook = lambda *_: os._exit(0)
        f = lambda x: 0
        """,
    ),
    "leaves well at exit": (
        TASK,
        """
        import atexit, os
        atexit.register(os._exit, 0)
        f = lambda x: 0
        """,
    ),
    "watches by settrace for the exception": (
        TASK,
        """
        import os, sys
        def watch(frame, event, argument):
            if event == "exception":
                os._exit(0)
            return watch
        sys.settrace(watch)
        sys._getframe().f_trace = watch
        f = lambda x: 0
        """,
    ),
    "leaves by a signal's handler": (
        "import time\nassert f(3) == 9 or time.sleep(3)\nassert False\n",
        """
        import os, signal
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        f = lambda x: 0
        """,
    ),
    "reads the expected number out of its caller's code": (
        "assert f(3) == 9\n",
        """
        import sys
        def f(x):
            return [c for c in sys._getframe(1).f_code.co_consts if c == 9][0]
        """,
    ),
    "finds the tests among all objects": (
        "expected = {'marker-of-the-tests': 9}\nassert f(3) == expected['marker-of-the-tests']\n",
        """
        import gc, sys
        def f(x):
            frame = sys._getframe()
            while frame is not None:
                if "expected" in frame.f_globals:
                    return frame.f_globals["expected"]["marker-of-the-tests"]
                frame = frame.f_back
            found = [o for o in gc.get_objects() if type(o) is dict and "marker-of-the-tests" in o]
            return found[0]["marker-of-the-tests"]
        """,
    ),
    "changes what is expected in its caller's frame": (
        "expected = [9]\nassert f(3) == expected\n",
        """
        import sys
        def f(x):
            sys._getframe(1).f_globals["expected"][:] = [0]
            return [0]
        """,
    ),
    "replaces a builtin": (
        "assert all(f(x) == x * x for x in (3, 4))\n",
        """
        import builtins
        builtins.all = lambda items: True
        f = lambda x: 0
        """,
    ),
    "defines a builtin of its own": (
        "assert abs(f(3) - 9.0) < 1e-6\n",
        """
        def abs(x):
            return 0
        f = lambda x: 0
        """,
    ),
    "replaces a function of a module": (
        "import math\nassert math.isclose(f(3), 9)\n",
        """
        import math
        math.isclose = lambda *_, **__: True
        f = lambda x: 0
        """,
    ),
    "replaces a module": (
        "import math\nassert math.isclose(f(3), 9)\n",
        """
        import sys, types
        sys.modules["math"] = types.SimpleNamespace(isclose=lambda *_: True)
        f = lambda x: 0
        """,
    ),
    "is the module that the tests forgot to import": (
        "assert math.isclose(f(3), 9)\n",
        """
        class math:
            isclose = staticmethod(lambda *_: True)
        f = lambda x: 0
        """,
    ),
    "replaces the methods of unittest": (
        "import unittest\n"
        "class Case(unittest.TestCase):\n"
        "    def test(self):\n"
        "        self.assertEqual(f(3), 9)\n"
        "if __name__ == '__main__':\n"
        "    unittest.main()\n",
        """
        import unittest
        unittest.TestCase.assertEqual = lambda *_: None
        f = lambda x: 0
        """,
    ),
    "ends a loop of the tests early": (
        "assert all(map(lambda x: f(x) == x * x, (3, 4)))\n",
        """
        def f(x):
            raise StopIteration
        """,
    ),
    "empties what it is given and what is expected with it": (
        "given = [3, 1, 2]\nassert f(given) == sorted(given)\n",
        """
        def f(items):
            items.clear()
            return []
        """,
    ),
    "goes on in another thread and leaves": (
        TASK,
        """
        import os, threading
        threading.Timer(0.05, os._exit, (0,)).start()
        def f(x):
            import time
            time.sleep(5)
        """,
    ),
    "calls itself passed by the name of the verdict": (
        TASK,
        """
        import os
        for number in range(1, 64):
            try:
                os.write(number, b'{"passed": true}\\n{"value": 9}\\n{"value": 16}\\n')
            except OSError:
                pass
        os._exit(0)
        """,
    ),
    "rewrites the tests' file": (
        TASK,
        """
        import sys, types
        code = compile("f = lambda x: x * x", "x", "exec")
        for frame in (sys._getframe(1),) if sys._getframe(1) else ():
            frame.f_globals["source"] = "pass"
        f = lambda x: 0
        import os, sys
        sys.excepthook = lambda *_: os._exit(0)
        """,
    ),
}

PLAIN = """
source = {source!r}
def run(source, names):
    exec(compile(source, "code.py", "exec"), names)
names = {{"__name__": "__main__"}}
run({code!r}, names)
run(source, names)
"""


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_wrong_and_would_fool_a_plain_test(name, plainly, verdict):
    tests, code = FORGERIES[name]
    code = textwrap.dedent(code)
    process = plainly(PLAIN.format(source=tests, code=code), stderr=-3)
    process.communicate(timeout=30)
    assert process.returncode == 0, "the plain way is not fooled, so this forgery shows nothing"
    found = verdict({"test": tests, "entry_point": "f", "timeout_s": 20}, f"```python\n{code}\n```")
    assert not found.passed, found
    assert found.note


def test_tests_that_are_passed_honestly_pass_all_the_same(verdict):
    code = "```python\ndef f(x):\n    return x * x\n```"
    for name, (tests, _) in FORGERIES.items():
        if "f(3) == [9]" in tests or "expected = [9]" in tests:
            right = "```python\ndef f(x):\n    return [x * x]\n```"
        elif "sorted(given)" in tests:
            right = "```python\ndef f(x):\n    return sorted(x)\n```"
        elif "assert False" in tests:
            continue
        else:
            right = code
        found = verdict({"test": tests, "entry_point": "f"}, right)
        assert found.passed, (name, found)


def test_a_helper_of_the_task_cannot_be_replaced(verdict):
    # HumanEval/32: the tests call a function that the prompt defines.
    row = {
        "prompt": 'def poly(x):\n    return x - 3\n\n\ndef root():\n    """Where is poly 0?"""\n',
        "entry_point": "root",
        "test": "def check(candidate):\n    assert abs(poly(candidate())) < 1e-6\n",
    }
    forged = "```python\ndef poly(x):\n    return 0\n\n\ndef root():\n    return 7\n```"
    assert not verdict(row, forged).passed
    assert verdict(row, "```python\ndef root():\n    return 3.0\n```").passed


def test_replies_that_are_nonsense_never_pass(verdict):
    row = {"test": "try:\n    f(3)\nexcept Exception:\n    pass\nassert True\n", "entry_point": "f"}
    nonsense = (
        '{"value": {"d": 1}}',
        '{"value": {"l": [{"x": []}]}}',
        '{"value": {"o": ["a", 2]}}',
        '{"raised": 7}',
        '{"raised": {"classes": ["os.system", 3], "text": null}}',
        "[1]",
        "not json",
        "[" * 100_000,
        "9" * 100_000,
        "x" * 3_000_000,
    )
    for reply in nonsense:
        code = (
            'import os, sys\nos.write(4, b\'{"names": ["f"]}\\n\')\n'
            f"os.write(4, {reply!r}.encode() + b'\\n')\n"
            "import time\ntime.sleep(0.5)\nos._exit(0)\n"
        )
        found = verdict(row, f"```python\n{code}```")
        assert not found.passed, (reply[:40], found)


CALLS = {"entry_point": "f", "function_cases": [{"args": [3], "expected": 9}]}


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("class A(int):\n    __eq__ = lambda s, o: True\n__eq__ = 1\nf = lambda x: A(1)", "gave 1"),
        ("class A:\n    __eq__ = lambda s, o: True\nf = lambda x: A()", "gave <A>"),
        ("import os\nf = lambda x: os._exit(0)", "ended"),
        ("f = lambda x: [0] * 10_000_000", "takes over"),
        ("def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a", "recursion"),
        ("f = lambda x: 10 ** 1_000_000", "gave"),
        ("f = lambda x: float('nan')", "gave nan"),
        ("f = lambda x: '9'", "gave '9'"),
        ("f = lambda x: (yield)", "gave <generator>"),
        (
            "import sys\nsys.setrecursionlimit(10**9)\n"
            "class A:\n    __repr__ = lambda s: repr([s])\nf = lambda x: repr(A())",
            "SIGSEGV",
        ),
        ("import ctypes\nf = lambda x: ctypes.string_at(0)", "SIGSEGV"),
        ("import os\nf = lambda x: os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os\nf = lambda x: os.close(4)", "exit code 1"),
        ("def f(x):\n    raise ValueError('\\x1b[2J' * 1000)", "\\x1b"),
    ],
)
def test_results_of_calls_are_data_of_bounded_size(code, note, verdict):
    found = verdict(CALLS, f"```python\n{code}\n```")
    assert not found.passed
    assert note in found.note and len(found.note) <= 300, found.note
    assert "\x1b" not in found.note


def test_hashes_that_collide_cost_the_grader_nothing(verdict):
    # Decoded into a set or a dictionary, numbers of one hash would take minutes of this process.
    for form, returns in (
        ("{'s': numbers}", "{1}"),
        ("{'d': [[n, 0] for n in numbers]}", "{3: 4}"),
    ):
        row = {"function_cases": [{"call": "f(1)", "returns": returns}]}
        code = (
            "import os, json\nnumbers = [i * (2**61 - 1) for i in range(60_000)]\n"
            f"lines = [{{'names': []}}, {{'value': {form}}}]\n"
            "data = ''.join(json.dumps(line) + chr(10) for line in lines).encode()\n"
            "while data:\n    data = data[os.write(4, data):]\n"
            "os._exit(0)\n"
        )
        started = time.process_time()
        found = verdict(row, f"```python\n{code}```")
        assert not found.passed and "gave a value of" in found.note, found
        assert time.process_time() - started < 10


def test_the_tests_never_enter_the_memory_of_the_code():
    # Without files held back it can search every byte of its own process, as a debugger would.
    code = """
    import re
    mark = b"-".join([b"marker", b"5711", b""])
    planted = mark + bytes([111, 119, 110])
    def f():
        found = set()
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if " rw" in line and end - start < 2**28:
                    memory.seek(start)
                    try:
                        data = memory.read(end - start)
                    except OSError:
                        continue
                    found |= {m[1].decode() for m in re.finditer(mark + b"([a-z]{3})", data)}
        return sorted(found)
    """
    tests = PythonTests("assert f() == ['own'], 'marker-5711-its'\n", entry_point="f")
    job = Job(textwrap.dedent(code), tests=tests, limits=Limits(timeout_s=30))
    outcome = run(job, without=("landlock", "seccomp"))
    found = json.loads(outcome.verdict)
    if "PermissionError" in json.dumps(found):
        pytest.skip("this user may not read the memory of a process that is not dumpable")
    assert found == {"passed": True}, found
