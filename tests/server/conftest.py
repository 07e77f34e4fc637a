from collections.abc import Iterator

import pytest
from served import Demo, Served, serving

from helium_mlx.engine.engine import HeliumEngine


@pytest.fixture(scope="session")
def engine(demo: Demo) -> Iterator[HeliumEngine]:
    # The demo is there first: functions of bundles run in the thread that used MLX first, here the main one.
    with HeliumEngine("demo", dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: HeliumEngine) -> Iterator[Served]:
    with serving(engine) as served:
        yield served
