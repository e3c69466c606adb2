"""A process that reports what it connects to, runs, writes and imports: run by test_audit.py.

``python audited.py REPORT JSON``: each entry of the JSON list is a command line of gptoss-tune,
``["train", ...]``; all run in this one process, because importing the libraries takes longer than
what they do. The report has one line for each event, with the command it happened in.
"""

import json
import os
import sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NETWORK = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
    "socket.bind", "socket.sendto", "urllib.Request", "http.client.connect", "ftplib.connect",
    "smtplib.connect",
)  # fmt: skip
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
PATHS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
         "os.chmod", "shutil.rmtree", "shutil.copyfile", "shutil.move")  # fmt: skip

events = []
current = ["import"]
busy = []


def told(argument):
    if isinstance(argument, bytes):
        return argument.decode(errors="replace")
    return argument if isinstance(argument, str | int | float | type(None)) else str(argument)


def watch(event, arguments):
    if busy:
        return
    busy.append(event)
    try:
        kind = None
        if event in NETWORK:
            kind = "network"
            if event.startswith("socket.") and event not in ("socket.getaddrinfo",):
                arguments = arguments[1:]
        elif event in PROGRAMS:
            kind = "program"
        elif event in PATHS:
            kind = "write"
        elif event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and flags & WRITES
            kind = "write" if writing and not isinstance(path, int) else None
            arguments = (path,)
        elif event == "import" and arguments[1]:
            kind = "import"
            arguments = arguments[:2]
        elif event in ("pickle.find_class", "marshal.loads"):
            kind = "pickle" if event == "pickle.find_class" else None
        if kind:
            events.append([current[0], kind, event, [told(a) for a in arguments]])
    finally:
        busy.clear()


def main():
    report, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.addaudithook(watch)
    from gptoss_tune.cli import main as cli

    codes = []
    for command in commands:
        current[0] = command[0]
        sys.argv = ["gptoss-tune", *command]
        try:
            cli()
            codes.append(0)
        except SystemExit as ended:
            codes.append(ended.code or 0)
    current[0] = "report"
    busy.append("report")
    report.write_text(json.dumps({"codes": codes, "events": events}))


main()
