"""A real Ray cluster of two nodes on this machine, one for all tests of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from ray import cluster_utils

import tests
from corit_cli.cluster.session import session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One cluster is enough: of the processes that test side by side, one runs all tests of this folder."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """Two nodes with a CPU each; ``cluster.address`` is where."""
    root = str(Path(tests.__file__).parent.parent) if tests.__file__ else os.getcwd()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    memory = {"object_store_memory": 200_000_000}
    # A process that has imported torch is kept for the next task: most of a test's time goes into starting others.
    kept = {"idle_worker_killing_time_threshold_ms": 600_000, "num_workers_soft_limit": 6}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": kept}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head | memory)
    made.add_node(num_cpus=1, **memory)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def ray(cluster) -> Iterator[ModuleType]:
    """Ray, connected to the two nodes."""
    with session(cluster.address) as connected:
        yield connected
