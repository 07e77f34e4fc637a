from collections.abc import Iterator

import pytest
from served import Served, serving

from helium_mlx.engine.engine import HeliumEngine


@pytest.fixture(scope="session")
def engine() -> Iterator[HeliumEngine]:
    with HeliumEngine("demo", dtype="float32") as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: HeliumEngine) -> Iterator[Served]:
    with serving(engine) as served:
        yield served
