"""Serves an exported model or a run over HTTP: ``ppxcls serve EXPORT``."""
