"""`rlkd serve`: the model servers of a run, started, watched and ended as one.

A YAML file says which roles there are (rollout, GSRM, judge, teacher, ...), with which model, on which GPUs. Each role
becomes one or more `vllm serve` processes.

| module | what |
| --- | --- |
| `config.py` | the file: keys, types, and what contradicts itself |
| `checks.py` | the machine: is the model there, vLLM, the GPU, the port |
| `commands.py` | the exact command and environment of each server |
| `guard.py` | the process between us and a server, which ends all of it when we are gone |
| `processes.py` | processes told apart, found and ended |
| `state.py` | what a start writes down, so that the next one can clean up after it |
| `supervisor.py` | start, health, logs, restarts, end |
| `cli.py` | the command |

Nothing here imports torch or vLLM: vLLM may live in another environment.
"""
