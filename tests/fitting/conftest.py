"""Tests of ``fit`` find no published weights on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.published.conftest import VARIABLES


@pytest.fixture(autouse=True, scope="package")
def _no_published_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        patch.setenv("PPXCLS_OFFLINE", "1")
        patch.setenv("PPXCLS_CACHE", str(folder / "cache"))
        yield
