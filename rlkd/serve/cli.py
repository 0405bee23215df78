"""`rlkd serve`: starts the vLLM servers of a run, and a command that uses them; see `docs/serve.md`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path

from rlkd.errors import UsageError
from rlkd.process import is_running, send
from rlkd.serve import state
from rlkd.serve.checks import VLLM, check_gpus, check_vllm, choose_ports, resolve_models
from rlkd.serve.commands import Server, by_role, make_servers, role_spec
from rlkd.serve.config import ServeConfig, read_config
from rlkd.serve.state import StateFile

USAGE = """\
Start the model servers of a run (rollout, GSRM, judge, teacher, ...), each a `vllm serve`, and watch them.

  rlkd serve --config serve.yaml                        until Ctrl-C; twice to kill
  rlkd serve --config serve.yaml -- COMMAND [ARG ...]   with a trainer: the servers end with it, with its exit code.
                                                        Its environment has RLKD_<ROLE>_URL and RLKD_<ROLE>_SPEC
  rlkd serve --config serve.yaml --print                print the exact commands; start, download and
                                                        create nothing
  rlkd serve --status | --stop [--config serve.yaml]    show or end a running one

Each server writes to OUTPUT_DIR/logs/ROLE.log; its lines are also shown here, with the role as prefix."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd serve`."""
    arguments = list(arguments)
    trainer: list[str] = []
    if "--" in arguments:
        index = arguments.index("--")
        arguments, trainer = arguments[:index], arguments[index + 1 :]
        if not trainer:
            raise UsageError("expected a command after --, such as  -- accelerate launch recipes/rlkd.py")
    parser = argparse.ArgumentParser(
        prog="rlkd serve", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="config of the servers; see recipes/serve.yaml")
    parser.add_argument("--quiet", action="store_true", help="server output in the log files only")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", help="print the commands; start, download and create nothing")
    action.add_argument("--status", action="store_true", help="show what runs, and whether it is ready")
    action.add_argument("--stop", action="store_true", help="stop a running `rlkd serve` and wait for its end")
    options = parser.parse_args(arguments)
    if options.status:
        return show_status(options.config)
    if options.stop:
        return stop(options.config)
    if options.config is None:
        parser.error("--config FILE is needed; an example is recipes/serve.yaml")
    if options.print:
        return print_commands(options.config)
    return serve(options.config, trainer, quiet=options.quiet)


def print_commands(path: Path) -> int:
    """`rlkd serve --print`. Problems of this machine are only notes: the commands may be for another one."""
    config = read_config(path)
    servers, problems = _place(config, StateFile.of(path), _prepare(config, create=False))
    for problem in problems:
        print(f"# here: {problem}", file=sys.stderr)
    for server in servers:
        where = f"GPU {', '.join(server.devices)}" if server.devices else "CPU"
        specs = " ".join(role_spec([server], name) for name in server.names)
        print(f"# {server.label} ({where}): {specs}\n{server.shell()}\n")
    return 0


def serve(path: Path, trainer: Sequence[str], *, quiet: bool) -> int:
    """`rlkd serve`: check everything, then start."""
    from rlkd.serve.supervisor import Supervisor

    config = read_config(path)
    for other, ended in state.clean_up():
        if ended:
            _say(f"ended what an earlier rlkd serve ({other}) left: {'; '.join(ended)}")
    file = StateFile.of(path)
    if not file.hold():
        pid = (file.read() or {"supervisor": ["unknown"]})["supervisor"][0]
        raise UsageError(
            f"{path} is running already, as process {pid}. End it with  rlkd serve --config {path} --stop"
        )
    try:
        prepared = _prepare(config)  # may take minutes, and other starts need not wait for it
        with state.choosing_ports():
            servers, problems = _place(config, file, prepared)
            if problems:
                raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
            about = {
                "config": str(path.expanduser().resolve()),
                "started": datetime.now().isoformat(timespec="seconds"),
            }
            supervisor = Supervisor(
                config, servers, file, about=about, show=_say, on_ready=lambda: _show_table(servers), quiet=quiet
            )
            supervisor.write_state()
        unprotected = [server.label for server in servers if server.api_key is None]
        if config.host not in ("127.0.0.1", "localhost", "::1") and unprotected:
            _say(f"host: {config.host}: {', '.join(unprotected)} have no key, and are open to the network")
        return asyncio.run(supervisor.run(trainer))
    finally:
        file.release()


