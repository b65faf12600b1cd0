"""What exact knowledge of the engines' caches is worth under cache pressure, through real HTTP.

The engines' caches together hold about a third of what is asked for again, so each placement decides what is evicted. Compared are the
default policy fed by the engines' KV events, the same without events (its approximate view), and round robin. Ideal is one endless cache.

    python -m benchmarks.kv_routing
    python -m benchmarks.kv_routing --trace conversation_trace.jsonl --limit 2000 --blocks 20000
"""

from benchmarks.conversation import arguments, run_matrix, show
from benchmarks.report import save

POLICIES = ["expected-cost", "expected-cost/approximate", "round-robin"]
PRESSED_BLOCKS = 550
"""Of 16 tokens: four engines hold 35,000 tokens; the made-up conversations come back to about three times as many."""


def main() -> None:
    """Run the matrix."""
    parser = arguments("Exact against approximate cache awareness under cache pressure, through real HTTP.")
    parser.set_defaults(policies=POLICIES, blocks=PRESSED_BLOCKS, limit=200, rate=6.0)
    args = parser.parse_args()
    if args.smoke:
        args.limit, args.rate, args.repeats = 12, 12.0, 1
    rows = run_matrix(args)
    show(rows)
    save(args.json, rows)


if __name__ == "__main__":
    main()
