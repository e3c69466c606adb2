"""Which system calls the code may make: a seccomp filter (BPF) for x86_64 and aarch64.

A call that the tables do not name does not exist for the code (``ENOSYS``, which libraries take
as an older kernel), one that is refused on purpose says so (``EPERM``). The rejected alternative, a
list of what is forbidden, lets through whatever the next kernel brings.

What the list does not show at first sight:

- No sockets of any kind, no other process's memory, no namespaces, no io_uring (whose operations a
  filter does not see), no anonymous files (memory that no limit counts).
- Landlock does not hold back ``chmod``, ``chown``, ``utime`` and extended attributes, on files of
  others too; so they are refused everywhere, in the own folder as well.
- ``fcntl`` sets no owner and no signal of a descriptor: the kernel would send it to any process.
- ``prctl`` names a thread and no more: the signal that comes when the supervisor dies stays set.
- ``openat`` with ``O_TRUNC`` but for reading cuts a file that cannot be written (Landlock before
  its third version).
- ``clone`` makes threads; processes only where they are allowed. ``clone3`` hides its flags behind
  a pointer and is unknown, so that the C library takes ``clone``.

The filter stays with every thread and process that comes out of it.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

AUDIT_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_WRITES, _TRUNCATES = 0o3 | 0o100 | 0o1000, 0o1000
"""Flags of open: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC."""
_FCNTL: Final = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ."""
_IOCTL: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_PRCTL: Final = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (names of memory, which the interpreter may give)."""

Numbers = dict[str, tuple[int | None, int | None]]


def _table(text: str) -> Numbers:
    """Return name -> (number on x86_64, number on aarch64) of ``name:number:number`` entries."""

    def number(digits: str) -> int | None:
        return None if digits == "-" else int(digits)

    entries = (entry.split(":") for entry in text.split())
    return {name: (number(intel), number(arm)) for name, intel, arm in entries}


ALLOWED: Final = _table(
    "read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 "
    "pwritev:296:70 close:3:57 close_range:436:436 fstat:5:80 stat:4:- lstat:6:- "
    "newfstatat:262:79 statx:332:291 lseek:8:62 access:21:- faccessat:269:48 faccessat2:439:439 "
    "dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 readlink:89:- readlinkat:267:78 "
    "getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 umask:95:166 flock:73:32 "
    "fsync:74:82 fdatasync:75:83 sendfile:40:71 copy_file_range:326:285 mmap:9:222 "
    "munmap:11:215 mremap:25:216 mprotect:10:226 brk:12:214 madvise:28:233 msync:26:227 "
    "mincore:27:232 futex:202:98 set_robust_list:273:99 get_robust_list:274:100 "
    "set_tid_address:218:96 rseq:334:293 membarrier:324:283 sched_yield:24:124 "
    "sched_getaffinity:204:123 gettid:186:178 exit:60:93 exit_group:231:94 arch_prctl:158:- "
    "restart_syscall:219:128 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 "
    "rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 "
    "pause:34:- alarm:37:- setitimer:38:103 getitimer:36:102 eventfd2:290:19 "
    "epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 select:23:- "
    "pselect6:270:72 poll:7:- ppoll:271:73 clock_gettime:228:113 clock_getres:229:114 "
    "clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169 time:201:- times:100:153 "
    "getrusage:98:165 sysinfo:99:179 uname:63:160 getpid:39:172 getppid:110:173 getuid:102:174 "
    "geteuid:107:175 getgid:104:176 getegid:108:177 getpgrp:111:- getpgid:121:155 "
    "getsid:124:156 getgroups:115:158 getresuid:118:148 getresgid:120:150 getrandom:318:278 "
    "getrlimit:97:163 wait4:61:260 waitid:247:95"
)
"""What works on the code's own memory, files, threads and clock."""

WRITING: Final = _table(
    "ftruncate:77:46 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 "
    "rename:82:- renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:- "
    "symlinkat:266:36"
)
"""What changes files and folders."""

CONDITIONAL: Final = _table(
    "open:2:- openat:257:56 fcntl:72:25 ioctl:16:29 kill:62:129 tgkill:234:131 prctl:157:167 "
    "prlimit64:302:261 clone:56:220"
)
"""What depends on arguments."""

STARTING: Final = _table(
    "fork:57:- vfork:58:- execve:59:221 execveat:322:281 setsid:112:157 setpgid:109:154"
)
"""What starts processes and sets them apart."""

