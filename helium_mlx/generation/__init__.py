"""One prompt streamed, many decoded together, drafts, sampling, stops, scores, prompt caches and prompt files."""
