"""What takes seconds and does not change is found out once, not at every grading."""

import functools

import pytest
from nbgrader import api

from compresslab.grading import sandbox

# nbgrader starts a process for every new gradebook, to learn the version of its own tables.
api.get_alembic_version = functools.cache(api.get_alembic_version)
why_not = functools.cache(sandbox.why_not)


@pytest.fixture(autouse=True)
def look_for_the_sandbox_once(monkeypatch):
    """What a test that takes the sandbox away has to call is `sandbox.why_not.__wrapped__`."""
    monkeypatch.setattr(sandbox, "why_not", why_not)
