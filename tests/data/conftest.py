"""Tests of data keep the library's Arrow tables in a folder of their own, and never ask the hub."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("arrow")))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        yield
