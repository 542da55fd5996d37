"""A cluster is looked at before any work is sent to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corit_cli.cluster.session import session
from corit_cli.errors import CoritError
from corit_cli.version import __version__

#: What the Python of a node does when it starts (sitecustomize.py).
OLDER = """
import sys, types
for name in ("corit_cli", "corit_cli.version"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["corit_cli.version"].__version__ = "0.0.1"
"""
MISSING = """
import sys
class Nothing:
    def find_spec(self, name, *more):
        if name.partition(".")[0] == "corit_cli":
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
"""


@pytest.mark.parametrize(("starts", "said"), [(OLDER, "has corit 0.0.1"), (MISSING, "has no corit")])
def test_a_node_without_the_same_corit_is_named(cluster, tmp_path: Path, starts: str, said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(starts)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000, env_vars={"PYTHONPATH": path})
    try:
        with pytest.raises(CoritError, match=rf"node .* {said}: install corit {__version__}"), session(cluster.address):
            raise AssertionError("work was begun")
    finally:
        cluster.remove_node(node)


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:9", "no Ray cluster"), ("ray://head:1", "ray job submit")])
def test_an_address_that_is_of_no_use(address: str, said: str) -> None:
    with pytest.raises(CoritError, match=said), session(address):
        raise AssertionError("work was begun")
