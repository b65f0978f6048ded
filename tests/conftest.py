"""Being here puts tests/ on the path, so that tests of several rooms share `gaussian_truth`."""

from hypothesis import settings

# A machine that is busy with something else is no failure of the code.
settings.register_profile("cmray", deadline=None)
settings.load_profile("cmray")
