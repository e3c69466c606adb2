"""A process that reports what it connects to, runs, writes and imports: run by test_audit.py.

``python audited.py REPORT JSON``: each entry of the JSON list is a command line of gptoss-tune,
``["train", ...]``; all run in this one process, because importing the libraries takes longer than
what they do. The report has one line for each event, with the command it happened in.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "watched"))
from watch_events import handling, watcher

events = []
current = ["import"]


def main():
    report, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.addaudithook(watcher(lambda *event: events.append([current[0], *event])))
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
    handling.now = True
    report.write_text(json.dumps({"codes": codes, "events": events}))


main()
