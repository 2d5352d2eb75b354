"""What several tests of the app share."""

import pytest

from app import models


@pytest.fixture
def fix_models():
    """`models.fix`, undone afterwards."""
    yield models.fix
    models.fix(None)
