"""Number of examples that a property is tried on.

Both profiles draw the same examples in every run, so that a red test stays red.
"""

from hypothesis import HealthCheck, settings

# A slow or loaded machine is no fault of a property, hence no deadline; and nothing is kept between runs.
_SAME = settings(derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _SAME, max_examples=40)
settings.register_profile("thorough", _SAME, max_examples=500)
