"""What several subcommands share: processes, progress, the stacks they start."""
