"""Gradient-boosted trees with the settings of llm-d's latency predictor, as something to compare with. Needs `beaconry[bench]`."""

from collections.abc import Sequence

import lightgbm
import numpy as np

SETTINGS = {
    "objective": "regression", "learning_rate": 0.05, "max_depth": 6, "bagging_fraction": 0.8, "bagging_freq": 1,
    "min_data_in_leaf": 5, "num_threads": 1, "verbose": -1, "seed": 1,
}  # fmt: skip
ROUNDS = 200


class Trees:
    """One model: features to a time above 0."""

    def __init__(self, features: Sequence[Sequence[float]], seconds: Sequence[float], *, log_target: bool) -> None:
        """Train. `log_target`: on logarithms, so that relative errors count; llm-d trains on the times themselves."""
        self._log_target = log_target
        target = np.log(seconds) if log_target else np.asarray(seconds)
        self._model = lightgbm.train(SETTINGS, lightgbm.Dataset(np.array(features), target), ROUNDS)

    def predict(self, features: Sequence[Sequence[float]]) -> list[float]:
        """One time for each."""
        found = self._model.predict(np.array(features))
        return [float(x) for x in (np.exp(found) if self._log_target else np.maximum(found, 1e-6))]
