"""Adds to a seccomp profile the system calls by which rlkd's sandbox builds itself, and nothing else.

    curl --remote-name https://raw.githubusercontent.com/moby/profiles/main/seccomp/default.json
    python docker/seccomp.py default.json > seccomp.json
    docker run --security-opt seccomp=seccomp.json --security-opt apparmor=unconfined rlkd:cpu python -m rlkd.sandbox

The first line fetches Docker's default profile. It allows these calls only to processes with CAP_SYS_ADMIN, which
--privileged would give them together with everything else.
"""

import json
import sys
from pathlib import Path
from typing import Any

CALLS = (
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "setdomainname",
    "sethostname",
    "umount2",
    "unshare",
)


def widened(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile with one more rule."""
    rule = {"names": [*CALLS], "action": "SCMP_ACT_ALLOW", "comment": "sandbox of rlkd"}
    return {**profile, "syscalls": [*profile["syscalls"], rule]}


if __name__ == "__main__":
    print(json.dumps(widened(json.loads(Path(sys.argv[1]).read_text())), indent=1))
