# ruff: noqa: F401 - the imports are the purpose
"""Imports once, for all forked processes, what commands import until their end. It starts no threads, opens no files.

Their new SQLite databases get MLflow's tables from a template. The last line computes what MLflow would compute in
each process that saves a model.
"""

import os

import matplotlib.figure
import matplotlib.pyplot
import mlflow.store.tracking.sqlalchemy_store
import networkx
import rich.table
import torch._dynamo
import torch.distributed.fsdp
import torch.export
import torch.export._trace
import torch.export.pt2_archive._package
from mlflow.utils.requirements_utils import _init_modules_to_packages_map

import fednar_ray.cli.health
import fednar_ray.cli.main
import fednar_ray.experiments.redraw
import fednar_ray.experiments.run
import fednar_ray.tuning.search
from tests.support.forked_workers import READ_ONCE, fork_workers
from tests.support.stores import copy_tables_into_new_databases

for name in READ_ONCE:
    os.environ.pop(name, None)
fork_workers()
copy_tables_into_new_databases()
_init_modules_to_packages_map()
