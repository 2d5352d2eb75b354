"""Every test of data starts with an empty cache."""

import pytest


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
