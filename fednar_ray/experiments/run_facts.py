"""Collects the facts that the page of a run shows: how it was started, where it was trained, and on which data."""

import os
import platform
from collections.abc import Sequence
from datetime import datetime

import torch

from fednar_ray.core.counting import format_count
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.report.facts import SHOWN_CLIENTS, RunFacts
from fednar_ray.tracking.origin import find_command, find_version

PACKAGES = ("fednar-ray", "torch", "ray", "mlflow", "numpy")


def collect_facts(prepared: Prepared, plan: ExecutionPlan, places: Sequence[ActorInfo], data_digest: str) -> RunFacts:
    """Collects the facts about a run that is finished."""
    federation, actors = prepared.federation, plan.actors
    on_gpu, private = any(place.gpus for place in places), prepared.experiment.privacy is not None
    return RunFacts(
        command=find_command() or "Python",
        primary=prepared.primary,
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=_describe_machine(on_gpu=on_gpu),
        placement=plan.placement + (f" on {format_count(actors.count, 'actor')}" if actors else ""),
        gpus=(actors.gpus or 1.0) if on_gpu and actors else 0.0,
        versions=_find_versions(),
        data=f"{federation.name}, {federation.num_clients:,} clients, SHA-256 {data_digest[:12]}",
        examples=0 if private else int(federation.shards.sizes.sum()),
        test_examples=len(federation.test),
        label_counts=()
        if private
        else tuple(tuple(map(int, row)) for row in federation.label_counts()[:SHOWN_CLIENTS]),
        class_names=federation.class_names or _number_classes(federation.classes),
    )


def _number_classes(classes: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(classes)) if classes > 1 else ()


def _describe_machine(*, on_gpu: bool) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if on_gpu and torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs{gpu}"


def _find_versions() -> dict[str, str]:
    found = ((package, find_version(package)) for package in PACKAGES)
    return {"Python": platform.python_version(), **{package: each for package, each in found if each is not None}}
