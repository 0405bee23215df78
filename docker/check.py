"""Executes Dockerfile.cpu without Docker: each instruction in an empty Debian, then two steps of the demo.

    sudo python docker/check.py
    sudo python docker/check.py --target vllm --then "rlkd --version"

It needs Linux, root, debootstrap, and the package dockerfile-parse (in the extra `dev`).
The base image `python:X.Y-slim-SUITE` is replaced by Debian SUITE with its own Python X.Y, which must be that version.
COPY takes what .dockerignore leaves. Each RUN has its own process and mount namespace, so that nothing stays mounted;
it is not otherwise confined, and has the network. The command of the image runs as its user, without network.

Where package indexes are reached in a special way: --bind PATH (read-only, under the same path), --variable NAME=VALUE
(during RUN only), --build-arg NAME=VALUE, --mirror URL of Debian.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dockerfile_parse import DockerfileParser
from dockerfile_parse.util import WordSplitter, extract_key_values

ROOT = Path(__file__).resolve().parent.parent
BASE_IMAGE = re.compile(r"python:(\d+\.\d+)-slim-(\w+)")
# As in a container: the host's devices and name servers, and a root folder of its own. (After chroot, the kernel would
# refuse the sandbox its namespaces.)
PREPARE = """
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
if [ "$2" = none ]; then ip link set lo up; fi
for path in $3; do mount --bind -o ro "$path" "$1$path"; done
cd "$1"
shift 3
pivot_root . .
umount -l .
exec chroot "$@"
"""
SHARED = ("/etc/resolv.conf", "/etc/hosts")
IGNORED = {"CMD", "ENTRYPOINT", "EXPOSE", "HEALTHCHECK", "LABEL", "STOPSIGNAL", "VOLUME"}


class CheckFailed(Exception):
    """A step failed, or the Dockerfile has something that this script cannot do."""


@dataclass
class Image:
    """The state of a build: the folder with its files, and what instructions set."""

    root: Path
    build_arguments: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)
    binds: tuple[str, ...] = SHARED
    env: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    args: dict[str, str] = field(default_factory=dict)
    user: str = "0"
    folder: str = "/"
    command: list[str] = field(default_factory=list)

    def run(self, command: str, *, user: str | None = None, network: bool = True, build: bool = True) -> None:
        """Run a shell command in the root folder; raises `CheckFailed`. `build`: with what only RUN gets."""
        extra = {**self.args, **self.variables} if build else {}
        binds = self.binds if build else SHARED
        for path in binds:
            inside = self.root / path.lstrip("/")
            inside.parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                inside.mkdir(exist_ok=True)
            else:
                inside.touch()
        namespaces = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            *([] if network else ["--net", "--ipc"]),
        ]
        clean = ["env", "-i", *(f"{name}={value}" for name, value in {**extra, **self.env}.items())]
        shell = ["/bin/sh", "-c", 'cd "$0" && exec /bin/sh -c "$1"', self.folder, command]
        chroot = [f"--userspec={user or self.user}", "/", *clean, *shell]
        mode = "host" if network else "none"
        prepare = ["sh", "-ec", PREPARE, "sh", str(self.root), mode, " ".join(binds), *chroot]
        if code := subprocess.run([*namespaces, *prepare], stdin=subprocess.DEVNULL, check=False).returncode:
            raise CheckFailed(f"exit code {code} of: {command}")

    def apply(self, instruction: str, value: str, context: Path) -> None:
        """Execute one instruction."""
        if instruction == "RUN":
            if value.startswith(("--", "[")):
                raise CheckFailed(f"RUN {value}: options and JSON form are not implemented here")
            self.run(value)
        elif instruction == "ENV":
            self.env |= extract_key_values(True, self.args, self.env, value)
        elif instruction == "ARG":
            name, _, default = self.expand(value).partition("=")
            self.args[name] = self.build_arguments.get(name, default)
        elif instruction == "COPY":
            self.copy([self.expand(word) for word in shlex.split(value)], context)
        elif instruction == "WORKDIR":
            self.folder = str(PurePosixPath(self.folder) / self.expand(value))
            self.inside(self.folder).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            self.user = self.expand(value)
        elif instruction not in IGNORED:
            raise CheckFailed(f"{instruction} is not implemented here")

    def copy(self, words: list[str], context: Path) -> None:
        """COPY of files and folders of the context."""
        if words[0].startswith("--"):
            raise CheckFailed(f"COPY {words[0]}: options are not implemented here")
        *sources, target = words
        ignore = read_ignore(context)
        place = self.inside(str(PurePosixPath(self.folder) / target))
        found = [path for source in sources for path in sorted(context.glob(source))]
        if not found:
            raise CheckFailed(f"COPY {sources}: not in the context")
        into = target.endswith(("/", ".")) or len(found) > 1
        for source in found:
            files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
            kept = [path for path in files if not is_ignored(path.relative_to(context).as_posix(), ignore)]
            if not kept:
                raise CheckFailed(f"COPY {source.relative_to(context)}: .dockerignore excludes it")
            for path in kept:
                if source.is_file():
                    to = place / source.name if into else place
                else:
                    to = place / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)

    def inside(self, path: str) -> Path:
        """The place of a path of the image on this machine."""
        return self.root / path.lstrip("/")

    def expand(self, text: str) -> str:
        """Replace $NAME by arguments and variables, and remove quotes."""
        return WordSplitter(text, args=self.args, envs=self.env).dequote()


def read_ignore(context: Path) -> list[tuple[bool, re.Pattern[str]]]:
    """The rules of .dockerignore: (whether it excludes, pattern)."""
    rules = []
    for line in (context / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            words = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("!").strip("/"))
            wild = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
            body = "".join(wild.get(word, re.escape(word)) for word in words)
            rules.append((not pattern.startswith("!"), re.compile(body)))
    return rules


def is_ignored(path: str, rules: list[tuple[bool, re.Pattern[str]]]) -> bool:
    """Whether a file is outside the context. A rule holds for a path and what is below it; the last one counts."""
    parts = PurePosixPath(path)
    names = [str(parts), *(str(parent) for parent in parts.parents if str(parent) != ".")]
    excluded = False
    for excludes, pattern in rules:
        if any(pattern.fullmatch(name) for name in names):
            excluded = excludes
    return excluded


def stages(dockerfile: str) -> tuple[dict[str, str], dict[str, tuple[str, list[tuple[str, str]]]]]:
    """The ARGs before the first FROM; then by the name of a stage what it starts from, and its instructions."""
    with tempfile.TemporaryFile() as file:
        parser = DockerfileParser(fileobj=file)
        parser.content = dockerfile
        lines = [(line["instruction"], line["value"]) for line in parser.structure]
    defaults: dict[str, str] = {}
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] | None = None
    for instruction, value in lines:
        if instruction == "FROM":
            image, _, name = value.partition(" AS ")
            current = []
            found[name or str(len(found))] = (image, current)  # Docker counts those without a name
        elif current is not None and instruction != "COMMENT":
            current.append((instruction, value))
        elif instruction == "ARG":
            name, _, default = value.partition("=")
            defaults[name] = default
    return defaults, found


def chain(
    found: dict[str, tuple[str, list[tuple[str, str]]]], target: str | None
) -> tuple[str, list[tuple[str, str]]]:
    """The base image of a stage (the last one by default), and all instructions that lead to it."""
    name = target or list(found)[-1]
    if name not in found:
        raise CheckFailed(f"--target {name}: expected one of {', '.join(found)}")
    image, instructions = found[name]
    if image not in found:
        return image, instructions
    base, earlier = chain(found, image)
    return base, [*earlier, *instructions]


def make_base(image: str, root: Path, mirror: str) -> None:
    """Debian with Python in place of the base image; `root` may hold it already."""
    match = BASE_IMAGE.fullmatch(image)
    if match is None:
        raise CheckFailed(f"FROM {image}: expected an image python:X.Y-slim-SUITE")
    version, suite = match.groups()
    if not (root / "usr/bin/python3").exists():
        packages = "--include=ca-certificates,python3,python3-venv"
        subprocess.run(["debootstrap", "--variant=minbase", packages, suite, str(root), mirror], check=True)
    if not (root / f"usr/bin/python{version}").exists():
        raise CheckFailed(f"FROM {image}: Debian {suite} has another Python than {version}")


def megabytes(root: Path) -> int:
    """Space of a folder on disk, in MB (10^6 bytes)."""
    done = subprocess.run(
        ["du", "--summarize", "--one-file-system", "--block-size=1", root], capture_output=True, check=True
    )
    return round(int(done.stdout.split()[0]) / 1e6)


def check(options: argparse.Namespace, root: Path) -> None:
    """Build and try the image in `root`; raises `CheckFailed`."""
    pairs = dict(pair.split("=", 1) for pair in options.variable)
    given = dict(pair.split("=", 1) for pair in options.build_arg)
    defaults, found = stages(options.dockerfile.read_text())
    base, instructions = chain(found, options.target)
    print(f"=== FROM {base}", flush=True)
    make_base(base, root, options.mirror)
    before = megabytes(root)
    image = Image(root, defaults | given, pairs, (*SHARED, *options.bind))
    for instruction, value in instructions:
        print(f"=== {instruction} {value}", flush=True)
        started = time.monotonic()
        image.apply(instruction, value, ROOT)
        if instruction == "RUN":
            print(f"    {time.monotonic() - started:.0f} s", flush=True)
    print(f"=== {megabytes(root)} MB, {before} MB of them are Debian and its Python", flush=True)
    # What the build left there would belong to root, and to every new volume.
    empty = 'test -z "$(ls -A /cache)"'
    for command in [empty, *(options.then or trials(instructions))]:
        print(f"=== as user {image.user}, without network: {command}", flush=True)
        started = time.monotonic()
        image.run(command, network=False, build=False)
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
    print("passed")


def trials(instructions: list[tuple[str, str]]) -> list[str]:
    """Two steps by the image's own command, what they must have written, and whether the sandbox works."""
    command = shlex.join(json_list([value for name, value in instructions if name == "CMD"][-1]))
    return [
        f"HF_HUB_OFFLINE=1 {command} --max_steps 2 --eval_rows 4",
        'test -s runs/rlkd/model.safetensors && test "$(wc -l <runs/rlkd/metrics.jsonl)" -eq 2',
        "python -m rlkd.sandbox",
    ]


def json_list(value: str) -> list[str]:
    """The words of an instruction in JSON form."""
    words = json.loads(value)
    assert isinstance(words, list)
    return words


def main() -> int:
    """Parse the arguments and check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dockerfile", type=Path, default=ROOT / "docker" / "Dockerfile.cpu")
    parser.add_argument("--target", help="stage of the Dockerfile, by default the last")
    parser.add_argument("--then", action="append", help="command in the finished image (repeatable)")
    parser.add_argument("--base", type=Path, help="root folder with Debian and Python, copied instead of a new one")
    parser.add_argument("--folder", type=Path, help="parent of the root folder, with 3 GB free")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    for name in ("--bind", "--variable", "--build-arg"):
        parser.add_argument(name, action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlkd-image-", dir=options.folder) as folder:
        root = Path(folder) / "root"
        if options.base:
            subprocess.run(["cp", "--archive", "--one-file-system", options.base, root], check=True)
        try:
            check(options, root)
        except (CheckFailed, subprocess.CalledProcessError) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
