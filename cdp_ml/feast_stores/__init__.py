"""Feast: the feature repository opened on the lake, behind its own plug-in interfaces."""
