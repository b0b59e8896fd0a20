"""Names of topics: an embodiment's are relative to the namespace of its arm."""

from __future__ import annotations

NAMESPACE = "nora"


def full_name(topic: str) -> str:
    """Name of a topic on the wire and in a bag, in the default namespace."""
    return topic if topic.startswith("/") else f"/{NAMESPACE}/{topic}"
