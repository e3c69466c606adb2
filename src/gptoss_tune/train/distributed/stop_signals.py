"""The signals that stop a run: Ctrl-C, SIGTERM and their kin.

Apart from what happens then (``signals``, and ``entrypoint`` while libraries load), because that
has to be known before torch is imported.
"""

from __future__ import annotations

import signal

_ALWAYS = (signal.SIGINT, signal.SIGTERM)
_UNLESS_TAKEN = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a run: those that would end the process, Ctrl-C among them.

    A terminal that closes sends SIGHUP; schedulers warn with the others before they kill; of all
    these Windows has SIGBREAK alone. ``nohup`` has SIGHUP ignored, and a program around the run may
    listen to one itself: those are left alone.
    """
    known = [getattr(signal, name) for name in _UNLESS_TAKEN if hasattr(signal, name)]
    return (*_ALWAYS, *(one for one in known if signal.getsignal(one) == signal.SIG_DFL))
