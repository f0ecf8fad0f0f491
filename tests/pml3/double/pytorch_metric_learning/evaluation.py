"""Public; a plug-in takes nothing of it."""
