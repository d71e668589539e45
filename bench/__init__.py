"""Measurements: `make bench`, `make choices`, and the scripts named in the README and the pages."""

import deocc._torchvision  # noqa: F401  # before anything imports torchvision
