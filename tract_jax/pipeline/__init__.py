"""The method's stages, joined: what a run does, and in which order."""
