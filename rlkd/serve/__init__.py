"""`rlkd serve` starts, watches and ends the model servers of a run.

A YAML file lists the roles (rollout, GSRM, judge, teacher, ...) with their models and GPUs. Each role becomes one or
more `vllm serve` processes.

| module | content |
| --- | --- |
| `config.py` | the file: keys, types, contradictions |
| `vllm_command.py` | builder of `vllm serve` command lines, also for the hints of trainers and for benchmarks |
| `checks.py` | checks of this machine: models, vLLM, ports |
| `commands.py` | command and environment of each server |
| `supervisor.py` | start, health, logs, restarts, end |
| `guard.py` | the parent of each server, which ends everything below it when the supervisor is gone |
| `state.py` | the file that other shells read for `--status` and `--stop`, and the next start for cleaning up |
| `cli.py` | the command |

Nothing here imports torch or vLLM: vLLM may be installed in another environment.
"""
