"""The recorder node: one bag per episode, with everything on the embodiment's record list."""
