"""Run command lines one after another in this process: JSON in on standard input, JSON out.

Each as ``gptoss-tune`` would run it; how it ended, what it wrote and how long it took is reported.
"""

import contextlib
import io
import json
import sys
import time


def run(words):
    """Return exit code, output, errors and seconds of one command line."""
    from gptoss_tune.cli import main

    out, errors = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    for stream in (out, errors):
        stream.reconfigure(encoding=ENCODING, write_through=True)
    sys.argv = ["gptoss-tune", *words]
    started, code = time.monotonic(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
    read = [stream.buffer.getvalue().decode(ENCODING) for stream in (out, errors)]
    return {
        "words": words,
        "code": code,
        "out": read[0],
        "errors": read[1],
        "seconds": round(time.monotonic() - started, 2),
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    ENCODING = asked["encoding"]
    for name in asked.get("absent", ()):
        sys.modules[name] = None  # which no import finds
    ended = [run(words) for words in asked["commands"]]
    loaded = sorted({name.partition(".")[0] for name in sys.modules if sys.modules[name]})
    print(json.dumps({"ended": ended, "loaded": loaded}))
