"""The knobs of the KV-event feed."""

from beaconry.config.section import Section


class KvFeed(Section, frozen=True):
    """What bounds the feed. The defaults follow llm-d's (2 s idle, 8 replays) and vLLM's (10,000 batches remembered)."""

    turn_blocks: int = 64
    """Work per round of the event loop, in blocks applied; messages read count too. About 0.1 ms, by which requests wait longer."""
    queued_messages: int = 1000
    """Per source."""
    message_bytes: int = 8 << 20
    """A publisher that sends longer ones is disconnected. A prefill of a million tokens takes 5 MB."""
    replays_at_once: int = 8
    replay_idle_s: float = 2.0
    """Between two batches of an answer."""
    replay_total_s: float = 30.0
    replay_attempts: int = 3
    replay_pause_s: float = 0.5
    """Between two questions to one publisher."""
    replay_rounds: int = 10
    """Answers, each of which leaves something open, before we go on without."""
    retry_s: float = 30.0
    """Until a publisher that has not answered is asked again; doubles each time."""
    retry_max_s: float = 600.0
    reconnect_s: float = 0.1
    reconnect_max_s: float = 5.0
    heartbeat_s: float = 5.0
    """A peer that is silent on the transport for twice as long counts as disconnected."""
