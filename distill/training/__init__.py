"""Around the training loop: run folder, log, checkpoints, processes, closing report."""