def _prepare(config: ServeConfig, *, create: bool = True) -> tuple[dict[str, VLLM | None], dict[str, str], list[str]]:
    """The vLLM of each role, the model arguments, and all problems; `create`: missing models of rlkd are created."""
    vllms, problems = check_vllm(config)
    models, unknown = resolve_models(config, create=create)
    return vllms, models, [*problems, *check_gpus(config), *unknown]


def _place(
    config: ServeConfig, file: StateFile, prepared: tuple[dict[str, VLLM | None], dict[str, str], list[str]]
) -> tuple[list[Server], list[str]]:
    """The servers of a config with their ports, and all problems of this machine."""
    vllms, models, problems = prepared
    ports, taken = choose_ports(config, state.taken_ports(file))
    return make_servers(config, models, vllms, ports), [*problems, *taken]


def show_status(path: Path | None) -> int:
    """`rlkd serve --status`: returns 0 if all servers are ready, else 1."""
    runs = [(content, file.is_held()) for file, content in state.known(path)]
    runs = [(content, is_live) for content, is_live in runs if is_live or state.leftovers(content)]
    if not runs:
        print(f"nothing is running{f' of {path}' if path else ''}")
    is_ready = bool(runs)
    for content, is_live in runs:
        if is_live:
            supervisor = state.supervisor(content)
            place = f"process {supervisor.pid}" if supervisor else "in another container"
            print(f"{content['config']}: running since {content['started']} ({place})")
        else:
            count = len(state.leftovers(content))
            print(f"{content['config']}: its supervisor is gone, and left {count} processes; --stop ends them")
        for server in content["servers"]:
            if server["label"] == "trainer":
                print(f"  {'trainer':<12} {server['state'] if is_live else 'down'}")
                continue
            now = server["state"] if is_live else "down"
            is_ready = is_ready and now == "ready"
            restarts = f", restarts: {server['restarts']}" if server["restarts"] else ""
            print(f"  {server['label']:<12} {now:<9} {' '.join(server['specs'])}{restarts}")
    return 0 if is_ready else 1


def stop(path: Path | None) -> int:
    """`rlkd serve --stop`: end the run of a config, or the only one there is, and wait until all of it is gone."""
    runs = [(file, run) for file, run in state.known(path) if file.is_held() or state.leftovers(run)]
    if not runs:
        print(f"nothing is running{f' of {path}' if path else ''}")
        return 0
    if len(runs) > 1:
        listed = "\n".join(f"  rlkd serve --stop --config {content['config']}" for _, content in runs)
        raise UsageError(f"several are running; choose one:\n{listed}")
    [(file, content)] = runs
    supervisor = state.supervisor(content)
    if supervisor is None and file.is_held():
        raise UsageError(f"{content['config']} runs in another container, whose processes cannot be reached from here")
    if supervisor is not None and file.is_held():
        send([supervisor], signal.SIGTERM)
        while is_running(supervisor):
            time.sleep(0.05)
    for _, ended in state.clean_up(Path(content["config"])):  # if it was killed instead, and left something
        print(*(f"ended {each}" for each in ended), sep="\n")
    print(f"{content['config']}: stopped")
    return 0


def _show_table(servers: Sequence[Server]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("role", "address", "in a recipe's YAML"):
        table.add_column(title, no_wrap=True)
    for replicas in by_role(servers).values():
        specs = [role_spec(replicas, name) for name in replicas[0].names]
        for server, spec in zip_longest(replicas, specs):
            table.add_row(server.label if server else "", server.address if server else "", spec or "")
    # Wide enough for every address: a truncated or wrapped one cannot be copied.
    console = Console(file=sys.stdout, width=240, highlight=False)
    with contextlib.suppress(OSError, ValueError):
        console.print(table)
        sys.stdout.flush()


def _say(text: str, plain: bool = False) -> None:
    """Write a message, or with `plain` a server's line. A closed terminal does not end a run."""
    with contextlib.suppress(OSError, ValueError):
        print(text if plain else f"rlkd serve: {text}", flush=True)
