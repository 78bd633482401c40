"""Rounds whose clients answer with an update that is made once."""
