"""What takes seconds and does not change is found out once, not at every grading."""

import functools

from nbgrader import api

from compresslab.grading import grade, sandbox

# nbgrader starts a process for every new gradebook, to learn the version of its own tables.
api.get_alembic_version = functools.cache(api.get_alembic_version)
# A test that takes the sandbox away has to call `sandbox.why_not.__wrapped__`.
sandbox.why_not = functools.cache(sandbox.why_not)
# It calls every solution and every mistake on every input.
grade.load_assignments = functools.cache(grade.load_assignments)
