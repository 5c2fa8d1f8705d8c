"""Which worker gets which shard, and what a death costs: the pool with actors that do what the test says."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError

from asymvae.pipeline import pool as module
from asymvae.pipeline.pool import Pool
from asymvae.pipeline.reports import Report
from asymvae.storage.shards import Shard


class Actors:
    """Stand in for Ray: every call of an actor waits until the test answers it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Any] = []
        self.killed: list[Any] = []
        self.stopped = 0
        self.when_stopped: Callable[[], None] = lambda: None
        monkeypatch.setattr(module.ray, "kill", self.killed.append)
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)

    def start(self) -> Any:
        actor = SimpleNamespace(start=Future(), calls={})
        actor.__ray_ready__ = SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: actor.start))

        def run(shard: Shard) -> Any:
            actor.calls[shard.name] = Future()
            return SimpleNamespace(future=lambda: actor.calls[shard.name])

        actor.run = SimpleNamespace(remote=run)
        self.made.append(actor)
        return actor

    def stop(self) -> None:
        self.stopped += 1
        self.when_stopped()

    def pool(self, count: int, *, sizes: str = "", least: int = 1, most: int = 1, in_flight: int = 2) -> Any:
        """``sizes``: a digit a shard; 1 each where it is left out."""
        shards = [Shard(str(n), str(n), "webdataset", int((sizes or "1" * count)[n]), "v") for n in range(count)]
        total = sum(shard.size for shard in shards)
        made = Pool(self.start, iter(shards), count, total, least=least, most=most, in_flight=in_flight, stop=self.stop)
        return made.run()


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    return Actors(monkeypatch)


def done(actor: Any, name: str) -> None:
    actor.calls[name].set_result(Report(name, True))


def dies(actor: Any) -> None:
    for call in actor.calls.values():
        if not call.done():
            call.set_exception(ActorDiedError())


def looked(running: Any) -> list[str]:
    """The shards reported until nothing more happens."""
    said = []
    for news in running:
        if news is None:
            return said
        said.append(f"{news[0].name}{'' if news[1].committed else ' lost'}")
    return [*said, "end"]


def test_shards_go_out_in_their_order_two_at_a_time(actors: Actors) -> None:
    running = actors.pool(4)
    assert looked(running) == []
    (actor,) = actors.made
    assert not actor.calls  # none waits at an actor that may never start
    actor.start.set_result(None)
    assert looked(running) == []
    assert list(actor.calls) == ["0", "1"]
    done(actor, "1")
    assert looked(running) == ["1"]
    assert list(actor.calls) == ["0", "1", "2"]
    for name in ("0", "2"):
        done(actor, name)
    assert looked(running) == ["0", "2"]
    done(actor, "3")
    assert looked(running) == ["3", "end"]
    assert actors.killed == [actor]


def test_few_shards_are_spread_over_the_workers_that_start(actors: Actors) -> None:
    running = actors.pool(3, most=8)
    looked(running)
    assert len(actors.made) == 3  # not eight
    for actor in actors.made:
        actor.start.set_result(None)
    looked(running)
    assert [list(actor.calls) for actor in actors.made] == [["0"], ["1"], ["2"]]
    done(actors.made[2], "2")
    assert looked(running) == ["2"]
    assert actors.killed == [actors.made[2]]  # nothing waits
    done(actors.made[0], "0")
    assert looked(running) == ["0"]
    assert len(actors.killed) == 2


def test_a_large_shard_waits_at_no_worker_that_has_one(actors: Actors) -> None:
    running = actors.pool(6, sizes="865421", least=2, most=2)
    looked(running)
    first, second = actors.made
    first.start.set_result(None)
    looked(running)
    assert list(first.calls) == ["0"]  # with the next it would have 14 of 26
    second.start.set_result(None)
    looked(running)
    assert list(second.calls) == ["1", "2"]  # 11
    done(first, "0")
    assert looked(running) == ["0"]
    assert list(first.calls) == ["0", "3", "4"]  # 6 of 18
    done(first, "3")
    done(first, "4")
    done(second, "1")
    assert sorted(looked(running)) == ["1", "3", "4"]
    assert list(first.calls)[-1] == "5"  # it had nothing


def test_a_death_loses_what_was_in_flight_which_is_tried_once_more_by_another(actors: Actors) -> None:
    running = actors.pool(4)
    looked(running)
    actors.made[0].start.set_result(None)
    looked(running)
    dies(actors.made[0])
    assert looked(running) == []
    assert len(actors.made) == 2
    second = actors.made[1]
    second.start.set_result(None)
    looked(running)
    assert list(second.calls) == ["2", "3"]  # those that were lost come last
    done(second, "2")
    done(second, "3")
    assert looked(running) == ["2", "3"]
    assert list(second.calls) == ["2", "3", "0", "1"]
    dies(second)
    assert looked(running) == ["0 lost", "1 lost", "end"]


def test_a_lost_shard_is_given_to_a_worker_that_has_nothing_to_do(actors: Actors) -> None:
    running = actors.pool(2, least=2, most=2)
    looked(running)
    first, second = actors.made
    for actor in actors.made:
        actor.start.set_result(None)
    looked(running)
    done(first, "0")
    assert looked(running) == ["0"]
    assert not actors.killed  # the least stay
    dies(second)
    looked(running)
    assert list(first.calls) == ["0", "1"]
    done(first, "1")
    assert looked(running) == ["1", "end"]


def test_workers_that_raise_at_their_start_end_the_run_and_lost_nodes_do_not(actors: Actors) -> None:
    running = actors.pool(9, most=8)
    looked(running)
    for actor in list(actors.made):  # a node with all of its workers
        actor.start.set_exception(ActorDiedError())
    assert looked(running) == []
    assert len(actors.made) == 16
    actors.made[8].start.set_result(None)
    looked(running)
    for actor in actors.made[9:13]:
        actor.start.set_exception(RayActorError(error_msg="no such model", actor_init_failed=True))
    with pytest.raises(RayActorError, match="no such model"):
        looked(running)
    assert set(map(id, actors.killed)) == set(map(id, actors.made))


def test_a_pool_that_is_closed_waits_for_its_workers_to_give_up(actors: Actors) -> None:
    running = actors.pool(5)
    looked(running)
    (actor,) = actors.made
    actor.start.set_result(None)
    looked(running)
    given_up = []

    def give_up() -> None:
        given_up.append(list(actor.calls))
        for name in ("0", "1"):
            actor.calls[name].set_result(Report(name, False, "the run was stopped"))

    actors.when_stopped = give_up
    running.close()
    assert given_up == [["0", "1"]]
    assert actors.killed == [actor]


def test_a_pool_that_is_closed_waits_no_longer_than_its_grace(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    running = actors.pool(5)
    looked(running)
    actors.made[0].start.set_result(None)
    looked(running)
    running.close()
    assert actors.stopped == 1
    assert actors.killed == actors.made
