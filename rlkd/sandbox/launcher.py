"""Builds the sandbox from the inside, checks it, and only then executes the program.

Run in a fresh, single-threaded interpreter (`python -I -S launcher.py FD`), with fast modules of the standard library
only. Three processes:

    outer     enters the new namespaces, waits for `init`, kills it on command or when the supervisor dies
    init      process 1 of the new process namespace: builds the file tree, drops every right, waits for the program.
              When it ends, the kernel kills whatever is left in the namespace.
    program   limits, seccomp filter, checks, execve

Reports to the status pipe: `stage NAME`, `failed NAME ERRNO TEXT`, `started`, `exit STATUS CPU_SECONDS`.
"""

# ruff: noqa: PTH102, PTH103, PTH115, PTH116, PTH120, PTH208, PTH211, SIM105

import _signal
import ctypes
import fcntl
import marshal
import os
import resource
import select
import sys

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_DUMPABLE, PR_GET_SECCOMP, PR_SET_SECCOMP = 1, 2, 4, 21, 22
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 23, 24, 28, 38, 39
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 47, 4, 41, 42
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 0x4000, 0x40000, 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_EMPTY_PATH = 1, 0o2000000, 4
OPEN_TREE, MOVE_MOUNT, CLOSE_RANGE, MOUNT_SETATTR = 428, 429, 436, 442
NUMBERS = {  # of calls that the C library does not wrap, or that the checks make directly
    "x86_64": {"pivot_root": 155, "capset": 126, "capget": 125, "ptrace": 101, "unshare": 272, "socket": 41},
    "aarch64": {"pivot_root": 41, "capset": 91, "capget": 90, "ptrace": 117, "unshare": 97, "socket": 198},
}
LOCKED_NO_ROOT = 0x2F  # SECBIT_NOROOT, NO_SETUID_FIXUP and KEEP_CAPS' lock: uid 0 means nothing
INSIDE = 1000  # uid and gid in the sandbox
NOBODY = 65534  # and outside of it, where root calls: limits on processes do not bind root
KEEP = 200  # descriptors that must survive are moved up to here

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NUMBER = NUMBERS.get(os.uname().machine, {})


class Refused(Exception):
    """A mechanism did not take effect."""


class StatusPipe:
    """The status pipe and the current stage."""

    def __init__(self, fd):
        self.fd, self.name = fd, "start"

    def stage(self, name):
        """Report the begin of a stage."""
        self.name = name
        self.write(f"stage {name}")

    def failed(self, error):
        """Report why the sandbox is unavailable, and end this process."""
        text = str(error).replace("\n", " ")
        self.write(f"failed {self.name.replace(' ', '_')} {getattr(error, 'errno', None) or 0} {text}")
        os._exit(1)

    def write(self, line):
        """Write one line in a single call."""
        os.write(self.fd, line.encode("utf-8", "replace")[:4000] + b"\n")


def call(name, *arguments):
    """Call a function of the C library; raises OSError."""
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def syscall(number, *arguments):
    """Make a system call by number; raises OSError."""
    # Explicit width: the upper half of a 64-bit register would otherwise keep old content.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option, *arguments):
    """Call prctl; raises OSError."""
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, 0, 0, 0, 0)[:4]]
    result = libc.prctl(option, *wide)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    return result


def demand(condition, text):
    """Raise `Refused` unless the condition holds."""
    if not condition:
        raise Refused(text)


def main():
    """The outer process."""
    source = int(sys.argv[1])
    os.lseek(source, 0, os.SEEK_SET)
    with os.fdopen(source, "rb") as file:
        job = marshal.load(file)
    status = StatusPipe(job["status"])
    try:
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
        os.umask(0o022)
        try:
            write("/proc/self/oom_score_adj", "1000")  # the first candidate when the machine runs out of memory
        except OSError:
            pass  # a courtesy to the machine, not part of the sandbox
        enter_namespaces(status)
        before = os.readlink("/proc/self/ns/mnt")
        alive, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(held)
            init(job, status, alive, before)
        os.close(alive)
        become_inside()
        drop_capabilities()
        stay_with_parent(lambda: os.getppid() == job["supervisor"])
    except (OSError, Refused) as error:
        status.failed(error)
    poll = select.poll()
    ended = os.pidfd_open(pid)
    poll.register(ended, select.POLLIN)
    poll.register(job["control"], select.POLLIN)
    if any(fd == job["control"] for fd, _ in poll.poll()):
        os.kill(pid, _signal.SIGKILL)
    # Returns when everything in the namespace is gone: its process 1 cannot be waited for before.
    os.waitpid(pid, 0)
    os._exit(0)


