"""What stands behind the `nora-checkpoint` command."""
