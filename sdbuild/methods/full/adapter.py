"""All of a base's weights."""

from __future__ import annotations

from sdbuild.methods.weights import OwnWeights

METHOD = OwnWeights()
