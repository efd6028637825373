"""The statuses that infty's commands end with. Needs only the standard library: batch scripts read them, too."""

MISTAKE = 2
"""Something that was given cannot be: the message says what."""
STOPPED = 85
"""Asked to stop before the end, and everything is saved: the same command goes on."""
INTERRUPTED = 130
"""Ctrl-C."""
