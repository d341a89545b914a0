"""Commands of `mora` that have no module of their own elsewhere: what to do with what a run has left."""
