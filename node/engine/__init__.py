"""Engines: what turns a prompt into tokens. See `api.py` for what the daemon may ask of one."""
