"""What both programs do at their edges: flags, one-line errors, devices, progress, cost."""
