"""Builds the seccomp filter (classic BPF) that denies system calls to a sandboxed program.

A denied call fails with EPERM and does not kill. Calls newer than `NEWEST` do not exist (ENOSYS), nor do the x32 calls
of x86-64; another architecture (32-bit code) ends the process.
"""

from __future__ import annotations

import errno
import struct

# linux/audit.h
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Every call up to this number was reviewed; 452 is fchmodat2 (Linux 6.6), which new C libraries use.
NEWEST = 452

# name: (number on x86-64, number on aarch64); None where the call does not exist. From asm/unistd_64.h and
# asm-generic/unistd.h.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # The network. socketpair and sendto have rules of their own below: asyncio needs a pair.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "recvmsg": (47, 212),
    "recvmmsg": (299, 243),
    "setsockopt": (54, 208),  # sets the buffer size, which is memory that no limit of the process counts
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # Namespaces and the file tree.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # Shows which libraries others open, and uses up a small number shared by all processes of a user.
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "ustat": (136, None),
    "sysfs": (139, None),
    # Memory that no limit of the process counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    # Large and often broken parts of the kernel.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "vmsplice": (278, 75),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    # The machine as a whole.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "acct": (163, 89),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}
FORKS: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}
CLONE, CLONE3, SOCKETPAIR, SENDTO = (56, 220), (435, 435), (53, 199), (44, 206)

LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06

# Denied for some arguments: name, numbers, and conditions that must all hold (test, argument, constant). Arguments are
# indexed in halves of 32 bits, the lower one first.
CONDITIONS: list[tuple[str, tuple[int, int], list[tuple[int, int, int]]]] = [
    # MAP_ANONYMOUS with MAP_SHARED: a part that is unmapped stops counting as address space, but stays in memory.
    ("mmap", (9, 222), [(ANY_BIT, 6, 0x20), (ANY_BIT, 6, 1)]),
    # CLOSE_RANGE_UNSHARE: a separate table of descriptors per thread would lift the limit on their number.
    ("close_range", (436, 436), [(ANY_BIT, 4, 2)]),
    # F_SETPIPE_SZ: memory that no limit of the process counts.
    ("fcntl", (72, 25), [(EQUAL, 2, 1031)]),
    # PR_SET_SECCOMP, and PR_SET_THP_DISABLE: a partly unmapped huge page stays in memory as a whole.
    ("prctl", (157, 167), [(EQUAL, 0, 22)]),
    ("prctl", (157, 167), [(EQUAL, 0, 41)]),
    # RLIMIT_CORE: at 1 the kernel starts no crash handler outside; at 0 it does.
    ("setrlimit", (160, 164), [(EQUAL, 0, 4)]),
    ("prlimit64", (302, 261), [(EQUAL, 2, 4), (GREATER, 4, 0)]),
    ("prlimit64", (302, 261), [(EQUAL, 2, 4), (GREATER, 5, 0)]),
]

NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
CLONE_THREAD, CLONE_FILES = 0x10000, 0x400
AF_UNIX = 1

NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | 38  # 38 is ENOSYS on Linux, whatever the building machine


def build_filter(machine: str, *, children: bool) -> bytes:
    """The filter for `prctl(PR_SET_SECCOMP)`, as an array of `struct sock_filter`.

    `machine`: `x86_64` or `aarch64`. `children`: the program may start processes; without, it may start threads only.
    """
    column = list(ARCHITECTURES).index(machine)
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, ARCHITECTURES[machine]), (RETURN, 0, 0, KILL)]
    code += [(LOAD, 0, 0, NUMBER), (GREATER, 0, 1, NEWEST), (RETURN, 0, 0, ABSENT)]
    # Its flags are in memory, which a filter cannot read. The C library falls back to clone.
    code += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ABSENT)]
    for numbers in [*DENIED.values(), *([] if children else FORKS.values())]:
        number = numbers[column]
        if number is not None:
            code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    for _, numbers, conditions in CONDITIONS:
        checks: list[tuple[int, int, int, int]] = []
        for left, (test, half, value) in zip(range(len(conditions), 0, -1), conditions, strict=True):
            checks += [(LOAD, 0, 0, ARGUMENTS + 4 * half), (test, 0, 2 * left - 1, value)]
        checks.append((RETURN, 0, 0, REFUSE))
        code += [(LOAD, 0, 0, NUMBER), (EQUAL, 0, len(checks), numbers[column]), *checks]
    code.append((LOAD, 0, 0, NUMBER))
    clone = [(LOAD, 0, 0, ARGUMENTS), (ANY_BIT, 0, 1, NEW_NAMESPACES), (RETURN, 0, 0, REFUSE)]
    if not children:
        # With a separate table of descriptors, each thread would get the whole limit on their number.
        for flag in (CLONE_THREAD, CLONE_FILES):
            clone += [(ANY_BIT, 1, 0, flag), (RETURN, 0, 0, REFUSE)]
    pair = [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 1, 0, AF_UNIX), (RETURN, 0, 0, REFUSE)]
    # Sending to the other end of a pair is allowed; giving an address is not.
    send = [(LOAD, 0, 0, ARGUMENTS + 32), (EQUAL, 1, 0, 0), (RETURN, 0, 0, REFUSE)]
    send += [(LOAD, 0, 0, ARGUMENTS + 36), (EQUAL, 1, 0, 0), (RETURN, 0, 0, REFUSE)]
    for numbers, body in ((CLONE, clone), (SOCKETPAIR, pair), (SENDTO, send)):
        body.append((RETURN, 0, 0, ALLOW))
        code += [(EQUAL, 0, len(body), numbers[column]), *body]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
