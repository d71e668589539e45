"""Measurements: `make bench`, `make choices`, and the scripts that the README and the pages name."""

import deocc  # noqa: F401  whose guard makes torchvision importable, before anything imports it
