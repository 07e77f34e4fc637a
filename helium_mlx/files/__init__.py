"""Bytes on disk, and no model: untrusted files under caps, whole-or-absent outputs, safetensors, the Hub."""
