"""Wrappers: losses made of losses, ours or PML's."""

__all__: list[str] = []
