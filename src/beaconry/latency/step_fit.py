"""How long a variant's steps take: seven coefficients, learnt from the outside.

    step = fixed + prompt + per sequence + KV read + matrix products beyond the knee + prompt attention,  and a start from idle

Up to the knee a step is bound by reading weights, so its tokens are free; beyond it each costs its matrix products (the maximum of a
roofline, as two straight lines). The knee is the accelerator's operations per byte, which differ little between kinds: it is not learnt.

An observation is a *work* (sums of the features over the steps that it covers) and the seconds it took. The coefficients minimise the
relative errors of the observations, later ones counting more, under two conditions: none is negative, and none leaves its prior without
evidence. Only 7 x 7 sums are kept, and coordinate descent follows the minimum from one observation to the next.

Source of the form: fits to 208 public measurements of vLLM, 3.9 % leave-one-out with fixed, batch, KV and prefill terms.
"""

from collections.abc import Sequence
from operator import mul

from msgspec import Struct

from beaconry.engine_model.presets import variant
from beaconry.values.errors import OperatorError

STEPS, PROMPT_STEPS, SEQUENCES, CONTEXT, TOKENS, ATTENDED, STARTS = range(7)
"""Places of the features in a work: steps; steps with prompt tokens; decoding sequences; KV tokens they read; tokens beyond the knee;
(prompt token, earlier token) pairs; starts of an idle engine. All summed over steps."""
TERMS = 7
Work = list[float]

_KEPT = 0.99
"""What an observation keeps of its weight when the next one comes: about the last hundred count."""
_PRIOR_WEIGHT = 0.03
"""In observations that consist of this coefficient alone."""
_GUESS_WEIGHT = 0.003
"""The same where the variant is not known: the guess decides only until there is anything better."""
_SWEEPS = 6
_EARLY = 40
"""Observations until which the descent takes `_SWEEPS` each time; after that one sweep follows the minimum."""
_LEAST_STEP_S = 1e-5
"""No engine is faster, so that time advances whatever was observed."""
_SPREAD_GAIN = 0.05
_HUBER = 2.5
"""Errors beyond so many mean ones count for less, in proportion."""
_BROKEN = 8.0
"""An observation so many times the expected one, or its inverse, is no step time: a stall, a queue nobody told of."""


class StepTimes(Struct, frozen=True, kw_only=True):
    """Coefficients in seconds. A `StepTime` of `engine_model`."""

    fixed_s: float
    """Per step: launching it, and reading the weights."""
    prompt_s: float
    """Per step with prompt tokens."""
    per_seq_s: float
    per_context_token_s: float
    per_token_s: float
    """Per token beyond the knee."""
    per_attended_s: float
    start_s: float = 0.0
    """From dispatch to the beginning of the first step of an idle engine: network and tokenising."""
    knee_tokens: float = 0.0

    def seconds(self, sequences: int, context: float, prefill: int, attended: float) -> float:
        """The duration of one step; see `engine_model.step_time.StepTime`."""
        return (
            self.fixed_s
            + (self.prompt_s if prefill else 0.0)
            + self.per_seq_s * sequences
            + self.per_context_token_s * context
            + self.per_token_s * max(sequences + prefill - self.knee_tokens, 0.0)
            + self.per_attended_s * attended
        )


GUESS = StepTimes(
    fixed_s=0.008, prompt_s=0.005, per_seq_s=4e-5, per_context_token_s=4e-8, per_token_s=6e-5, per_attended_s=1e-9,
    start_s=0.002, knee_tokens=160.0,
)  # fmt: skip
"""Of an 8-30 B model on one or two recent accelerators, which do 100 (A100) to 270 (L40S) operations per byte."""


def prior(name: str) -> StepTimes | None:
    """What data sheets say of a variant like `llama-3.1-8b/h100`; None if it is not known."""
    try:
        line = variant(name).step_time()
    except OperatorError:
        return None
    few = 16  # a small batch chooses this share of the experts; a dense model has none
    read_s = line.dense_read_s + line.expert_read_s * (1.0 - line.expert_miss**few)
    return StepTimes(
        fixed_s=line.fixed_s + read_s,
        prompt_s=line.prompt_s,
        per_seq_s=line.per_seq_s,
        per_context_token_s=line.per_context_token_s,
        per_token_s=line.per_token_s + line.per_token_link_s,
        per_attended_s=line.per_attended_s,
        start_s=GUESS.start_s,
        knee_tokens=read_s / line.per_token_s,
    )


