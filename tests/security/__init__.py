"""Attacks on a mesh, as strangers, thieves and members; and the page that says what they show."""
