"""Patient ids become keyed hashes before anything is stored or logged."""

import hashlib
import hmac


def pseudonym(patient_id: str, key: str) -> str:
    """Return the pseudonym under which a patient is stored: 32 hexadecimal digits of HMAC-SHA256.

    The same id and key give the same pseudonym everywhere (log, bundle samples), so that a patient can be
    found again by whoever holds the key, to be forgotten, and by nobody else.

    Args:
        patient_id: the id as the source writes it.
        key: `Settings.pseudonym_key`.
    """
    return hmac.new(key.encode(), patient_id.encode(), hashlib.sha256).hexdigest()[:32]
