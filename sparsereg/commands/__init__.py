"""From a typed line to settings that can be trusted; no torch."""
