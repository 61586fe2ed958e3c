"""What is said about lost nodes. ``tests/cluster/test_jobs.py`` loses a real one."""

import pytest

from fednar_ray.execution.node_loss import NodeLosses


@pytest.mark.parametrize(
    ("actors", "pinned", "line"),
    [
        (1, False, "node 10.0.0.3 was lost; its actor starts again elsewhere"),
        (2, False, "node 10.0.0.3 was lost; its 2 actors start again elsewhere"),
        (2, True, "node 10.0.0.3 was lost; its 2 actors start again when it is back"),
    ],
)
def test_a_lost_node_is_said_in_one_line(actors: int, pinned: bool, line: str) -> None:
    assert NodeLosses(pinned=pinned).describe("10.0.0.3", actors) == line


def test_an_actor_that_was_lost_alone_is_no_lost_node(session: object, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    losses = NodeLosses(pinned=False)
    losses.add_actor(next(node["NodeID"] for node in ray.nodes() if node["Alive"]))
    losses.report()
    assert not caplog.records
