"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int | None:
    """Bytes that new processes may use without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
