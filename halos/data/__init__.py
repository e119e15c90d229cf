"""From named sources to token ids: feedback, sources, toy, template, store, batches."""
