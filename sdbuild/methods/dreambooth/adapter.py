"""All of a base's weights, as in a full fine-tune; the prior is a matter of what is trained on."""

from __future__ import annotations

from sdbuild.methods.weights import OwnWeights

METHOD = OwnWeights()
