"""The live view: what the controller tells its followers, folded into a picture of bounded size.

    `picture`   the picture, and the operations that change it
    `fold`      changes and answers of the controller into operations
    `flames`    the sampler's stacks of several engines into one flame graph
    `pages`     numbered deltas for pages, which resume where they were

No sockets, threads or clocks: the hosts (`web`) bring messages and the time.
"""
