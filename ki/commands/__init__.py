"""The subcommands of `ki`: one file each."""
