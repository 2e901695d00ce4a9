"""From documents to batches: sources, token files and streams, packed and masked sequences."""