class StepFit:
    """The coefficients of one variant.

    Attributes:
        coefficients: seconds per unit of each feature, none negative; replaced as a whole, so it may be kept.
        knee: tokens a step computes beside its reading of the weights.
        observed: observations taken, those gated out not counted.
        gated: observations gated out.
        spread: mean relative error of late observations.

    """

    __slots__ = ("_gram", "_moment", "_prior", "_weight", "coefficients", "gated", "knee", "observed", "spread")

    def __init__(self, name: str) -> None:
        known = prior(name)
        times = GUESS if known is None else known
        self._weight = _GUESS_WEIGHT if known is None else _PRIOR_WEIGHT
        self._prior = _vector(times)
        self.knee = times.knee_tokens
        self.coefficients = list(self._prior)
        # Of features in units of the prior, over the seconds observed: sums of products, and of each, by weight.
        self._gram = [[0.0] * TERMS for _ in range(TERMS)]
        self._moment = [0.0] * TERMS
        self.observed = self.gated = 0
        self.spread = 0.3

    @property
    def times(self) -> StepTimes:
        """The coefficients by name."""
        c = self.coefficients
        return StepTimes(
            fixed_s=c[STEPS], prompt_s=c[PROMPT_STEPS], per_seq_s=c[SEQUENCES], per_context_token_s=c[CONTEXT],
            per_token_s=c[TOKENS], per_attended_s=c[ATTENDED], start_s=c[STARTS], knee_tokens=self.knee,
        )  # fmt: skip

    def seconds(self, work: Sequence[float]) -> float:
        """What `work` is expected to take."""
        a, b, c, d, e, f, g = self.coefficients
        t, u, v, w, x, y, z = work
        return a * t + b * u + c * v + d * w + e * x + f * y + g * z

    def parts(self, step: Sequence[float]) -> tuple[float, float]:
        """What the decoding of one step is expected to take, and what its prompts add; a start from idle left out."""
        c = self.coefficients
        batch = step[SEQUENCES]
        over = max(batch - self.knee, 0.0)
        decode_s = c[STEPS] + c[SEQUENCES] * batch + c[CONTEXT] * step[CONTEXT] + c[TOKENS] * over
        prefill_s = (
            c[PROMPT_STEPS] * step[PROMPT_STEPS] + c[TOKENS] * (step[TOKENS] - over) + c[ATTENDED] * step[ATTENDED]
        )
        return decode_s, prefill_s

    def observe(self, work: Sequence[float], seconds: float) -> None:
        """Learn that `work` took so many seconds, above 0."""
        expected = self.seconds(work)
        error = abs(expected / seconds - 1.0)
        young = self.observed < _EARLY
        if not young and not 1.0 / _BROKEN < seconds / max(expected, 1e-9) < _BROKEN:
            self.gated += 1
            return
        weight = min(1.0, _HUBER * self.spread / max(error, 1e-9))
        self.spread += _SPREAD_GAIN * (min(error, 1.0) - self.spread)
        self.observed += 1
        row = [w * p / seconds for w, p in zip(work, self._prior, strict=True)]
        moment = self._moment
        for i, line in enumerate(self._gram):
            r = weight * row[i]
            self._gram[i] = [_KEPT * g + r * x for g, x in zip(line, row)]  # noqa: B905 checking costs as much as adding
            moment[i] = _KEPT * moment[i] + r
        self._descend(_SWEEPS if young else 1)

    def _descend(self, sweeps: int) -> None:
        """Minimise over one coefficient after the other, in units of the prior, each towards 1 by the prior's weight."""
        prior, ridge = self._prior, self._weight
        now = [c / p for c, p in zip(self.coefficients, prior, strict=True)]
        for _ in range(sweeps):
            for i, line in enumerate(self._gram):
                pull = self._moment[i] - sum(map(mul, line, now)) + line[i] * now[i]
                now[i] = max(0.0, (pull + ridge) / (line[i] + ridge))
        now[STEPS] = max(now[STEPS], _LEAST_STEP_S / prior[STEPS])
        self.coefficients = [x * p for x, p in zip(now, prior, strict=True)]


def _vector(times: StepTimes) -> Work:
    return [
        times.fixed_s, times.prompt_s, times.per_seq_s, times.per_context_token_s,
        times.per_token_s, times.per_attended_s, times.start_s,
    ]  # fmt: skip