REFUSED: Final = _table(
    "socket:41:198 socketpair:53:199 connect:42:203 bind:49:200 listen:50:201 accept:43:202 "
    "accept4:288:242 sendto:44:206 sendmsg:46:211 sendmmsg:307:269 recvfrom:45:207 "
    "recvmsg:47:212 recvmmsg:299:243 ptrace:101:117 process_vm_readv:310:270 "
    "process_vm_writev:311:271 pidfd_open:434:434 pidfd_getfd:438:438 pidfd_send_signal:424:424 "
    "tkill:200:130 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 mount:165:40 "
    "umount2:166:39 pivot_root:155:41 chroot:161:51 unshare:272:97 setns:308:268 "
    "io_uring_setup:425:425 io_uring_enter:426:426 io_uring_register:427:427 bpf:321:280 "
    "keyctl:250:219 add_key:248:217 request_key:249:218 perf_event_open:298:241 "
    "userfaultfd:323:282 memfd_create:319:279 memfd_secret:447:447 chmod:90:- fchmod:91:52 "
    "fchmodat:268:53 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54 setxattr:188:5 "
    "lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14 utimensat:280:88 utime:132:- "
    "utimes:235:- futimesat:261:- truncate:76:45 fallocate:285:47 creat:85:- mknod:133:- "
    "mknodat:259:33 shmget:29:194 shmat:30:196 msgget:68:186 semget:64:190 mq_open:240:180 "
    "setrlimit:160:164 setuid:105:146 setgid:106:144 setresuid:117:147 setresgid:119:149 "
    "setpriority:141:140 sched_setaffinity:203:122 kcmp:312:272 name_to_handle_at:303:264 "
    "open_by_handle_at:304:265 process_madvise:440:440 seccomp:317:277 "
    "landlock_restrict_self:446:446 inotify_init1:294:26 fanotify_init:300:262 vmsplice:278:75 "
    "splice:275:76 tee:276:77 quotactl:179:60 reboot:169:142 init_module:175:105 "
    "finit_module:313:273 kexec_load:246:104 swapon:167:224 personality:135:92 "
    "sethostname:170:161 settimeofday:164:170 clock_settime:227:112 acct:163:89 syslog:103:116 "
    "modify_ldt:154:- ioperm:173:- iopl:172:-"
)
"""What is refused by name; whatever is in no table is unknown."""


Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""


def program(
    machine: str, *, pid: int, writing: bool, processes: bool, signals: bool
) -> list[Instruction]:
    """Return the filter's instructions.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        pid: Of the process that will run under it; the only one that it may send signals.
        writing: Whether files may be created and written; Landlock says where.
        processes: Whether processes may be started.
        signals: Whether signals go to any process (Landlock keeps them among its own).
    """
    column = list(AUDIT_ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]

    def when(name: str, body: list[Instruction]) -> None:
        number = {**ALLOWED, **WRITING, **CONDITIONAL, **STARTING, **REFUSED}[name][column]
        if number is not None:
            code.extend([(_EQUAL, 0, len(body), number), *body])

    for name in ALLOWED:
        when(name, [_returns(_ALLOW)])
    for name in WRITING:
        when(name, [_returns(_ALLOW if writing else _refusal(errno.EPERM))])
    for name in STARTING:
        when(name, [_returns(_ALLOW if processes else _refusal(errno.EPERM))])
    for name in REFUSED:
        when(name, [_returns(_refusal(errno.EPERM))])
    when("open", _opens(1, writing))
    when("openat", _opens(2, writing))
    when("fcntl", _one_of(1, _FCNTL))
    when("ioctl", _one_of(1, _IOCTL))
    when("prctl", _one_of(0, _PRCTL))
    for name in ("kill", "tgkill"):
        when(name, [_returns(_ALLOW)] if signals else _one_of(0, (pid,)))
    # A null pointer for the new limit, both halves of it: reading alone.
    when("prlimit64", [_argument(2), *_unless_zero(), _argument(2, 4), *_unless_zero(), _allow()])
    when("clone", _clones(processes))
    code.append(_returns(_refusal(errno.ENOSYS)))
    return code


def packed(code: list[Instruction]) -> bytes:
    """Return instructions as the kernel's array of ``struct sock_filter``."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _returns(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _allow() -> Instruction:
    return _returns(_ALLOW)


def _refusal(number: int) -> int:
    return _ERRNO | number


def _argument(index: int, half: int = 0) -> Instruction:
    """Load the lower half of an argument, or the upper with 4; both machines are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index + half)


def _unless_zero() -> list[Instruction]:
    return [(_EQUAL, 1, 0, 0), _returns(_refusal(errno.EPERM))]


def _one_of(index: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [part for value in values for part in ((_EQUAL, 0, 1, value), _allow())]
    return [_argument(index), *tests, _returns(_refusal(errno.EPERM))]


def _opens(index: int, writing: bool) -> list[Instruction]:
    """Refuse to cut what is opened for reading; without ``writing`` every flag that changes it."""
    mask, wanted = (_TRUNCATES | 0o3, _TRUNCATES) if writing else (_WRITES, 0)
    found, other = _refusal(errno.EPERM), _ALLOW
    if not writing:
        found, other = other, found
    return [
        _argument(index),
        (_AND, 0, 0, mask),
        (_EQUAL, 0, 1, wanted),
        _returns(found),
        _returns(other),
    ]


def _clones(processes: bool) -> list[Instruction]:
    namespaces = [_argument(0), (_AND, 0, 0, _CLONE_NAMESPACES), *_unless_zero()]
    if processes:
        return [*namespaces, _allow()]
    threads = [_argument(0), (_AND, 0, 0, _CLONE_THREAD), (_EQUAL, 0, 1, _CLONE_THREAD), _allow()]
    return [*namespaces, *threads, _returns(_refusal(errno.EPERM))]
