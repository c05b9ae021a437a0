"""Generated from proto/ by scripts/proto; do not edit. The tests regenerate it and compare."""
