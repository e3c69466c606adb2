"""Imported by every Python process whose PYTHONPATH names this folder: it tells what it does.

One file per process in ``$WATCHED``, one JSON line per event.
"""

import json
import os
import sys

from watch_events import watcher

folder, opened = os.environ["WATCHED"], {}


def report(kind, event, arguments):
    if kind == "import":
        return
    process = os.getpid()
    if process not in opened:  # a fork has its own
        path = os.path.join(folder, f"{process}.jsonl")
        opened[process] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = json.dumps([" ".join(sys.argv), kind, event, arguments])
    os.write(opened[process], f"{line}\n".encode())


sys.addaudithook(watcher(report))
