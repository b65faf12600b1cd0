"""The canonical prompt of a request, and chained hashes over it: equal hash, equal prefix.

The text is cut into blocks of `BLOCK_BYTES`; block i's hash is xxh3-64 of its bytes seeded with the hash of block i-1, the first one with
model, adapter and cache salt. This is vLLM's block chaining (`kv_cache_utils.hash_block_tokens`) over text instead of tokens, so
it needs neither tokenizer nor engine. Token ids take four bytes each, which is also the usual size of a token of English text.
"""

import xxhash

BLOCK_BYTES = 256
"""64 tokens at four bytes each: llm-d's floor for approximate blocks. Smaller blocks cost memory and gain a few tokens a match."""


def chain(text: bytes, salt: bytes) -> tuple[int, ...]:
    """Hashes of the full blocks of `text`, each a 64-bit int standing for everything up to its end."""
    if len(text) < BLOCK_BYTES:
        return ()
    digest = xxhash.xxh3_64_intdigest
    link = digest(salt)
    hashes = []
    view = memoryview(text)
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        link = digest(view[start : start + BLOCK_BYTES], seed=link)
        hashes.append(link)
    return tuple(hashes)


def digest(data: bytes) -> str:
    """A short stand-in for bytes too large for the canonical text, such as an image."""
    return xxhash.xxh3_64_hexdigest(data)
