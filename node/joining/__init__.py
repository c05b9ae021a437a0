"""Joining a mesh: invites, the exchange that proves a short secret both ways, the door, and the machine that knocks."""
