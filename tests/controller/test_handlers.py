"""The operator between kopf and the queue: what changes is looked at, and a dead queue is noticed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

import kopf
import pytest
from prometheus_client import CollectorRegistry

from fakes.cluster import FakeCluster
from fakes.operation import KEY, SETTINGS, Operation, body
from fakes.world import Act, Scene, World, all_goes_well
from galvatron_operator import names
from galvatron_operator.api import ConditionType
from galvatron_operator.decide import Kind
from galvatron_operator.handlers import Operator, configure, register
from galvatron_operator.manifests.metadata import Manifest
from galvatron_operator.metrics import OperatorMetrics
from galvatron_operator.reconcile import NotFound, Unreachable

DEADLINE_SECONDS = 10.0


def operator_of(world: World, registry: CollectorRegistry | None = None) -> Operator:
    return Operator(SETTINGS, world.cluster, world, OperatorMetrics(registry or CollectorRegistry()))


def stored(world: World) -> Manifest:
    return world.cluster.objects[Kind.GALVATRON_JOB, KEY.namespace, KEY.name]


async def eventually(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not claim():
            await asyncio.sleep(0.01)


def during(
    world: World, scenario: Callable[[Operator], Awaitable[None]], *, registry: CollectorRegistry | None = None
) -> None:
    """Run a scenario while the operator works, and hold that it worked until the end."""

    async def main() -> None:
        ended: list[str] = []
        operator = operator_of(world, registry)
        async with operator.running(when_ended=lambda: ended.append("ended")):
            await scenario(operator)
            assert ended == []

    asyncio.run(main())


def test_a_job_that_appears_is_worked_on() -> None:
    world = World()

    async def scenario(operator: Operator) -> None:
        await world.cluster.apply(body())
        operator.remember("ADDED", stored(world))
        await eventually(lambda: stored(world).get("status", {}).get("phase") == "Profiling")

    during(world, scenario)


def test_a_job_that_is_gone_leaves_the_cache() -> None:
    world = World()

    async def scenario(operator: Operator) -> None:
        made = await world.cluster.apply(body())
        operator.remember("ADDED", made)
        assert operator.cache.job(KEY.namespace, KEY.name) == made
        operator.remember("DELETED", made)
        assert operator.cache.jobs == ()

    during(world, scenario)


def test_what_the_operator_writes_itself_is_counted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    operator = operator_of(world)
    counted: list[tuple[Manifest | None, Manifest]] = []
    monkeypatch.setattr(operator.metrics, "job_changed", lambda before, after: counted.append((before, after)))
    made = asyncio.run(world.cluster.apply(body()))
    operator.remember("ADDED", made)
    status = {**made, "status": {"phase": "Profiling"}}
    asyncio.run(operator.cache.apply_status(status))
    operator.remember("MODIFIED", stored(world))
    assert counted == [(None, made), (made, stored(world))]


def test_a_job_of_another_manager_has_no_metrics() -> None:
    world = World()

    async def scenario(operator: Operator) -> None:
        operator.remember("ADDED", await world.cluster.apply(body(managedBy="example.com/dispatcher")))
        assert operator.cache.jobs == ()

    during(world, scenario)


def test_the_echo_of_progress_makes_no_round_but_every_other_event_does() -> None:
    registry = CollectorRegistry()
    # The operator looks at the real clock.
    world = World(trains_on, now=datetime.now(UTC) - timedelta(minutes=5))
    operation = Operation(world)
    operation.create(body())
    operation.until(ConditionType.TRAINING)
    world.step()

    async def scenario(operator: Operator) -> None:
        before = stored(world)["metadata"]["resourceVersion"]
        operator.remember("MODIFIED", stored(world))
        await eventually(lambda: registry.get_sample_value("galvatron_operator_reconcile_duration_seconds_count") == 1)
        assert stored(world)["metadata"]["resourceVersion"] != before
        operator.remember("MODIFIED", stored(world))
        assert registry.get_sample_value("galvatron_operator_queue_depth") == 0
        operator.remember("MODIFIED", stored(world))
        assert registry.get_sample_value("galvatron_operator_queue_depth") == 1

    during(world, scenario, registry=registry)


def trains_on(scene: Scene) -> Act:
    """Trainers that make a step with every look."""
    return Act(step=scene.age) if scene.component == names.COMPONENT_TRAINER else all_goes_well(scene)


class AwayCluster(FakeCluster):
    """An API server that takes no status."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        raise Unreachable(f"{manifest['metadata']} cannot be written", remedy="wait")


class BareCluster(FakeCluster):
    """An API server without the CRD."""

    async def list(self, kind: Kind, *, namespace: str | None, labels: Mapping[str, str]) -> tuple[Manifest, ...]:
        raise NotFound(f"{kind} is not known in {namespace}, with {labels} or without", remedy="install the CRD")


def test_a_round_that_fails_is_counted_and_stops_nothing() -> None:
    registry = CollectorRegistry()
    world = World(cluster=AwayCluster())

    def failed() -> float | None:
        return registry.get_sample_value("galvatron_operator_reconcile_total", {"result": "Unreachable"})

    async def scenario(operator: Operator) -> None:
        operator.remember("ADDED", await world.cluster.apply(body()))
        await eventually(lambda: failed() == 1)
        operator.check_heartbeat()

    during(world, scenario, registry=registry)


def test_an_operator_that_does_not_work_has_no_heartbeat() -> None:
    with pytest.raises(RuntimeError, match="does not run"):
        operator_of(World()).check_heartbeat()


def test_an_operator_that_works_has_a_heartbeat() -> None:
    async def scenario(operator: Operator) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                await asyncio.sleep(0)
                try:
                    return operator.check_heartbeat()
                except RuntimeError:
                    continue

    during(World(), scenario)


def test_kopf_is_told_to_leave_nothing_on_objects() -> None:
    settings = kopf.OperatorSettings()
    configure(settings)
    assert not settings.posting.enabled
    assert settings.peering.standalone
    assert len(settings.watching.label_selectors) == 5


def test_only_low_level_handlers_are_registered() -> None:
    registry = kopf.OperatorRegistry()
    register(registry, operator_of(World()), when_ended=lambda: None)
    assert len(registry._watching.get_all_handlers()) == 6
    for others in (registry._changing, registry._spawning, registry._indexing):
        assert list(others.get_all_handlers()) == []


def test_the_managed_selector_finds_what_we_make() -> None:
    labels = names.job_labels("small", uid="u", component=names.COMPONENT_TRAINER)
    managed, uid = names.owned_selector().split(",")
    key, value = managed.split("=")
    assert labels[key] == value
    assert uid in labels


def test_where_the_crd_is_missing_the_operator_does_not_start() -> None:
    with pytest.raises(NotFound):
        during(World(cluster=BareCluster()), lambda _: asyncio.sleep(0))
