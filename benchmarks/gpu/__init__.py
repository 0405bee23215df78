"""The parts of `gpu_day.py`: what one GPU is asked within minutes, and what reads the answers.

`parts.py` lists the parts. Each is a generator of figures in a module of its subject (`device`, `divergence`,
`equality`, `training`, `lab`), runs in a process of its own (`runner.py`) and knows its size (`day.py`). `bundle.py`
gathers the packages that a machine without network lacks, `install.py` puts them on its path, `page.py` renders
results. All but the parts needs the standard library only, since it runs before anything is installed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # a checkout need not be installed
    sys.path.append(str(ROOT))
