"""Is a webhook of Kaizen Studio's genuine? As a command: SIGNING_KEY=… python3 verify.py "$KAIZEN_SIGNATURE" < body"""

import base64
import hashlib
import hmac
import os
import sys
import time

TOLERANCE = 300  # seconds that the sender's clock may be off, and that a recorded request stays good


def verify(signing_key: str, header: str, body: bytes, now: float) -> bool:
    """`header` is `Kaizen-Signature`, `body` the bytes as they came (before any parsing), `now` seconds since 1970."""
    key = base64.b64decode(signing_key[6:]) if signing_key.startswith("whsec_") else signing_key.encode()
    fields = dict(part.partition("=")[::2] for part in header.split(","))
    timestamp, given = fields.get("t", ""), fields.get("v1", "")
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp)) > TOLERANCE:
        return False
    expected = hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), given.encode())


if __name__ == "__main__":
    genuine = verify(os.environ["SIGNING_KEY"], sys.argv[1], sys.stdin.buffer.read(), time.time())
    sys.exit(0 if genuine else 1)
