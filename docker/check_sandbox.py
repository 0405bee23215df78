"""rlkd's sandbox in containers of runc: refused under a seccomp profile, working with the calls of seccomp.py.

    debootstrap --variant=minbase --include=python3 bookworm root
    sudo python docker/check_sandbox.py default.json root     (docker/seccomp.py says where it is from)

Each of these is tried as root and as another user, with the capabilities that Docker gives: the profile, the profile
with the calls, and with all but one of them. Needs runc and libseccomp on x86-64; not Docker.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from seccomp import CALLS, widened

ROOT = Path(__file__).resolve().parent.parent
# Those of a container without --cap-add.
NAMES = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT"
)
CAPABILITIES = [f"CAP_{name}" for name in NAMES.split()]


def for_runc(profile: dict[str, Any]) -> dict[str, Any]:
    """Docker's form of a profile as runc reads it: without the rules for other machines and more capabilities."""
    rules = []
    for rule in profile["syscalls"]:
        only, never = rule.get("includes", {}), rule.get("excludes", {})
        here = "amd64" in only.get("arches", ["amd64"]) and "amd64" not in never.get("arches", [])
        able = set(only.get("caps", [])) <= set(CAPABILITIES) and not set(never.get("caps", [])) & set(CAPABILITIES)
        if here and able:
            rules.append({key: rule[key] for key in ("names", "action", "args", "errnoRet") if key in rule})
    machines = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    kept: dict[str, Any] = {key: profile[key] for key in ("defaultAction", "defaultErrnoRet") if key in profile}
    return {**kept, "architectures": machines, "syscalls": rules}


def works(profile: dict[str, Any], root: Path, user: int) -> bool:
    """Whether `python -m rlkd.sandbox` ends well in a container."""
    with tempfile.TemporaryDirectory(prefix="rlkd-sandbox-") as bundle:
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        file = Path(bundle, "config.json")
        config = json.loads(file.read_text())
        sets = {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES}
        if user:
            sets = {"bounding": CAPABILITIES}
        config["process"] |= {
            "terminal": False,
            "user": {"uid": user, "gid": user},
            "args": ["python3", "-m", "rlkd.sandbox"],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1"],
            "cwd": "/src",
            "capabilities": sets,
            "noNewPrivileges": False,
        }
        config["root"] = {"path": str(root.resolve()), "readonly": False}
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        code = {"destination": "/src/rlkd", "type": "bind", "source": str(ROOT / "rlkd"), "options": ["rbind", "ro"]}
        config["mounts"].append(code)
        config["linux"]["seccomp"] = for_runc(profile)
        config["linux"].pop("resources", None)
        file.write_text(json.dumps(config))
        done = subprocess.run(
            ["runc", "run", "--bundle", bundle, Path(bundle).name], capture_output=True, text=True, check=False
        )
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    print(f"  user {user}: exit code {done.returncode}; {''.join(last).strip()[:100]}", flush=True)
    if "sandbox" not in done.stdout and "execution" not in done.stdout:
        raise SystemExit(f"the container did not run: {done.stderr.strip()}")
    return done.returncode == 0


def main() -> int:
    """Try all profiles; return 1 if one does not do what it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    plain = json.loads(options.profile.read_text())
    cases = [("the profile as it is", plain, False), (f"with {', '.join(CALLS)}", widened(plain), True)]
    for call in CALLS:
        full = widened(plain)
        full["syscalls"][-1]["names"].remove(call)
        cases.append((f"with all of them but {call}", full, False))
    wrong = []
    for title, profile, expected in cases:
        print(title, flush=True)
        wrong += [title for user in (0, 10001) if works(profile, options.root, user) is not expected]
    print("wrong: " + "; ".join(wrong) if wrong else "passed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
