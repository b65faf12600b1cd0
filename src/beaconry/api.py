"""The plugin author's door: everything a plugin may import, in one place. What is not here may change without notice."""

from beaconry.plugins.kinds import Filter, Picker, Policy, PredictorSource, Scorer
from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.decision import Ranking
from beaconry.values.endpoint import Endpoint, EngineType, LoadSample, Role
from beaconry.values.request import Api, Request, Usage

__all__ = [
    "Api",
    "Candidate",
    "Endpoint",
    "EngineType",
    "Filter",
    "LoadSample",
    "Picker",
    "Policy",
    "Prediction",
    "PredictorSource",
    "Ranking",
    "Request",
    "Role",
    "Scorer",
    "Usage",
]
