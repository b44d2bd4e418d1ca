"""Wrappers: environments as token streams, and adapters for spaces, masks, vector environments and faults."""
