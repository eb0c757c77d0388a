"""Run in a process of its own, under limits: compile one JSON schema. Prints {"refused": reason or ""}.

A schema of a kilobyte can take for ever (an `allOf` of forty `anyOf` has 2^40 cases), and what compiles it cannot be interrupted.
"""

from __future__ import annotations

import json
import sys

import llguidance

CPU_SECONDS = 2
MEMORY_BYTES = 2 * 2**30


def main() -> None:
    """Schema on stdin, verdict on stdout."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # no such limits on this system: the time that the parent waits is the one that counts
    refused = ""
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(sys.stdin.read())
        matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()
        refused = matcher.get_error() if matcher.is_error() else ""
    except (ValueError, RecursionError) as error:
        refused = str(error)
    sys.stdout.write(json.dumps({"refused": refused[:500]}))


if __name__ == "__main__":
    main()
