"""The weights of some of a base's layers."""

from __future__ import annotations

from sdbuild.methods.weights import OwnWeights

METHOD = OwnWeights(lambda spec: spec.layers)