def enter_namespaces(status):
    """New user, process, network, IPC and host name namespaces, with one mapped user that is not root."""
    status.stage("user namespace")
    kinds = ("user", "net", "ipc", "uts")
    before = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    uid, gid, mapper, go = os.geteuid(), os.getegid(), 0, -1
    if uid == 0:
        # Only a process that stays outside may map another user than itself.
        wait, go = os.pipe()
        mapper = os.fork()
        if mapper == 0:
            os.close(go)
            try:
                if os.read(wait, 1):
                    write(f"/proc/{os.getppid()}/gid_map", f"{INSIDE} {NOBODY} 1")
                    write(f"/proc/{os.getppid()}/uid_map", f"{INSIDE} {NOBODY} 1")
                    os._exit(0)
            except OSError:
                pass
            os._exit(1)
        os.close(wait)
    call("unshare", NEWUSER)
    mapped = False
    if mapper:
        os.write(go, b"g")
        os.close(go)
        mapped = os.waitpid(mapper, 0)[1] == 0
    if not mapped:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/gid_map", f"{INSIDE} {gid} 1")
        write("/proc/self/uid_map", f"{INSIDE} {uid} 1")
    status.stage("process, network, IPC and host name namespaces")
    call("unshare", NEWPID | NEWNET | NEWIPC | NEWUTS)
    for kind in kinds:
        demand(os.readlink(f"/proc/self/ns/{kind}") != before[kind], f"the {kind} namespace is the old one")


def stay_with_parent(parent_lives):
    """Die when the parent dies. The kernel resets this at every change of rights, so it comes last."""
    prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
    signal = ctypes.c_int()
    prctl(PR_GET_PDEATHSIG, ctypes.byref(signal))
    demand(signal.value == _signal.SIGKILL, "the kernel did not take the parent-death signal")
    demand(parent_lives(), "the supervisor is gone")


def become_inside():
    """Become the mapped user, without groups."""
    if read("/proc/self/setgroups") == "allow":
        os.setgroups([])
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)


def drop_capabilities():
    """Drop all capabilities, and every way to gain one."""
    prctl(PR_SET_SECUREBITS, LOCKED_NO_ROOT)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall(NUMBER["capset"], *capability_arguments())
    prctl(PR_SET_DUMPABLE, 0)


