"""Which clips an expert should look at next, a page to do so, and the way back of the answers."""
