"""The subcommands of ``realtime``: options only, one module each."""
