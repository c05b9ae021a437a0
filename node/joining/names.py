"""Names and fingerprints as both screens of a join show them: what a stranger sends is made safe to print first."""

#: Characters of a fingerprint: enough for two people to compare by voice; the certificate is what counts.
FINGERPRINT_CHARS = 6
NAME_CHARS_MAX = 40


def fingerprint_of(hex_id: str) -> str:
    """Of a node's or a mesh's id, which is itself a hash of a public key."""
    return hex_id[:FINGERPRINT_CHARS]


def shown_name(text: str) -> str:
    """One line of what prints, at most NAME_CHARS_MAX characters; "unnamed" where nothing is left."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * NAME_CHARS_MAX])
    return " ".join(printable.split())[:NAME_CHARS_MAX].strip() or "unnamed"
