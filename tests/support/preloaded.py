# ruff: noqa: F401 - the imports are the purpose
"""Imports once, for all forked processes, what commands import until their end. It starts no threads, opens no files.

Their new SQLite databases get MLflow's tables from a template. The last lines compute what MLflow would compute in
each process that loads a model. So these processes have PyTorch's compiler and the lists of packages from the start;
tests/federated/test_recorder.py and tests/tracking/test_models.py test what goes without them.
"""

import gc
import os

import matplotlib.figure
import matplotlib.pyplot
import mlflow.cli
import mlflow.store.tracking.sqlalchemy_store
import networkx
import ray._private.log_monitor
import ray._private.runtime_env.agent.runtime_env_agent
import ray.autoscaler._private.monitor
import ray.dashboard.agent
import ray.dashboard.dashboard
import ray.scripts.scripts
import rich.table
import torch._dynamo
import torch.distributed.fsdp
import torch.export
import torch.export._trace
import torch.export.pt2_archive._package
import uvicorn
from mlflow.utils.requirements_utils import _init_modules_to_packages_map
from ray.dashboard.utils import DashboardAgentModule, DashboardHeadModule, get_all_modules

import fednar_ray.cli.health
import fednar_ray.cli.main
import fednar_ray.experiments.redraw
import fednar_ray.experiments.run
import fednar_ray.tuning.search
import tests.support.forked_programs
from tests.support.forked_workers import READ_ONCE
from tests.support.stores import copy_tables_into_new_databases

for name in READ_ONCE:
    os.environ.pop(name, None)
copy_tables_into_new_databases()
_init_modules_to_packages_map()
for kind in (DashboardHeadModule, DashboardAgentModule):
    get_all_modules(kind)  # which imports them
gc.freeze()  # a child's collections need not look at what has been imported