def capability_arguments():
    """Header and (empty) sets for capset and capget, version 3."""
    return (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()


def init(job, status, alive, before):
    """Process 1 of the sandbox; does not return. `before`: the outer mount namespace."""
    try:
        demand(os.getpid() == 1, "the process namespace is the old one")
        for number in range(1, _signal.NSIG):
            # With no handler, signals from inside do not reach process 1.
            if number not in (_signal.SIGKILL, _signal.SIGSTOP):
                try:
                    _signal.signal(number, _signal.SIG_DFL)
                except (OSError, ValueError):
                    pass
        # Here and not in the outer process, whose root folder would move along.
        status.stage("mount namespace")
        call("unshare", NEWNS)
        demand(os.readlink("/proc/self/ns/mnt") != before, "the mount namespace is the old one")
        build_root(job, status)
        status.stage("dropped rights")
        drop_capabilities()
        gone = select.poll()
        gone.register(alive, select.POLLIN)
        stay_with_parent(lambda: not gone.poll(0))
        close_all_but([fd for fd in (1, 2, alive, job["status"], job["result"]) if fd >= 0])
        reading, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            program(job, status, tell)
        os.close(tell)
        close_all_but([job["status"], reading])
        message = b""
        while part := os.read(reading, 4096):
            message += part
        if message:  # the program was not executed
            os.write(status.fd, message)
            os._exit(1)
        status.write("started")
        while True:
            found, code, usage = os.wait4(-1, 0)
            if found == pid:
                status.write(f"exit {code} {usage.ru_utime + usage.ru_stime:.3f}")
                os._exit(0)
    except BaseException as error:
        status.failed(error)


def build_root(job, status):
    """Mount two small file systems in memory and a few read-only folders, and detach everything else."""
    status.stage("read-only file tree")
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    # As the calling user, who may own these folders; afterwards as the user of the sandbox.
    trees = [(path, *clone_tree(path, device)) for path, device in job["binds"]]
    call("sethostname", b"sandbox", 7)
    call("setdomainname", b"", 0)
    become_inside()
    root = b"/tmp"  # covered in this namespace alone; whatever is needed from below it was cloned above
    flags = MS_NOSUID | MS_NODEV
    size = sum(map(len, job["files"].values())) + (1 << 20)
    call("mount", b"sandbox", root, b"tmpfs", flags, f"size={size},nr_inodes=4096,mode=0755".encode())
    os.chdir(root)
    os.mkdir("tmp")
    os.mkdir("empty")
    options = f"size={job['limits']['FSIZE']},nr_inodes=4096,mode=0700"
    call("mount", b"sandbox", b"tmp", b"tmpfs", flags, options.encode())
    for path, fd, folder in trees:
        place = path.lstrip("/")
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        if folder:
            os.makedirs(place, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        attach(fd, place)
    for path in job["masks"]:
        attach(clone_tree("empty", False)[0], path.lstrip("/"))
    for path, target in job["links"].items():
        os.makedirs(os.path.dirname(path.lstrip("/")) or ".", exist_ok=True)
        os.symlink(target, path.lstrip("/"))
    for path, content in job["files"].items():
        fd = os.open(path.lstrip("/"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)
        while content:
            content = content[os.write(fd, content) :]
        os.close(fd)
    syscall(NUMBER["pivot_root"], ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    restrict(AT_FDCWD, b"/", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0)
    os.chdir("/tmp")


def clone_tree(path, device):
    """A detached, read-only copy of the mounts at and below a path: its descriptor, and whether it is a folder."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    fd = syscall(OPEN_TREE, AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), flags)
    attributes = ATTR_RDONLY | ATTR_NOSUID | (ATTR_NOEXEC if device else ATTR_NODEV)
    restrict(fd, b"", attributes, AT_EMPTY_PATH | AT_RECURSIVE)
    return fd, (os.fstat(fd).st_mode & 0o170000) == 0o040000


def restrict(fd, path, attributes, flags):
    """Set attributes of a mount."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    syscall(MOUNT_SETATTR, fd, ctypes.c_char_p(path), flags, ctypes.byref(wanted), ctypes.sizeof(wanted))


def attach(fd, path):
    """Attach a detached tree at a path."""
    target = ctypes.c_char_p(os.fsencode(path))
    syscall(MOVE_MOUNT, fd, ctypes.c_char_p(b""), AT_FDCWD, target, MOVE_EMPTY_PATH)
    os.close(fd)


def program(job, status, tell):
    """Become the program; does not return. Reports over `tell`, which a successful execve closes."""
    try:
        tell = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, KEEP)
        status.fd = tell
        status.stage = lambda name: setattr(status, "name", name)
        passed = 3
        if job["result"] >= 0:
            result = fcntl.fcntl(job["result"], fcntl.F_DUPFD_CLOEXEC, KEEP)
            os.dup2(result, 3)
            passed = 4
        os.setsid()
        os.dup2(os.open("/dev/stdin", os.O_RDONLY), 0)
        os.closerange(passed, tell)
        syscall(CLOSE_RANGE, tell + 1, 0x7FFFFFFF, 0)
        status.stage("resource limits")
        for name, value in job["limits"].items():
            limit_resource(name, value)
        check_process_limit(job)
        # A partly unmapped huge page stays in memory as a whole, and no limit counts it.
        prctl(PR_SET_THP_DISABLE, 1)
        status.stage("seccomp filter")
        install(job["filter"])
        status.stage("checks")
        check_inside(job, passed, tell)
        status.stage("execution")
        os.execve(job["command"][0], job["command"], job["environment"])
    except BaseException as error:
        status.failed(error)


def limit_resource(name, value):
    """Lower one limit; RLIMIT_CPU leaves a second between the signal and the kill."""
    kind = getattr(resource, f"RLIMIT_{name}")
    _, highest = resource.getrlimit(kind)
    hard = value + 1 if name == "CPU" else value
    if highest != resource.RLIM_INFINITY:
        value, hard = min(value, highest), min(hard, highest)
    resource.setrlimit(kind, (value, hard))
    demand(resource.getrlimit(kind) == (value, hard), f"RLIMIT_{name} was not set")


def check_process_limit(job):
    """Check that a fork fails at limit 0: root is exempt from RLIMIT_NPROC in some settings."""
    kept = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, kept[1]))
    try:
        pid = os.fork()
    except OSError:
        resource.setrlimit(resource.RLIMIT_NPROC, kept)
        return
    if pid == 0:
        os._exit(0)
    raise Refused("RLIMIT_NPROC does not bind this user; call from a user that is not root")


def install(code):
    """Install the seccomp filter."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(len(code) // 8, code)))


def check_inside(job, passed, tell):
    """Check that every layer took effect, immediately before the program is executed."""
    demand(os.getresuid() == (INSIDE,) * 3 and os.getresgid() == (INSIDE,) * 3, "the user was not changed")
    header, sets = capability_arguments()
    syscall(NUMBER["capget"], header, sets)
    demand(not any(sets), "capabilities are left")
    demand(prctl(PR_CAPBSET_READ, 21) == 0, "the bounding set still has CAP_SYS_ADMIN")
    demand(prctl(PR_GET_NO_NEW_PRIVS) == 1, "no_new_privs is not set")
    demand(prctl(PR_GET_SECCOMP) == 2, "no seccomp filter is active")
    demand(prctl(PR_GET_THP_DISABLE) == 1, "huge pages are not switched off")
    demand(os.getpid() != 1 and os.getppid() == 1, "the process namespace is not the new one")
    denied = {
        "socket AF_INET": ("socket", 2, 1, 0),
        "socket AF_UNIX": ("socket", 1, 1, 0),
        "unshare": ("unshare", NEWUSER),
        "ptrace": ("ptrace", 0, 0, 0, 0),
    }
    for text, (name, *arguments) in denied.items():
        try:
            syscall(NUMBER[str(name)], *arguments)
        except OSError as error:
            demand(error.errno == 1, f"{text} failed with {error}, not by the filter")
        else:
            raise Refused(f"{text} was possible")
    expected = {p.lstrip("/").split("/")[0] for p, _ in job["binds"]} | {"tmp", "empty", "dev"}
    expected |= {p.lstrip("/").split("/")[0] for p in [*job["links"], *job["files"]]}
    demand(set(os.listdir("/")) == expected, f"the root folder has {sorted(os.listdir('/'))}")
    # An old root that was not detached lies on top of the new one, one step up.
    demand(os.path.samestat(os.stat("/"), os.stat("/..")), "the old root folder is still there")
    for path in ["/", *(path for path, _ in job["binds"]), *job["masks"]]:
        demand(os.statvfs(path).f_flag & os.ST_RDONLY, f"{path} can be written to")
    for path in job["masks"]:
        demand(not os.listdir(path), f"{path} is not covered")
    for path in job["absent"]:
        demand(not os.path.lexists(path), f"{path} can be seen")
    size = os.statvfs("/tmp")
    demand(size.f_blocks * size.f_frsize <= job["limits"]["FSIZE"] + 4096, "/tmp has no size limit")
    for fd in range(passed, KEEP + 100):
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            continue
        demand(fd == tell, f"the descriptor {fd} is open")


def close_all_but(kept):
    """Close every descriptor but these."""
    low = 0
    for fd in [*sorted(kept), 0x7FFFFFFF]:
        if fd > low:
            syscall(CLOSE_RANGE, low, fd - 1, 0)
        low = fd + 1


def write(path, text):
    """Write a file of /proc."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)


def read(path):
    """Read a file of /proc."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 100).decode().strip()
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
