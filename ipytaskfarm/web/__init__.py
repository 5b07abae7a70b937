"""The live view's page, and its servers: a command of its own, Jupyter's server, and files.

    `feed`        follows a farm, and brings what it hears to the pages that are open
    `questions`   what a page may ask and do, as JSON
    `profiles`    the flame graph of a page
    `handlers`    the requests of a page, for any tornado application
    `report`      ``ipytaskfarm report``: the page and its data in one file
    `extension`   the same pages within Jupyter's server
    `server`      ``ipytaskfarm web``: an application with its own token
    ``static/``   the page itself: ES modules without a build step

The controller knows nothing of pages: a feed is a client like any other, mostly with a reader's key.
"""
