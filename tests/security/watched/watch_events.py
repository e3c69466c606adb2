"""Which of the interpreter's audit events matter: network, programs, writes, imports, pickles."""

import os
import threading

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NETWORK = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
    "socket.bind", "socket.sendto", "urllib.Request", "http.client.connect", "ftplib.connect",
    "smtplib.connect",
)  # fmt: skip
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
PATHS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
         "os.chmod", "shutil.rmtree", "shutil.copyfile", "shutil.move")  # fmt: skip

handling = threading.local()


def told(argument):
    if isinstance(argument, bytes):
        return argument.decode(errors="replace")
    return argument if isinstance(argument, str | int | float | type(None)) else str(argument)


def kind_of(event, arguments):
    """Return the kind of an event that matters and its telling arguments, else None."""
    if event in NETWORK:
        first_is_socket = event in ("socket.connect", "socket.bind", "socket.sendto")
        return "network", arguments[1:] if first_is_socket else arguments
    if event in PROGRAMS:
        return "program", arguments
    if event in PATHS:
        return "write", arguments
    if event == "open":
        path, _, flags = arguments
        writing = isinstance(flags, int) and flags & WRITES and not isinstance(path, int)
        return ("write", (path,)) if writing else None
    if event == "import" and arguments[1]:
        return "import", arguments[:2]
    return ("pickle", arguments) if event == "pickle.find_class" else None


def watcher(report):
    """Return an audit hook that calls ``report(kind, event, arguments)``, never from inside it."""

    def watch(event, arguments):
        if getattr(handling, "now", False):
            return
        handling.now = True
        try:
            found = kind_of(event, arguments)
            if found:
                report(found[0], event, [told(argument) for argument in found[1]])
        finally:
            handling.now = False

    return watch
