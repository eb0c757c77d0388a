"""Luthier: prompt or fine-tune? Decided by measurement, then built."""

__version__ = "0.1.0"
