"""The command `ki`: one small file a subcommand, and no logic of the rooms it calls."""
