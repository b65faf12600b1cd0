"""`beaconry key`: make an API key for a tenant, and the hash of it that the tenants file holds."""

import argparse
import secrets
import sys

from beaconry.tenancy.keys import hash_of, key_of
from beaconry.values.errors import OperatorError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "--existing", action="store_true", help="read a key from standard input, and print only its hash"
    )


def run(args: argparse.Namespace) -> int:
    """Print key and hash; the key is kept nowhere. Raises OperatorError if no key is given."""
    if args.existing:
        key = sys.stdin.readline().strip()
        if not key:
            raise OperatorError("--existing: standard input is empty; give the key there, not as an argument")
        print(hash_of(key))
        return 0
    key = key_of(secrets.token_bytes(32))
    print(f"key   {key}\nhash  {hash_of(key)}")
    print("Give the key to the tenant, it is kept nowhere; the hash goes into the tenants file.", file=sys.stderr)
    return 0
