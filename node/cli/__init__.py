"""The command `kith`: what people type. Nothing heavy is imported before a command needs it."""
