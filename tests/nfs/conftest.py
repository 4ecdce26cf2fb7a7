"""Servers that end with their test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nfs.ganesha import HOST, Export, Ganesha
from tests.nfs.stand import Stand

ServerFactory = Callable[..., Ganesha]


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """`start_server(Export(directory), ..., host=, port=)`: a running server, stopped at the end of the test."""
    numbers = itertools.count()
    with ExitStack() as servers:

        def start(*exports: Export, host: str = HOST, port: int | None = None) -> Ganesha:
            home = tmp_path_factory.mktemp(f"ganesha-{next(numbers)}")
            return servers.enter_context(Ganesha(home, exports, host=host, port=port))

        yield start


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An empty local directory to export."""
    directory = tmp_path / "export"
    directory.mkdir()
    return directory


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """An installation without exports, whose controller is not started yet."""
    with Stand(tmp_path / "stand") as made:
        yield made
