from __future__ import annotations

from hypothesis import settings

# Machines that run the tests may be busy: a property is judged by its truth, not by its time.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
