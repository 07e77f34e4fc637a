"""From one checkpoint to another: what was asked, what will be, the run, the proof."""
