"""Interfaces of other libraries on top of mmcore: code for them runs once its import lines are changed."""
