"""What ranks tell each other outside of collectives: whose turn it is, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch.distributed import TCPStore

import sprunec
from sprunec.engines.processes.distributed import ProcessGroup
from sprunec.engines.processes.launch import meet
from sprunec.engines.processes.world import World, launched
from sprunec.errors import PassError
from sprunec.execution.ranks import _node
from tests.helpers.small_plans import plan, write


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ProcessGroup]]:
    """Two ranks in one process; they can do all but collectives."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent keeps it
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in (settings | {"WORLD_SIZE": 2}).items():
        monkeypatch.setenv(name, str(value))
    ranks = []
    with ExitStack() as stack:
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            ranks.append(stack.enter_context(meet()))
        yield ranks


def test_turns_come_in_the_order_of_their_announcement_and_end_with_rank_0(two: list[ProcessGroup]) -> None:
    for turn in ("join", "abc"):
        two[0].announce(turn)
    assert [two[1].next_turn(lambda: False) for _ in range(2)] == ["join", "abc"]
    two[0].__exit__(None, None, None)
    assert two[1].next_turn(lambda: False) is None


def test_rank_0_tells_what_kept_another_from_joining(two: list[ProcessGroup]) -> None:
    two[1].complain("ckpt.pt: there is no such file")
    with pytest.raises(PassError, match=r"^rank 1: ckpt\.pt: there is no such file$"):
        two[0].join("cpu", 60)


def test_rank_0_blames_another_only_for_a_lost_connection(two: list[ProcessGroup]) -> None:
    two[1].complain("out of memory")
    assert two[0].blame(RuntimeError("[/a/pair.cc:1] Connection closed by peer. Typical")) == "rank 1: out of memory"
    assert two[0].blame(ValueError("my own")) is None


def test_a_node_that_another_rank_does_not_know_is_an_error(tmp_path: Path) -> None:
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, plan({"pass": "train", "steps": 1}))))
    node = next(node for node in graph.nodes if node.pass_ == "train")
    assert _node(graph, str(node.digest)) is node
    with pytest.raises(PassError, match="another plan or other files than rank 0"):
        _node(graph, "0" * 64)


def test_one_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with meet() as world:
        assert launched() == (0, 1) == (world.rank, world.size) and type(world) is World
        world.join("cpu", 10)
        world.announce("abc")
        assert (world.total([1.5]), world.broadcast("x"), world.blame(RuntimeError("gloo"))) == ([1.5], "x", None)
