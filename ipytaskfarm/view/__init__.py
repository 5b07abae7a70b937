"""The live view: what the controller tells its followers, folded into a picture of bounded size.

    `picture`   the picture, the operations that change it, and numbered deltas for pages that resume
    `fold`      changes and answers of the controller into operations

No sockets, threads or clocks: the hosts (`web`) bring messages and the time.
"""
