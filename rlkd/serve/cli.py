"""`rlkd serve`: start and watch the model servers of a run; see `docs/serve.md`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlkd.errors import UsageError
from rlkd.serve import processes, state
from rlkd.serve.checks import VLLM, check_gpus, check_vllm, choose_ports, resolve_models
from rlkd.serve.commands import Server, by_role, make_servers, role_spec
from rlkd.serve.config import ServeConfig, read_config
from rlkd.serve.state import StateFile

if TYPE_CHECKING:
    from rlkd.serve.supervisor import Supervisor

USAGE = """\
Start the model servers of a run (rollout, GSRM, judge, teacher, ...), each a `vllm serve`, and watch them.

  rlkd serve --config serve.yaml                        until Ctrl-C; twice to kill
  rlkd serve --config serve.yaml -- COMMAND [ARG ...]   with a trainer: the servers end with it, with its exit code.
                                                        It finds RLKD_<ROLE>_URL and RLKD_<ROLE>_SPEC
  rlkd serve --config serve.yaml --print                the exact commands; nothing is started
  rlkd serve --status | --stop [--config serve.yaml]    of one that runs

Each server's lines go to OUTPUT_DIR/logs/ROLE.log, and to the terminal with its role before them."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd serve`."""
    arguments = list(arguments)
    trainer: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, trainer = arguments[:cut], arguments[cut + 1 :]
        if not trainer:
            raise UsageError("after -- a command is expected, such as  -- accelerate launch recipes/rlkd.py")
    parser = argparse.ArgumentParser(
        prog="rlkd serve", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the servers; see recipes/serve.yaml")
    parser.add_argument("--quiet", action="store_true", help="the servers' lines only into their log files")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", help="show the commands and start nothing")
    action.add_argument("--status", action="store_true", help="what runs, and how it is")
    action.add_argument("--stop", action="store_true", help="end it, and wait until it has ended")
    options = parser.parse_args(arguments)
    if options.status:
        return status(options.config)
    if options.stop:
        return stop(options.config)
    if options.config is None:
        parser.error("--config FILE is needed; an example is recipes/serve.yaml")
    if options.print:
        return print_commands(options.config)
    return serve(options.config, trainer, quiet=options.quiet)


def print_commands(path: Path) -> int:
    """`rlkd serve --print`. What this machine lacks is no error: the commands may be for another."""
    config = read_config(path)
    servers, problems = _place(config, StateFile.of(path), _prepare(config))
    for problem in problems:
        print(f"# here: {problem}", file=sys.stderr)
    for server in servers:
        where = f"GPU {', '.join(server.devices)}" if server.devices else "CPU"
        specs = " ".join(role_spec([server], name) for name in server.names)
        print(f"# {server.label} ({where}): {specs}\n{server.shell()}\n")
    return 0


def serve(path: Path, trainer: Sequence[str], *, quiet: bool) -> int:
    """`rlkd serve`: check everything, then start."""
    config = read_config(path)
    file = StateFile.of(path)
    for config_name, ended in state.clean_up():
        if ended:
            _say(f"ended what an earlier rlkd serve ({config_name}) left: {'; '.join(ended)}")
    if not file.hold():
        running = file.read() or {}
        pid = (running.get("supervisor") or ["unknown"])[0]
        raise UsageError(
            f"{path} is running already, as process {pid}. End it with  rlkd serve --config {path} --stop"
        )
    try:
        prepared = _prepare(config)
        with state.choosing_ports():
            servers, problems = _place(config, file, prepared)
            if problems:
                raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
            supervisor = _supervisor(config, path, servers, file, quiet)
            supervisor.write_state()
        if config.host not in ("127.0.0.1", "localhost", "::1"):
            open_to_all = [server.label for server in servers if server.api_key is None]
            if open_to_all:
                _say(
                    f"host: {config.host}: everybody who reaches this machine can use {', '.join(open_to_all)}: "
                    f"no key is asked for"
                )
        return asyncio.run(supervisor.run(trainer))
    finally:
        file.release()


def _supervisor(config: ServeConfig, path: Path, servers: list[Server], file: StateFile, quiet: bool) -> Supervisor:
    from rlkd.serve.supervisor import Supervisor

    about = {
        "config": str(path.expanduser().resolve()),
        "output_dir": str(Path(config.output_dir).expanduser().absolute()),
        "started": datetime.now().isoformat(timespec="seconds"),
    }
    return Supervisor(
        config, servers, file, about=about, show=_say, on_ready=lambda minded: _show_table(servers), quiet=quiet
    )


class _Prepared(NamedTuple):
    """What is found out before the choice of ports: that may take minutes, and others would have to wait."""

    vllms: dict[str, VLLM | None]
    models: dict[str, str]
    problems: list[str]


def _prepare(config: ServeConfig) -> _Prepared:
    vllms, problems = check_vllm(config)
    problems += check_gpus(config)
    models, unknown = resolve_models(config)
    return _Prepared(vllms, models, [*problems, *unknown])


def _place(config: ServeConfig, file: StateFile, prepared: _Prepared) -> tuple[list[Server], list[str]]:
    """The servers of a config, each with its port, and what this machine lacks for them."""
    ports, taken = choose_ports(config, state.taken_ports(file))
    return make_servers(config, prepared.models, prepared.vllms, ports), [*prepared.problems, *taken]


def status(path: Path | None) -> int:
    """`rlkd serve --status`: 0 where all servers are ready, else 1."""
    good = True
    shown = False
    for _, content, running in _known(path):
        shown = True
        supervisor = state.supervisor(content)
        if running:
            pid = f"process {supervisor.pid}" if supervisor else "another machine or container"
            print(f"{content['config']}: running since {content['started']} ({pid})")
        else:
            left = state.remains(content)
            print(f"{content['config']}: its supervisor is gone, and left {len(left)} processes; --stop ends them")
            good = False
        for server in content["servers"]:
            if server["label"] == "trainer":
                print(f"  {'trainer':<12} {server['state']}")
                continue
            now = server["state"] if running else "down"
            good = good and now == "ready"
            restarts = f", restarts: {server['restarts']}" if server["restarts"] else ""
            print(f"  {server['label']:<12} {now:<9} {' '.join(server['specs'])}{restarts}")
    if not shown:
        print(f"nothing is running{f' of {path}' if path else ''}")
        return 1
    return 0 if good else 1


def stop(path: Path | None) -> int:
    """`rlkd serve --stop`: end the one of a config, or the only one there is; wait until all of it is gone."""
    import signal

    known = list(_known(path))
    if not known:
        print(f"nothing is running{f' of {path}' if path else ''}")
        return 0
    if len(known) > 1:
        listed = "\n".join(f"  rlkd serve --stop --config {content['config']}" for _, content, _ in known)
        raise UsageError(f"there are several; say which:\n{listed}")
    file, content, running = known[0]
    supervisor = state.supervisor(content)
    if running and supervisor is None:
        raise UsageError(
            f"{content['config']} runs where its processes cannot be reached from here ({content['where']['host']})"
        )
    if supervisor is not None and processes.alive(supervisor):
        processes.send(supervisor, signal.SIGTERM)
        while processes.alive(supervisor):
            time.sleep(0.1)
    # It removes its file at the end; where it was killed instead, the rest is ours.
    if file.hold():
        try:
            if (left := file.read()) is not None:
                for each in state.clean(left):
                    print(f"ended {each}")
                file.remove()
        finally:
            file.release()
    print(f"{content['config']}: stopped")
    return 0


def _known(path: Path | None) -> list[tuple[StateFile, dict[str, Any], bool]]:
    """The state files that mean something here, each with its content and whether its supervisor lives."""
    found = []
    for file in [StateFile.of(path)] if path is not None else state.files():
        content = file.read()
        if content is None:
            continue
        running = file.held()
        if running or state.remains(content):
            found.append((file, content, running))
    return found


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
    # As wide as it needs to be: an address that is cut or wrapped cannot be copied.
    console = Console(file=sys.stdout, width=240, highlight=False)
    with contextlib.suppress(OSError, ValueError):
        console.print(table)
        sys.stdout.flush()


def _say(text: str, plain: bool = False) -> None:
    """Write a line of ours, or, with `plain`, one as it is. A terminal that is gone does not end a run."""
    with contextlib.suppress(OSError, ValueError):
        print(text if plain else f"rlkd serve: {text}", flush=True)
