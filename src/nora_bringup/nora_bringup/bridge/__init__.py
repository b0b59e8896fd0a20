"""The process that moves the arm: chunk player, safety gate, drivers. Never imports torch."""
