"""What a student kept: tasks, fine-tuning, scores and tables."""
